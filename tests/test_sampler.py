"""The sampler: each rule's law over generated logits, equality with transformers, the distribution of what is drawn."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pocketgem.engine import sampler
from pocketgem.engine.request import Sampled, SamplingParams
from pocketgem.engine.sampler import keep_min_p, keep_top_k, keep_top_p, make_generator, sample
from pocketgem.errors import PromptError, RunError

laws = settings(deadline=None, derandomize=True, max_examples=150)
# Halves as well as any float: rows with ties are the hard ones.
logit = st.one_of(st.integers(-8, 8).map(lambda n: n / 2), st.floats(-30, 30, width=32))
rows = st.lists(logit, min_size=1, max_size=40).map(torch.tensor)
shares = st.floats(0, 1)
EVERYTHING: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.2,
    "logit_bias": {3: 1.5, 4: -math.inf},
    "stop_ids": frozenset({1}),
    "suppress_ids": frozenset({7}),
    "min_tokens": 9,
    "logprobs": 5,
}


def choose(logits: Tensor, seed: int = 0, output: tuple[int, ...] = (), **options: Any) -> Sampled:
    """sample() with a prompt of id 0 and a generator of its own."""
    generator = make_generator(seed)
    return sample(logits, SamplingParams(**options), prompt_ids=(0,), output_ids=output, generator=generator)


def distribution(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...], output: tuple[int, ...]) -> Tensor:
    """What sample() draws from, laid out over the vocabulary: [vocab] float64."""
    scores = sampler.apply_penalties(logits, params, prompt_ids=prompt, output_ids=output)
    scores = sampler.suppress(sampler.apply_bias(scores, params), params, num_output=len(output))
    ids, scores = sampler.candidates(scores, params)
    return torch.zeros(len(logits), dtype=torch.float64).index_add(0, ids, scores.softmax(0))


def random_row(vocab: int, seed: int) -> Tensor:
    return torch.randn(vocab, generator=make_generator(seed)) * 3


# --- the laws of each rule ---


@laws
@given(rows, shares)
def test_top_p_keeps_the_smallest_prefix_that_reaches_p(logits: Tensor, p: float) -> None:
    probability = logits.double().softmax(0)
    kept = keep_top_p(logits.double(), p)
    dropped = sorted(set(range(len(logits))) - set(kept.tolist()))
    least = float(probability[kept].min())
    assert len(kept) == len(set(kept.tolist())) >= 1
    assert float(probability[kept].sum()) >= p - 1e-12
    assert len(kept) == 1 or float(probability[kept].sum()) - least < p + 1e-12
    assert all(probability[id] <= least for id in dropped)
    edge = [int(id) for id in kept if probability[id] == least]
    assert all(id > max(edge) for id in dropped if probability[id] == least)


def test_top_p_reached_exactly_is_reached() -> None:
    uniform = torch.zeros(4, dtype=torch.float64)
    assert [keep_top_p(uniform, p).tolist() for p in (0.0, 0.25, 0.5, 0.51, 1.0)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]


@laws
@given(rows, st.integers(1, 50))
def test_top_k_keeps_k_and_what_is_tied_with_the_last(logits: Tensor, k: int) -> None:
    kept = keep_top_k(logits, k)
    last = logits.sort(descending=True).values[min(k, len(logits)) - 1]
    assert kept.tolist() == [id for id, value in enumerate(logits) if value >= last]
    assert int((logits[kept] > last).sum()) < k <= max(k, len(kept))
    assert len(kept) >= min(k, len(logits))


@laws
@given(rows, shares)
def test_min_p_keeps_what_is_near_enough_to_the_most_probable(logits: Tensor, min_p: float) -> None:
    ratio = logits.double().softmax(0) / logits.double().softmax(0).max()
    kept = set(keep_min_p(logits.double(), min_p).tolist())
    assert int(logits.argmax()) in kept
    assert all(ratio[id] >= min_p - 1e-12 for id in kept)
    assert all(ratio[id] <= min_p + 1e-12 for id in set(range(len(logits))) - kept)


@laws
@given(rows, st.floats(0.05, 100), st.floats(0.05, 100))
def test_a_lower_temperature_sharpens(logits: Tensor, one: float, other: float) -> None:
    low, high = (
        sampler.apply_temperature(logits.double(), temperature).softmax(0) for temperature in sorted((one, other))
    )
    assert low.max() >= high.max() - 1e-12
    assert low.min() <= high.min() + 1e-12
    assert torch.special.entr(low).sum() <= torch.special.entr(high).sum() + 1e-9


@laws
@given(st.lists(logit, min_size=2, max_size=40).map(torch.tensor), st.data())
def test_a_bias_of_minus_infinity_removes_an_id(logits: Tensor, data: st.DataObject) -> None:
    id = data.draw(st.integers(0, len(logits) - 1))
    params = SamplingParams(temperature=1.0, logit_bias={id: -math.inf})
    assert distribution(logits, params, (0,), ())[id] == 0
    assert choose(logits, logit_bias={id: -math.inf}).id != id
    assert choose(logits, temperature=100.0, logit_bias={id: -math.inf}).id != id


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert choose(torch.tensor([1.0, 4.0, 4.0, 4.0])).id == 1
    assert choose(torch.tensor([1.0, 4.0, 4.0, 4.0]), suppress_ids=frozenset({1})).id == 2


def test_presence_counts_once_and_frequency_every_time_over_the_output_only() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    scores = sampler.apply_penalties(torch.zeros(5), params, prompt_ids=(0, 0, 1), output_ids=(1, 2, 2, 2))
    assert scores.tolist() == [0.0, -0.75, -1.25, 0.0, 0.0]


def test_stop_ids_wait_for_min_tokens() -> None:
    logits = torch.tensor([0.0, 9.0, 5.0])
    options: dict[str, Any] = {"stop_ids": frozenset({1}), "min_tokens": 2}
    assert [choose(logits, output=output, **options).id for output in ((), (2,), (2, 2))] == [2, 2, 1]


# --- transformers as the oracle ---


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.6}, RepetitionPenaltyLogitsProcessor(0.6)),
        ({"logit_bias": {3: 2.5, 40: -4.0}}, SequenceBiasLogitsProcessor([[[3], 2.5], [[40], -4.0]])),
        ({"suppress_ids": frozenset({2, 30, 77})}, SuppressTokensLogitsProcessor([2, 30, 77])),
        ({"stop_ids": frozenset({1, 9}), "min_tokens": 5}, MinNewTokensLengthLogitsProcessor(4, 5, [1, 9])),
        ({"temperature": 0.6}, TemperatureLogitsWarper(0.6)),
        ({"temperature": 1.7}, TemperatureLogitsWarper(1.7)),
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_k": 500}, TopKLogitsWarper(500)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.0}, TopPLogitsWarper(0.0)),
        ({"min_p": 0.07}, MinPLogitsWarper(0.07)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
    ],
)
def test_a_rule_equals_transformers(options: dict[str, Any], oracle: Callable[[Tensor, Tensor], Tensor]) -> None:
    prompt, output = (4, 8, 8, 15), (16, 23, 42, 4)
    for seed in range(20):
        logits = random_row(97, seed)
        theirs = oracle(torch.tensor([[*prompt, *output]]), logits[None].clone())[0].double().softmax(0)
        ours = distribution(logits, SamplingParams(**{"temperature": 1.0} | options), prompt, output)
        assert ((ours > 0) == (theirs > 0)).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("top_k", [None, 30])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_all_rules_together_equal_transformers(top_k: int | None, top_p: float, min_p: float) -> None:
    chain = [RepetitionPenaltyLogitsProcessor(1.2), SuppressTokensLogitsProcessor([7]), TemperatureLogitsWarper(1.4)]
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    oracle = LogitsProcessorList([*chain, TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)])
    params = SamplingParams(
        temperature=1.4, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=1.2, suppress_ids=frozenset({7})
    )
    for seed in range(10):
        logits = random_row(1000, seed)
        theirs = (
            oracle(torch.LongTensor([[5, 6, 7, 9, 9]]), torch.FloatTensor(logits[None].clone()))[0].double().softmax(0)
        )
        ours = distribution(logits, params, (5, 6, 7), (9, 9))
        assert ((ours > 0) == (theirs > 0)).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_order_of_the_rules_is_that_of_generate() -> None:
    """A tiny model, transformers' own loop: from its raw logits we come to its processed scores at every step."""
    torch.manual_seed(0)
    tiny = Gemma3TextConfig(
        vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, initializer_range=1.0,
    )  # fmt: skip
    prompt = (2, 11, 12, 13)
    model: Any = Gemma3ForCausalLM(tiny)
    result = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4, dtype=torch.long), do_sample=True, temperature=1.5,
        top_k=40, top_p=0.95, min_p=0.001, repetition_penalty=1.5, suppress_tokens=[20, 21], eos_token_id=1,
        min_new_tokens=4, max_new_tokens=8, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        output_scores=True,
    )  # fmt: skip
    params = SamplingParams(
        temperature=1.5, top_k=40, top_p=0.95, min_p=0.001, repetition_penalty=1.5, stop_ids=frozenset({1}),
        suppress_ids=frozenset({20, 21}), min_tokens=4,
    )  # fmt: skip
    output = tuple(result.sequences[0, len(prompt) :].tolist())
    assert len(output) >= 5
    for step in range(len(output)):
        ours = distribution(result.logits[step][0], params, prompt, output[:step])
        theirs = result.scores[step][0].double().softmax(0)
        assert ((ours > 0) == (theirs > 0)).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


