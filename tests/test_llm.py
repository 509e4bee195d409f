"""The page a person calls: on tiny twins with a real vocabulary, through files, as anybody would load them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from pocketgem import LLM, Completion, Content, Finished, FinishReason, PromptError, SamplingParams, TemplateError
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, WeightsError
from pocketgem.text.events import Thought
from tests.text_fixtures import gemma4_metadata, spm_metadata
from tests.twins import BLOCKS, make_twin

TEMPLATE = (
    "{{ bos_token }}{% if enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for message in messages %}<|turn>{{ message.role }}\n{{ message.content }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An E2B twin as GGUF, with a Gemma 4 vocabulary and a template."""
    folder = tmp_path_factory.mktemp("chat")
    source = open_checkpoint(resolve(make_twin("E2B", folder / "twin").folder))
    vocabulary = {**gemma4_metadata(), "tokenizer.chat_template": TEMPLATE}
    export_gguf(source, folder / "twin.gguf", StoredType.F32, vocabulary=vocabulary)
    return folder / "twin.gguf"


@pytest.fixture(scope="module")
def llm(chat_file: Path) -> LLM:
    return LLM.load(chat_file, dtype=torch.float32)


@pytest.fixture
def base(tmp_path: Path) -> LLM:
    """A Gemma 3 twin without a template."""
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))
    export_gguf(source, tmp_path / "base.gguf", StoredType.F32, vocabulary=spm_metadata())
    return LLM.load(tmp_path / "base.gguf", dtype=torch.float32)


def test_generate_is_the_fold_of_stream(llm: LLM) -> None:
    whole = llm.generate("hello world", max_tokens=12, temperature=0)
    pieces = list(llm.stream("hello world", max_tokens=12, temperature=0))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(id for piece in pieces for id in piece.ids) == whole.ids
    assert [piece.finish for piece in pieces].count(None) == len(pieces) - 1
    assert pieces[-1].finish == whole.finish


def test_chat_is_the_fold_of_stream_chat(llm: LLM) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    reply = llm.chat(messages, max_tokens=20, temperature=1.0, seed=3)
    events = list(llm.stream_chat(messages, max_tokens=20, temperature=1.0, seed=3))
    assert isinstance(events[-1], Finished)
    assert "".join(event.text for event in events if isinstance(event, Content)) == reply.content
    assert "".join(event.text for event in events if isinstance(event, Thought)) == reply.thought
    assert reply.message == {"role": "assistant", "content": reply.content}
    assert reply.ids == events[-1].ids
    assert len(reply.ids) == reply.stats.completion_tokens


def test_a_reply_carries_the_log_probabilities_of_all_its_tokens(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    reply = llm.chat(messages, max_tokens=6, temperature=0.0, logprobs=2)
    scored = llm.score([*llm.chat_prompt(messages), *reply.ids]).logprobs[-len(reply.ids) :]
    assert [one.id for one in reply.logprobs] == list(reply.ids)
    assert [one.logprob for one in reply.logprobs] == pytest.approx(scored, abs=1e-4)


def test_thinking_reaches_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    think = llm.tokenizer.token_id("<|think|>")
    assert think in llm.chat_prompt(messages, thinking=True)
    assert think not in llm.chat_prompt(messages, thinking=False)


def test_past_thoughts_do_not_come_back(llm: LLM) -> None:
    past = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<|channel>thought\nsecret<channel|>world"},
        {"role": "user", "content": "and?"},
    ]
    text = llm.detokenize(llm.chat_prompt(past))
    assert "secret" not in text
    assert "world" in text


def test_a_base_model_refuses_to_chat_and_says_why(base: LLM) -> None:
    assert not base.can_chat
    with pytest.raises(TemplateError, match="no chat template"):
        base.chat([{"role": "user", "content": "hello"}])


def test_many_prompts_at_once_are_the_same_as_one_by_one(llm: LLM) -> None:
    prompts = ["hello", "the world is", "a", "user user user user user user"]
    options = SamplingParams(max_tokens=9)
    together = llm.generate_many(prompts, params=options)
    assert [one.ids for one in together] == [llm.generate(text, params=options).ids for text in prompts]


def test_seeds_repeat_and_do_not_feel_their_neighbours(llm: LLM) -> None:
    options = SamplingParams(max_tokens=9, temperature=1.0, seed=5)
    alone = llm.generate("hello", params=options)
    assert alone.ids == llm.generate_many(["world", "hello", "answer"], params=options)[1].ids
    assert alone.ids != llm.generate("hello", params=SamplingParams(max_tokens=9, temperature=1.0, seed=6)).ids


