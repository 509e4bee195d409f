"""The real Gemma 3 270M: float32 against transformers' import of the same GGUF file, packed weights against float32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from pocketgem import LLM, SamplingParams
from pocketgem.answers import Score
from pocketgem.model.cache import Step
from tests.test_packed import divergence

pytestmark = pytest.mark.weights
TEXT = Path(__file__).parents[1] / "LICENSE"  # English of known length that every clone has
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "Die drei größten Städte Deutschlands sind",
    "1, 2, 3, 5, 8, 13,",
]
MORE_PROMPTS = [
    "Dear Sir or Madam,",
    "The three laws of thermodynamics are",
    "import numpy as np\n",
    "La tour Eiffel se trouve",
    "Q: Why is the sky blue?\nA:",
]
NEW_TOKENS = 32
TOKENS = int(os.environ.get("POCKETGEM_TOKENS", "1024"))  # of the text that are compared with transformers


@dataclass(frozen=True)
class Oracle:
    """What transformers says: log-probabilities of the text's tokens, and greedy continuations."""

    logprobs: list[float]
    continuations: list[list[int]]


@pytest.fixture(scope="module")
def llm(real_model_path: Path) -> LLM:
    return LLM.load(real_model_path, dtype=torch.float32)


@pytest.fixture(scope="module")
def text_ids(llm: LLM) -> list[int]:
    ids = llm.tokenize(TEXT.read_text(encoding="utf-8"))
    assert len(ids) > 2000
    return ids


@pytest.fixture(scope="module")
def score(llm: LLM, text_ids: list[int]) -> Score:
    return llm.score(text_ids[:TOKENS])


@pytest.fixture(scope="module")
def oracle(llm: LLM, real_model_path: Path, text_ids: list[int]) -> Oracle:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        real_model_path.parent, gguf_file=real_model_path.name, dtype=torch.float32
    ).eval()
    return Oracle(
        oracle_logprobs(model, text_ids[:TOKENS]), [oracle_greedy(model, llm.tokenize(text)) for text in PROMPTS]
    )


@torch.inference_mode()
def oracle_logprobs(model: transformers.PreTrainedModel, ids: list[int]) -> list[float]:
    hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    found: list[float] = []
    for start in range(0, len(ids) - 1, 256):  # all logits at once would be 2.5 GB
        targets = torch.tensor(ids[start + 1 : start + 257])
        rows = model.lm_head(hidden[start : start + len(targets)]).log_softmax(-1)
        found += rows.gather(1, targets[:, None])[:, 0].tolist()
    return found


def oracle_greedy(model: transformers.PreTrainedModel, ids: list[int]) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    return out[0, len(ids) :].tolist()


def test_next_token_log_probabilities(score: Score, oracle: Oracle) -> None:
    difference = (torch.tensor(score.logprobs) - torch.tensor(oracle.logprobs)).abs()
    print(f"mean |difference| {difference.mean():.2e} nat, largest {difference.max():.2e}, {len(difference)} tokens")
    assert difference.mean() <= 0.02


def test_perplexity(score: Score, oracle: Oracle) -> None:
    ours = torch.tensor(score.logprobs).mean().neg().exp()
    theirs = torch.tensor(oracle.logprobs).mean().neg().exp()
    print(f"perplexity {ours:.4f}, transformers {theirs:.4f}")
    assert abs(ours / theirs - 1) <= 0.005


@pytest.mark.parametrize("index", range(len(PROMPTS)), ids=PROMPTS)
def test_greedy_continuation_is_identical(llm: LLM, oracle: Oracle, index: int) -> None:
    params = SamplingParams(max_tokens=NEW_TOKENS)  # no stop ids: the oracle writes on, so do we
    assert list(llm.generate(PROMPTS[index], params=params).ids) == oracle.continuations[index]


def test_chunk_size_does_not_change_a_score(llm: LLM, text_ids: list[int]) -> None:
    ids = text_ids[:700]  # over the window of 512
    at_once, in_pieces = llm.score(ids, chunk=700), llm.score(ids, chunk=97)
    torch.testing.assert_close(torch.tensor(at_once.logprobs), torch.tensor(in_pieces.logprobs), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_close_to_float32(real_model_path: Path, text_ids: list[int], score: Score) -> None:
    """The type a fast machine runs by default: rounding, but no other model."""
    half = LLM.load(real_model_path, dtype=torch.bfloat16).score(text_ids[:300])
    difference = (torch.tensor(half.logprobs) - torch.tensor(score.logprobs[:299])).abs()
    assert difference.mean() < 0.05


def test_batched_answers_equal_single_ones(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12)
    together = llm.generate_many(PROMPTS, params=params)
    assert [one.ids for one in together] == [llm.generate(text, params=params).ids for text in PROMPTS]


# ---- packed weights, int8 activations ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(real_model_path: Path) -> LLM:
    return LLM.load(real_model_path)


@torch.inference_mode()
def all_logits(llm: LLM, ids: list[int], rows: int = 50) -> Iterator[torch.Tensor]:
    """Those of every position, ``[rows, vocab]`` at a time: all at once would be half a gigabyte, for each model."""
    model, cache = llm.model, llm.model.new_cache()
    for start in range(0, len(ids), rows):
        piece = torch.tensor(ids[start : start + rows])
        step = Step.packed([cache], [len(piece)], logits=[len(piece)])
        hidden = model(model.embed(piece), step)
        step.commit()
        yield model.logits(hidden)


@pytest.mark.native
def test_packed_weights_stay_near_float32(llm: LLM, packed: LLM, text_ids: list[int]) -> None:
    """`python -m benchmarks.quality` measures 2,000 tokens, and llama.cpp beside them."""
    ids = text_ids[:500]
    each = [divergence(p, q) for p, q in zip(all_logits(llm, ids), all_logits(packed, ids), strict=True)]
    mean = sum(each) / len(each)
    print(f"mean divergence {mean:.2e} nat, {len(ids)} tokens")
    assert 0 < mean <= 2e-3


@pytest.mark.native
def test_packed_greedy_ids_are_the_same_at_one_four_and_ten_rows(packed: LLM) -> None:
    """Read cold: of a kept prompt a row or two is left, and up to four rows attention sums in another order."""
    params, prompts = SamplingParams(max_tokens=64), PROMPTS + MORE_PROMPTS
    alone = [packed.generate(text, params=params).ids for text in prompts]
    for rows in (4, 10):
        packed.engine.prefixes.clear()
        together = packed.generate_many(prompts[:rows], params=params)
        assert [one.ids for one in together] == alone[:rows]


@pytest.mark.native
def test_a_second_turn_of_a_long_conversation_reads_a_twentieth(real_model_path: Path, text_ids: list[int]) -> None:
    """Over packed weights a row has the same bits whatever comes with it, so the answers are the same ones."""
    llm, params = LLM.load(real_model_path), SamplingParams(max_tokens=8)
    prompt, answer = text_ids[:2000], llm.tokenize("The answer, as a template writes it", add_bos=False)
    follow = [*prompt, *answer, *llm.tokenize("and a question?", add_bos=False)]
    assert llm.generate(prompt, params=params).stats.reuse_reason == "first request"
    warm = llm.generate(follow, params=params)
    assert (len(follow) - warm.stats.reused_tokens) / len(follow) < 0.05
    assert warm.stats.reuse_reason is not None
    assert "differs from this prompt at token 2000" in warm.stats.reuse_reason
    llm.engine.prefixes.clear()
    assert llm.generate(follow, params=params).ids == warm.ids
