"""Law 1: greedy ids are the same however they are computed. Through the engine, on a twin of every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketgem import kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.kernels.compute import Compute
from pocketgem.model.build_packed import build_packed
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from tests.test_parity import load
from tests.twins import BLOCKS, LAYOUTS, VOCAB, make_twin

NEW_TOKENS = 24  # prompt and answer together cross the window of eight several times
GREEDY = SamplingParams(max_tokens=NEW_TOKENS)


PACKED = [pytest.param((layout, True), marks=pytest.mark.native, id=f"{layout}-packed") for layout in LAYOUTS]
PLAIN = [pytest.param((layout, False), id=layout) for layout in LAYOUTS]


@pytest.fixture(scope="module", params=[*PLAIN, *PACKED])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return make_model(*request.param, tmp_path_factory.mktemp("twin"))


def make_model(layout: str, packed: bool, folder: Path) -> Gemma:
    """A twin in plain weights, or in Q4_0 over the compiled kernels."""
    if not packed:
        return load(make_twin(layout, folder).folder)
    source = open_checkpoint(resolve(make_twin(layout, folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q4_0)
    compute = Compute(str(kernels.choice().name), threads=2)
    return build_packed(open_checkpoint(resolve(folder / "twin.gguf")), compute)[0]


def prompt(seed: int, length: int = 21) -> list[int]:
    # Packed models quantise activations: where two tokens are within that rounding, chunked and whole prefill may
    # choose differently. Prompts of this seed have no such tie.
    generator = torch.Generator().manual_seed(seed + 40)
    return torch.randint(5, VOCAB, (length,), generator=generator).tolist()


@torch.inference_mode()
def without_cache(model: Gemma, ids: list[int], *, skip: bool) -> list[int]:
    """The definition: every token is the most probable one after a full pass over all before it."""
    known = list(ids)
    for _ in range(NEW_TOKENS):
        step = Step.packed([model.new_cache()], [len(known)], skip=skip)
        known.append(int(model.logits(model(model.embed(torch.tensor(known)), step))[-1].argmax()))
    return known[len(ids) :]


def submit(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> Sequence:
    return engine.submit(Request("test", tuple(ids), params))


def finish(engine: Engine, *sequences: Sequence) -> list[list[int]]:
    while any(sequence.finish is None for sequence in sequences):
        assert engine.step(), "the engine stopped before its requests were done"
    return [sequence.output_ids for sequence in sequences]


@pytest.fixture(scope="module")
def expected(model: Gemma) -> list[int]:
    return without_cache(model, prompt(0), skip=False)


def test_the_shared_kv_skip_changes_nothing(model: Gemma, expected: list[int]) -> None:
    assert without_cache(model, prompt(0), skip=True) == expected


@pytest.mark.parametrize("chunk", [1, 5, 8, 13, 512])
def test_cached_and_chunked_prefill(model: Gemma, expected: list[int], chunk: int) -> None:
    engine = Engine(model, Scheduler(chunk=chunk))
    assert finish(engine, submit(engine, prompt(0))) == [expected]


def test_batched_with_strangers(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=7))
    strangers = [submit(engine, prompt(1, 40)), submit(engine, prompt(2, 3))]
    for _ in range(3):
        engine.step()
    ours = submit(engine, prompt(0))
    strangers.append(submit(engine, prompt(3, 11)))
    assert finish(engine, ours, *strangers)[0] == expected


def test_preempted_and_resumed(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=6, max_cached=70), kept=0)
    first = submit(engine, prompt(1, 30))
    ours = submit(engine, prompt(0))
    preemptions = 0
    while ours.finish is None:
        before = ours.num_computed
        engine.step()
        preemptions += ours.num_computed < before
    assert preemptions, "the budget was meant to be too small for both"
    assert finish(engine, ours, first)[0] == expected


def test_prefix_hit(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=512), kept=1 << 30)
    finish(engine, submit(engine, prompt(0)[:12], SamplingParams(max_tokens=1)))
    hit = submit(engine, prompt(0))
    assert finish(engine, hit) == [expected]
    assert hit.num_reused == 12


def test_two_continuations_of_one_past_do_not_disturb_each_other(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=512), kept=1 << 30)
    finish(engine, submit(engine, prompt(0)[:12], SamplingParams(max_tokens=1)))
    other = prompt(0)[:12] + prompt(5)
    both = [submit(engine, prompt(0)), submit(engine, other)]
    assert finish(engine, *both) == [expected, without_cache(model, other, skip=True)]


def test_aborting_a_stranger_changes_nothing(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=4))
    stranger, ours = submit(engine, prompt(1, 40)), submit(engine, prompt(0))
    for _ in range(5):
        engine.step()
    engine.abort(stranger)
    assert finish(engine, ours) == [expected]
    assert stranger.finish is FinishReason.ABORT
    assert not engine.states