# --- what is drawn ---


def chi_square(counts: Counter[int], expected: Tensor) -> float:
    return sum((counts[id] - float(n)) ** 2 / float(n) for id, n in enumerate(expected) if n > 0)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1, "temperature": 1.5}])
def test_ids_are_drawn_as_often_as_their_probability_says(options: dict[str, Any]) -> None:
    draws, logits = 4000, torch.tensor([0.0, 1.0, -1.0, 0.5, -2.0, 1.0, 0.2, -0.3])
    params = SamplingParams(**{"temperature": 1.0} | options)
    generator = make_generator(7)
    counts = Counter(
        sample(logits, params, prompt_ids=(0,), output_ids=(), generator=generator).id for _ in range(draws)
    )
    expected = distribution(logits, params, (0,), ()) * draws
    assert set(counts) == set(expected.nonzero().flatten().tolist())
    # A chi-square of d degrees passes d + 2 sqrt(20 d) + 40 once in e^20 seeds (Laurent and Massart 2000, lemma 1).
    d = len(counts) - 1
    bound = d + 2 * math.sqrt(20 * d) + 40
    assert chi_square(counts, expected) < bound
    # And the bound is tight enough to tell a distribution that is off: the one at twice the temperature.
    wrong = SamplingParams(**{"temperature": 1.0} | options | {"temperature": 2 * params.temperature, "min_p": 0.0})
    assert chi_square(counts, distribution(logits, wrong, (0,), ()) * draws) > bound