def test_a_stop_string_never_shows_and_ends_the_answer(llm: LLM) -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 1}
    text = llm.generate("hello", **options).text
    stop = text[4:7]
    stopped = llm.generate("hello", stop=(stop,), **options)
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish is FinishReason.STOP
    pieces = [piece.text for piece in llm.stream("hello", stop=(stop,), **options)]
    assert "".join(pieces) == stopped.text


def test_a_stop_id_ends_the_answer_and_is_no_text(llm: LLM) -> None:
    free = llm.generate("hello", params=SamplingParams(max_tokens=20))
    last = free.ids[5]
    stopped = llm.generate("hello", params=SamplingParams(max_tokens=20, stop_ids=frozenset({last})))
    cut = free.ids.index(last)
    assert stopped.ids == free.ids[: cut + 1]
    assert stopped.text == llm.detokenize(free.ids[:cut])
    assert stopped.finish is FinishReason.STOP


def test_a_full_context_ends_the_answer(chat_file: Path) -> None:
    small = LLM.load(chat_file, dtype=torch.float32, context=16)
    answer = small.generate([2, 300, 301, 302], params=SamplingParams())
    assert answer.finish is FinishReason.LENGTH
    assert answer.stats.prompt_tokens + answer.stats.completion_tokens == 16


def test_ids_without_a_token_are_never_chosen(llm: LLM) -> None:
    assert llm.tokenizer.vocab_size < llm.model.config.vocab_size
    for seed in range(4):
        ids = llm.generate("hello", temperature=100.0, max_tokens=60, seed=seed, top_k=None).ids
        assert max(ids) < llm.tokenizer.vocab_size


def test_logprobs_are_those_that_score_gives(llm: LLM) -> None:
    prompt = llm.tokenize("hello world")
    answer = llm.generate(prompt, params=SamplingParams(max_tokens=8, logprobs=3))
    assert len(answer.logprobs) == 8
    scored = llm.score([*prompt, *answer.ids]).logprobs[-8:]
    torch.testing.assert_close(
        torch.tensor([one.logprob for one in answer.logprobs]), torch.tensor(scored), atol=1e-4, rtol=0
    )
    for one in answer.logprobs:
        assert one.top[0] == pytest.approx((one.id, one.logprob))  # greedy: the chosen id is the best of three
        assert len(one.top) == 3


def test_score_is_a_distribution(llm: LLM) -> None:
    """Over all continuations by one token, the probabilities add up to one."""
    prompt = llm.tokenize("hello")
    total = sum(torch.tensor(llm.score([*prompt, id]).logprobs[-1]).exp() for id in range(llm.model.config.vocab_size))
    assert total == pytest.approx(1.0, abs=1e-4)


def test_a_next_turn_reuses_the_one_before(llm: LLM) -> None:
    first = [{"role": "user", "content": "hello"}]
    prompt = llm.chat_prompt(first)
    answer = llm.generate(prompt, params=SamplingParams(max_tokens=6))
    follow = [*prompt, *answer.ids, *llm.tokenize("and then?", add_bos=False)]
    again = llm.generate(follow, params=SamplingParams(max_tokens=6))
    assert again.stats.reused_tokens == len(prompt) + 5  # the last id was sampled, never read
    llm.engine.prefixes.clear()
    assert llm.generate(follow, params=SamplingParams(max_tokens=6)).ids == again.ids


def test_leaving_a_stream_frees_its_request(llm: LLM) -> None:
    stream = llm.stream("hello", max_tokens=50)
    next(stream)
    assert llm.engine.states
    stream.close()
    assert not llm.engine.states
    assert not llm.engine.scheduler.running


def test_a_stream_nobody_reads_costs_nothing(llm: LLM) -> None:
    unread = llm.stream("hello", max_tokens=50), llm.stream_chat([{"role": "user", "content": "hello"}], max_tokens=50)
    assert not llm.engine.states
    del unread
    assert not llm.engine.scheduler.waiting


