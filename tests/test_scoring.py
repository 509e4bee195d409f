"""Log-probabilities of a prompt: the definition's, however the prompt is read and whoever else is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketgem import LLM, RunError
from pocketgem.engine import scoring
from pocketgem.engine.loop import Engine, Output
from pocketgem.engine.request import FinishReason, Request, Sampled, SamplingParams, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.engine.scoring import score_rows
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from tests.cli_models import save_model
from tests.test_laws import prompt
from tests.test_parity import load
from tests.twins import make_twin


@pytest.fixture(scope="module", params=["gemma3", "gemma3n", "E2B", "26B-A4B"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return load(make_twin(request.param, tmp_path_factory.mktemp("twin")).folder)


@pytest.fixture(scope="module")
def defined(model: Gemma) -> torch.Tensor:
    """Log-probabilities of the ids after each id of the prompt [tokens - 1, vocab], in one pass without the skip."""
    with torch.inference_mode():
        ids = prompt(0)
        step = Step.packed([model.new_cache()], [len(ids)], logits=[len(ids)], skip=False)
        return model.logits(model(model.embed(torch.tensor(ids)), step)).log_softmax(-1)[:-1]


def run(engine: Engine, *sequences: Sequence) -> dict[Sequence, list[Output]]:
    found: dict[Sequence, list[Output]] = {sequence: [] for sequence in sequences}
    while any(sequence.finish is None for sequence in sequences):
        for output in engine.step():
            found.setdefault(output.sequence, []).append(output)
    return found


def submit(engine: Engine, ids: list[int], **params: int) -> Sequence:
    return engine.submit(Request("r", tuple(ids), SamplingParams(**{"max_tokens": 3, **params})))  # type: ignore[arg-type]


def scored(outputs: list[Output]) -> list[Sampled]:
    return [one for output in outputs for one in output.prompt]


def check(found: list[Sampled], defined: torch.Tensor) -> None:
    ids = prompt(0)
    assert [one.id for one in found] == ids[1:]
    for one, row in zip(found, defined, strict=True):
        assert one.logprob == pytest.approx(float(row[one.id]), abs=2e-4)
        assert one.top[0] == pytest.approx((int(row.argmax()), float(row.max())), abs=2e-4)
        if one.top[0][0] == one.id:
            assert one.top[0][1] == one.logprob  # the very same number: a client compares the two


@pytest.mark.parametrize("chunk", [1, 5, 8, 512])
@pytest.mark.parametrize("top", [1, 3])
def test_they_are_those_of_the_definition(model: Gemma, defined: torch.Tensor, chunk: int, top: int) -> None:
    engine = Engine(model, Scheduler(chunk=chunk))
    ours = submit(engine, prompt(0), prompt_logprobs=top)
    outputs = run(engine, ours)[ours]
    check(scored(outputs), defined)
    assert len(outputs[0].prompt) == min(chunk, 20)
    assert all(len(one.top) == top for one in scored(outputs))
    plain = submit(engine, prompt(0))
    run(engine, plain)
    assert plain.output_ids == ours.output_ids


def test_beside_strangers_who_ask_for_other_things(model: Gemma, defined: torch.Tensor) -> None:
    engine = Engine(model, Scheduler(chunk=7))
    strangers = [submit(engine, prompt(1, 40)), submit(engine, prompt(2, 9), prompt_logprobs=0, max_tokens=1)]
    for _ in range(3):
        engine.step()
    ours = submit(engine, prompt(0), prompt_logprobs=1)
    found = run(engine, ours, *strangers)
    check(scored(found[ours]), defined)
    assert not scored(found[strangers[0]])


def test_a_preempted_prompt_is_reported_once(model: Gemma, defined: torch.Tensor) -> None:
    engine = Engine(model, Scheduler(chunk=6, max_cached=70))
    first, ours = submit(engine, prompt(1, 30), max_tokens=30), submit(engine, prompt(0), prompt_logprobs=1)
    found = run(engine, first, ours)
    check(scored(found[ours]), defined)


def test_a_kept_past_is_not_used_and_it_says_why(model: Gemma, defined: torch.Tensor) -> None:
    engine = Engine(model)
    run(engine, submit(engine, prompt(0)))
    ours = submit(engine, prompt(0), prompt_logprobs=1)
    check(scored(run(engine, ours)[ours]), defined)
    assert ours.num_reused == 0
    assert ours.reuse_reason == "prompt log-probabilities need the whole prompt"


@pytest.mark.parametrize("prompt_logprobs", [None, 2])
def test_no_token_at_all_may_be_asked_for(model: Gemma, defined: torch.Tensor, prompt_logprobs: int | None) -> None:
    engine = Engine(model, Scheduler(chunk=8))
    params = SamplingParams(max_tokens=0, prompt_logprobs=prompt_logprobs)
    ours = engine.submit(Request("r", tuple(prompt(0)), params))
    outputs = run(engine, ours)[ours]
    assert ours.finish is FinishReason.LENGTH
    assert ours.output_ids == []
    assert len(outputs) == 3
    if prompt_logprobs:
        check(scored(outputs), defined)


def test_a_prompt_of_one_id_has_none(model: Gemma) -> None:
    engine = Engine(model)
    ours = submit(engine, [7], prompt_logprobs=1)
    assert scored(run(engine, ours)[ours]) == []


def test_never_many_rows_of_logits_at_once(model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "HEAD_ROWS", 4)
    rows: list[int] = []
    real = Gemma.logits

    def counted(self: Gemma, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return real(self, hidden)

    monkeypatch.setattr(Gemma, "logits", counted)
    engine = Engine(model)
    run(engine, submit(engine, prompt(0), prompt_logprobs=1))
    assert max(rows) == 4


def test_rows_that_are_not_numbers_end_their_request_only(model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*_: object) -> list[Sampled]:
        raise RunError("not finite")

    engine = Engine(model)
    alone = submit(engine, prompt(1))
    run(engine, alone)
    monkeypatch.setattr("pocketgem.engine.decode.score_rows", spoiled)
    ours, other = submit(engine, prompt(0), prompt_logprobs=1), submit(engine, prompt(1))
    run(engine, ours, other)
    assert isinstance(ours.error, RunError)
    assert other.output_ids == alone.output_ids


def test_a_row_of_nan_is_refused(model: Gemma) -> None:
    with pytest.raises(RunError, match="not finite"):
        score_rows(model, torch.full((1, model.config.hidden_size), float("nan")), [5], 1)


def test_a_stream_of_no_token_ends_well(tmp_path: Path) -> None:
    llm = LLM.load(save_model(tmp_path / "model"), dtype=torch.float32)
    whole = llm.generate("hello", max_tokens=0)
    assert (whole.text, whole.ids, whole.finish) == ("", (), FinishReason.LENGTH)
    assert whole.stats.prompt_tokens == 6


def test_text_that_is_scored_and_prompts_agree(tmp_path: Path) -> None:
    llm = LLM.load(save_model(tmp_path / "model"), dtype=torch.float32)
    ids = [291, 300, 305, 299, 310, 311]
    run = llm.flights.start(Request("r", tuple(ids), SamplingParams(max_tokens=0, prompt_logprobs=0)))
    found = [one.logprob for output in llm.flights.outputs(run) for one in output.prompt]
    assert found == pytest.approx(list(llm.score(ids).logprobs), abs=1e-6)