def test_the_same_seed_gives_the_same_ids_whoever_else_is_running() -> None:
    params = SamplingParams(**EVERYTHING)
    steps = [random_row(50, seed) for seed in range(30)]

    def run(generator: torch.Generator, stranger: torch.Generator | None = None) -> list[int]:
        output: list[int] = []
        for logits in steps:
            if stranger is not None:
                sample(logits, params, prompt_ids=(9,), output_ids=(), generator=stranger)
            output.append(sample(logits, params, prompt_ids=(0,), output_ids=output, generator=generator).id)
        return output

    alone = run(make_generator(5))
    assert alone == run(make_generator(5)) == run(make_generator(5), stranger=make_generator(6))
    assert alone != run(make_generator(6))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert run(make_generator(5)) == alone
    assert torch.equal(torch.get_rng_state(), before)  # the generator of the whole process is not used


def test_without_a_seed_two_requests_differ() -> None:
    assert make_generator(None).initial_seed() != make_generator(None).initial_seed()
    assert make_generator(-(2**63)).initial_seed() == make_generator(-(2**63)).initial_seed()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, EVERYTHING])
def test_a_choice_takes_one_number_from_the_generator(options: dict[str, Any]) -> None:
    ours, one = make_generator(1), make_generator(1)
    params = SamplingParams(**{"temperature": 1.0} | options)
    sample(random_row(50, 0), params, prompt_ids=(0,), output_ids=(), generator=ours)
    torch.rand((), generator=one, dtype=torch.float64)
    assert torch.equal(ours.get_state(), one.get_state())


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.4999, 1), (0.5001, 2), (1 - 2**-53, 2)])
def test_an_id_without_mass_is_never_drawn(monkeypatch: pytest.MonkeyPatch, uniform: float, expected: int) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(uniform, dtype=torch.float64))
    logits = torch.tensor([-math.inf, 0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    assert sampler.draw(logits, make_generator(0)) == expected


@laws
@given(rows)
def test_the_largest_number_still_finds_an_id(logits: Tensor) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 2**-53, dtype=torch.float64))
        assert sampler.draw(logits.double(), make_generator(0)) < len(logits)