def test_one_bad_prompt_of_many_starts_none(llm: LLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.generate_many(["hello", "world", ""], max_tokens=3)
    assert not llm.engine.states
    assert not llm.engine.scheduler.waiting


def test_streams_may_be_read_in_any_order(llm: LLM) -> None:
    options = SamplingParams(max_tokens=8)
    expected = [llm.generate(text, params=options).text for text in ("hello", "world")]
    streams = [llm.stream(text, params=options) for text in ("hello", "world")]
    parts = ["", ""]
    for pieces in zip(*streams, strict=True):
        parts = [part + piece.text for part, piece in zip(parts, pieces, strict=True)]
    assert parts == expected


def test_threads_take_turns(llm: LLM) -> None:
    options = SamplingParams(max_tokens=10)
    texts = ["hello", "world", "the answer", "user turn"]
    expected = [llm.generate(text, params=options) for text in texts]
    found: dict[str, Completion] = {}
    threads = [
        threading.Thread(target=lambda t=text: found.update({t: llm.generate(t, params=options)})) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[text].ids for text in texts] == [one.ids for one in expected]


def test_prefill_progress_counts_up_to_the_prompt(llm: LLM) -> None:
    llm.engine.scheduler.chunk, before = 7, llm.engine.scheduler.chunk
    llm.engine.prefixes.clear()
    seen: list[tuple[int, int]] = []
    ids = list(range(300, 340))
    for _ in llm.stream(
        ids, params=SamplingParams(max_tokens=2), on_prefill=lambda done, total: seen.append((done, total))
    ):
        pass
    llm.engine.scheduler.chunk = before
    assert seen == [(done, 40) for done in (7, 14, 21, 28, 35)]


@pytest.mark.parametrize("prompt", ["", []], ids=["text", "ids"])
def test_an_empty_prompt_is_refused(llm: LLM, prompt: str | list[int]) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.generate(prompt)


def test_what_cannot_be_run_is_refused_in_one_line(llm: LLM, chat_file: Path) -> None:
    for match, call in [
        ("leave|holds|context", lambda: llm.generate([5] * 600)),
        ("vocabulary", lambda: llm.generate([llm.model.config.vocab_size])),
        ("temperature", lambda: llm.generate("hello", temperature=-1)),
        ("unknown sampling option", lambda: llm.generate("hello", tempreature=1)),
        ("not both", lambda: llm.generate("hello", params=SamplingParams(), seed=1)),
        ("context is 1", lambda: LLM.load(chat_file, context=1)),
        ("context is 10000000", lambda: LLM.load(chat_file, context=10_000_000)),
    ]:
        with pytest.raises(PromptError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not llm.engine.states


def test_a_vocabulary_far_too_small_is_refused(tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))
    tokens = {**spm_metadata()}
    export_gguf(source, tmp_path / "base.gguf", StoredType.F32, vocabulary=tokens)
    checkpoint = open_checkpoint(resolve(tmp_path / "base.gguf"))
    object.__setattr__(checkpoint.config, "vocab_size", 100_000)
    good = LLM.load(tmp_path / "base.gguf")
    with pytest.raises(WeightsError, match="100000 embeddings for a vocabulary of 573"):
        LLM(good.model, good.tokenizer, checkpoint)


@pytest.mark.parametrize("change", ["cut", "rewritten"])
def test_g15_weights_changed_under_a_running_model_are_refused_by_name(tmp_path: Path, change: str) -> None:
    """Float weights are read from the mapped file while the model runs; touching a page that is gone would kill us."""
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))
    file = tmp_path / "base.gguf"
    export_gguf(source, file, StoredType.F32, vocabulary=spm_metadata())
    llm = LLM.load(file, dtype=torch.float32)
    assert llm.generate("hello", max_tokens=1).ids
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2) if change == "cut" else handle.write(b"GGUF")
    with pytest.raises(CheckpointError, match="changed while in use"):
        llm.generate("hello", max_tokens=1)


def test_weights_that_were_converted_do_not_need_their_file(tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))
    export_gguf(source, tmp_path / "base.gguf", StoredType.F16, vocabulary=spm_metadata())
    llm = LLM.load(tmp_path / "base.gguf", dtype=torch.float32)
    (tmp_path / "base.gguf").write_bytes(b"something else")
    assert llm.generate("hello", max_tokens=2).ids


@pytest.mark.native
def test_scores_and_answers_from_several_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The compiled kernels have one scratch memory: whoever uses the model must hold the lock, to the last product."""
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin", BLOCKS).folder))
    export_gguf(source, tmp_path / "base.gguf", StoredType.Q4_0, vocabulary={**spm_metadata()})
    llm = LLM.load(tmp_path / "base.gguf")
    assert llm.model.has_own_threads
    prompts = [list(range(5 + i, 60 + i)) for i in range(4)]
    expected = [(llm.score(ids).logprobs, llm.generate(ids, max_tokens=8, temperature=0).ids) for ids in prompts]
    found: list[object] = [None] * 4

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = (llm.score(prompts[i]).logprobs, llm.generate(prompts[i], max_tokens=8, temperature=0).ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