def test_greedy_needs_no_generator_and_a_draw_does() -> None:
    logits = torch.tensor([0.0, 1.0])
    assert sample(logits, SamplingParams(), prompt_ids=(0,), output_ids=(), generator=None).id == 1
    with pytest.raises(RunError, match="needs a generator"):
        sample(logits, SamplingParams(temperature=1.0), prompt_ids=(0,), output_ids=(), generator=None)


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    for seed in range(5):
        assert choose(random_row(50, 3), seed=seed, temperature=temperature).id == choose(random_row(50, 3)).id


# --- log-probabilities ---


def test_log_probabilities_are_the_models_own() -> None:
    logits = random_row(50, 1)
    expected = logits.double() - torch.logsumexp(logits.double(), 0)
    result = choose(logits, **EVERYTHING)
    assert result.logprob == pytest.approx(float(expected[result.id]), abs=1e-5)
    assert [id for id, _ in result.top] == expected.argsort(descending=True)[:5].tolist()
    assert [value for _, value in result.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
    assert sampler.log_probabilities(torch.stack((logits, -logits))).exp().sum(-1).tolist() == pytest.approx([1.0, 1.0])


def test_log_probabilities_are_reported_only_when_wanted() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert choose(logits) == Sampled(1, None, ())
    assert choose(logits, logprobs=0).top == ()
    assert choose(logits, logprobs=0).logprob is not None
    assert [id for id, _ in choose(logits, logprobs=1).top] == [1]  # of a tie the lowest
    assert [id for id, _ in choose(logits, logprobs=20).top] == [1, 2, 3, 0]


# --- what is refused, and what is left alone ---


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named(value: float, temperature: float) -> None:
    logits = random_row(50, 0)
    logits[31] = value
    with pytest.raises(RunError, match=f"^the model's logits hold {value} at id 31: "):
        choose(logits, temperature=temperature)


@pytest.mark.parametrize("shape", [(0,), (1, 5), ()])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match=r"the logits of one position, \[vocab\], not \["):
        choose(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"suppress_ids": frozenset({0, 1, 2})},
        {"logit_bias": {0: -math.inf, 1: -math.inf}, "stop_ids": frozenset({2}), "min_tokens": 1},
    ],
)
def test_options_that_leave_no_id_are_refused(options: dict[str, Any], temperature: float) -> None:
    with pytest.raises(PromptError, match="leave no id to choose; allow at least one"):
        choose(torch.zeros(3), temperature=temperature, **options)


@pytest.mark.parametrize(
    ("options", "output", "message"),
    [
        ({"logit_bias": {3: 1.0}}, (), "logit_bias: id 3 is not in the vocabulary, whose ids go from 0 to 2"),
        ({"suppress_ids": frozenset({9})}, (), "suppress_ids: id 9 is not"),
        ({"stop_ids": frozenset({9}), "min_tokens": 1}, (), "stop_ids: id 9 is not"),
        ({"repetition_penalty": 2.0}, (9,), "prompt and output: id 9 is not"),
        ({"presence_penalty": 1.0}, (-1,), "output: id -1 is not"),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused(
    options: dict[str, Any], output: tuple[int, ...], message: str
) -> None:
    with pytest.raises(PromptError, match=f"^{message}"):
        choose(torch.zeros(3), output=output, **options)


def test_a_penalty_that_overflows_is_named() -> None:
    with pytest.raises(RunError, match="push the logit of id 0 beyond float32"):
        choose(torch.tensor([3e38, 0.0]), repetition_penalty=0.01)


def test_the_callers_logits_are_never_written_to() -> None:
    logits = random_row(50, 2)
    before = logits.clone()
    one_by_one = [{"temperature": 0.7} | {name: value} for name, value in EVERYTHING.items()]
    for options in (EVERYTHING, EVERYTHING | {"temperature": 0.0}, *one_by_one):
        choose(logits, output=(1, 2, 2), **options)
    assert torch.equal(logits, before)


def test_nothing_is_copied_when_nothing_changes() -> None:
    logits, params = random_row(50, 2), SamplingParams(stop_ids=frozenset({1}))
    assert sampler.apply_penalties(logits, params, prompt_ids=(0,), output_ids=(1,)) is logits
    assert sampler.apply_bias(logits, params) is logits
    assert sampler.suppress(logits, params, num_output=0) is logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_are_taken(dtype: torch.dtype) -> None:
    logits = random_row(50, 4).to(dtype).requires_grad_()
    for options in (EVERYTHING, {}):
        assert choose(logits, **options) == choose(logits.detach().float(), **options)


def test_a_whole_vocabulary_in_one_row() -> None:
    """Size alone changes nothing: 262144 ids, and the nucleus is still the one a plain sort finds."""
    logits = random_row(262144, 0)
    probability = np.sort(logits.double().softmax(0).numpy())[::-1]
    assert len(keep_top_p(logits.double(), 0.95)) == int(np.searchsorted(np.cumsum(probability), 0.95)) + 1
    assert sorted(keep_top_k(logits, 64).tolist()) == sorted(logits.topk(64).indices.tolist())
    assert choose(logits, temperature=1.0, top_k=64, top_p=0.95).id in logits.topk(64).indices.tolist()


@laws
@given(st.integers(128, 5000), st.integers(1, 12), st.integers(0, 1000), st.sampled_from((1.0, 4.0, 100.0)))
def test_a_wide_row_is_searched_in_groups_to_the_same_end(extra: int, k: int, seed: int, fineness: float) -> None:
    """Coarse values have ties at the edge; where much is removed, the k-th largest is minus infinity."""
    logits = (random_row(128 * k + extra, seed) * fineness).round() / fineness
    logits[: seed * len(logits) // 1000] = -math.inf
    for row in (logits, logits.double()):
        kth = row.sort(descending=True).values[k - 1]
        assert torch.equal(keep_top_k(row, k), (row >= kth).nonzero().squeeze(1))


@pytest.mark.parametrize("width", [0.5, 3.0, 8.0])
def test_the_nucleus_is_found_among_the_most_probable_or_in_the_whole_row(width: float) -> None:
    for seed in range(4):
        logits = random_row(200_000, seed).double() * width
        for p in (0.0, 0.3, 0.95, 0.9999, 1.0):
            probability = logits.softmax(0)
            assert torch.equal(keep_top_p(logits, p), sampler._nucleus(probability, p))


@laws
@given(rows, st.integers(0, 3), st.data())
def test_the_greedy_choice_is_the_largest_that_is_not_removed(logits: Tensor, made: int, data: Any) -> None:
    ids = st.frozensets(st.integers(0, len(logits) - 1), max_size=max(0, len(logits) // 2 - 1))
    suppressed, stops, least = data.draw(ids), data.draw(ids), data.draw(st.integers(0, 3))
    found = choose(logits, output=(0,) * made, suppress_ids=suppressed, stop_ids=stops, min_tokens=least).id
    gone = suppressed | (stops if made < least else frozenset())
    assert found == max((id for id in range(len(logits)) if id not in gone), key=lambda id: (float(logits[id]), -id))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaks_of_many_rows(dtype: torch.dtype) -> None:
    """The lowest of equals, None where a value is not finite, in every row by itself."""
    logits = torch.stack([random_row(300, seed) for seed in range(6)]).round().to(dtype)
    for row, (at, value) in enumerate(((7, math.nan), (299, math.inf), (0, -math.inf))):
        logits[row, at] = value
    expected = [None] * 3 + [int((row == row.max()).nonzero()[0]) for row in logits[3:]]
    assert sampler.peaks(logits) == expected
