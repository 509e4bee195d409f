"""Sampling options: what is refused and how it is said; a checkpoint's own defaults; the state of a running request."""

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

import pocketgem.engine.request as request_module
from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence
from pocketgem.errors import CheckpointError, PromptError

NUMBERS = {  # option -> its smallest and largest value
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
INTEGERS = {
    "top_k": (1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (0, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
OPTIONAL = ("top_k", "seed", "max_tokens", "logprobs", "prompt_logprobs")
ID_RANGE = "an integer from 0 to 2147483647"
BIAS_RANGE = "a number from -100 to 100 or -inf to forbid the id"
GEMMA = {
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 106, 50],
    "suppress_tokens": [258883, 258882],
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
    "transformers_version": "5.5.0",
}


def options(**values: Any) -> SamplingParams:
    """SamplingParams as the world outside calls it: with values of any type."""
    return SamplingParams(**values)


@pytest.mark.parametrize(("name", "bounds"), [*NUMBERS.items(), *INTEGERS.items()])
def test_both_ends_of_a_range_are_allowed(name: str, bounds: tuple[float, float]) -> None:
    for value in bounds:
        assert getattr(options(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "bounds"), NUMBERS.items())
def test_a_number_outside_its_range_is_refused(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    for value in (low - 0.001, high + 0.001, math.nan, math.inf, -math.inf, True, "1", None, 10**400):
        with pytest.raises(PromptError, match=f"^{name} must be a number from {low} to {high}, not ") as error:
            options(**{name: value})
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(("name", "bounds"), INTEGERS.items())
def test_an_integer_outside_its_range_is_refused(name: str, bounds: tuple[int, int]) -> None:
    low, high = bounds
    for value in (low - 1, high + 1, math.nan, 1.0, True, "1", [1], 10**5000):
        with pytest.raises(PromptError, match=f"^{name} must be an integer from {low} to {high}, not ") as error:
            options(**{name: value})
        assert len(str(error.value)) < 200


def test_none_is_allowed_only_where_it_means_off() -> None:
    assert all(getattr(options(**{name: None}), name) is None for name in OPTIONAL)
    with pytest.raises(PromptError, match=r"^min_tokens must be an integer from 0 to 2147483647, not None$"):
        options(min_tokens=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": "word"}, "stop must be a tuple of at most 64 strings, not 'word'"),
        ({"stop": ["a"]}, "stop must be a tuple of at most 64 strings, not ['a']"),
        ({"stop": ("a",) * 65}, "stop must be a tuple of at most 64 strings, not ('a', 'a', 'a', 'a', 'a', 'a', ...)"),
        ({"stop": ("a", "")}, "every string in stop must be a string of 1 to 1024 characters, not ''"),
        ({"stop": (7,)}, "every string in stop must be a string of 1 to 1024 characters, not 7"),
        ({"stop_ids": {1}}, "stop_ids must be a frozenset of ids, not {1}"),
        ({"stop_ids": frozenset({-1})}, f"every id in stop_ids must be {ID_RANGE}, not -1"),
        ({"suppress_ids": frozenset({2**31})}, f"every id in suppress_ids must be {ID_RANGE}, not 2147483648"),
        ({"suppress_ids": frozenset({True})}, f"every id in suppress_ids must be {ID_RANGE}, not True"),
        ({"logit_bias": [1]}, "logit_bias must be a mapping of at most 1024 ids to numbers, not [1]"),
        ({"logit_bias": {"5": 1.0}}, f"every id in logit_bias must be {ID_RANGE}, not '5'"),
        ({"logit_bias": {5: math.nan}}, f"logit_bias[5] must be {BIAS_RANGE}, not nan"),
        ({"logit_bias": {5: math.inf}}, f"logit_bias[5] must be {BIAS_RANGE}, not inf"),
        ({"logit_bias": {5: False}}, f"logit_bias[5] must be {BIAS_RANGE}, not False"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be at most max_tokens (8), not 9"),
    ],
)
def test_a_bad_collection_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as error:
        options(**values)
    assert str(error.value) == message


def test_a_huge_value_makes_a_short_message() -> None:
    for values in ({"stop": "x" * 10**6}, {"stop": ("x" * 10**6,)}, {"stop_ids": [10**5000]}):
        with pytest.raises(PromptError) as error:
            options(**values)
        assert len(str(error.value)) < 200
    with pytest.raises(PromptError, match=r"^logit_bias must be a mapping of at most 1024 ids"):
        SamplingParams(logit_bias=dict.fromkeys(range(1025), 0.0))


def test_options_are_frozen_and_hashable() -> None:
    params = SamplingParams(logit_bias={3: -math.inf, 4: 100})
    assert {params: "found"}[dataclasses.replace(params)] == "found"
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_p = 0.5  # type: ignore[misc]  # what is refused is the point


def test_a_mapping_changed_after_the_check_changes_nothing() -> None:
    bias: dict[int, float] = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = math.nan
    assert params.logit_bias == {3: 1.0}


def test_defaults_of_a_checkpoint() -> None:
    assert SamplingParams.from_generation_config(GEMMA) == SamplingParams(
        temperature=1.0,
        top_k=64,
        top_p=0.95,
        stop_ids=frozenset({1, 50, 106}),
        suppress_ids=frozenset({258882, 258883}),
    )


def test_without_do_sample_a_checkpoint_is_greedy_and_keeps_the_rest() -> None:
    for unset in ({"do_sample": False}, {"do_sample": None}):
        params = SamplingParams.from_generation_config(GEMMA | unset)
        assert (params.temperature, params.top_k, params.suppress_ids) == (0.0, 64, frozenset({258882, 258883}))
    assert SamplingParams.from_generation_config({}) == SamplingParams()


def test_absent_null_and_zero_in_a_checkpoint() -> None:
    assert SamplingParams.from_generation_config({"do_sample": True}) == SamplingParams(temperature=1.0)
    params = SamplingParams.from_generation_config({"do_sample": True, "top_k": 0, "top_p": None, "eos_token_id": 1})
    assert params == SamplingParams(temperature=1.0, stop_ids=frozenset({1}))


def test_overrides_win() -> None:
    params = SamplingParams.from_generation_config(GEMMA, temperature=0.5, top_k=None, stop_ids=frozenset({7}), seed=3)
    expected = {"temperature": 0.5, "top_k": None, "top_p": 0.95, "stop_ids": frozenset({7}), "seed": 3}
    assert {name: getattr(params, name) for name in expected} == expected
    assert SamplingParams.from_generation_config({"do_sample": False}, temperature=0.5).temperature == 0.5


def test_bad_overrides_are_the_callers_fault() -> None:
    with pytest.raises(PromptError, match=r"^unknown sampling option 'temprature'; there are: temperature, top_k, "):
        SamplingParams.from_generation_config(GEMMA, temprature=0.5)
    with pytest.raises(PromptError, match=r"^top_p must be a number from 0 to 1, not 2$"):
        SamplingParams.from_generation_config(GEMMA, top_p=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("do_sample", 1, "must be true or false, not 1"),
        ("temperature", "hot", "temperature must be a number from 0 to 100, not 'hot'"),
        ("top_k", 6.4, "top_k must be an integer from 1 to 2147483647, not 6.4"),
        ("top_k", False, "top_k must be an integer from 1 to 2147483647, not False"),
        ("top_p", 7, "top_p must be a number from 0 to 1, not 7"),
        ("min_p", [0.1], "min_p must be a number from 0 to 1, not [0.1]"),
        ("repetition_penalty", 0, "repetition_penalty must be a number from 0.01 to 100, not 0"),
        ("eos_token_id", "1", "every id in stop_ids must be an integer from 0 to 2147483647, not '1'"),
        ("eos_token_id", [1, True + 0.5], "every id in stop_ids must be an integer from 0 to 2147483647, not 1.5"),
        ("eos_token_id", {"id": 1}, "stop_ids must be a frozenset of ids, not {'id': 1}"),
        ("suppress_tokens", [[1]], "suppress_ids must be a frozenset of ids, not [[1]]"),
        ("suppress_tokens", [-100], "every id in suppress_ids must be an integer from 0 to 2147483647, not -100"),
    ],
)
def test_a_bad_value_in_a_checkpoint_is_the_files_fault(key: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        SamplingParams.from_generation_config(GEMMA | {key: value}, temperature=0.5)
    assert str(error.value) == f"generation_config.json, key {key!r}: {message}"


def test_a_checkpoint_file_that_is_no_object() -> None:
    with pytest.raises(CheckpointError, match=r"^generation_config.json must hold a JSON object, not \[1\]$"):
        SamplingParams.from_generation_config([1])  # type: ignore[arg-type]  # what is refused is the point


def test_a_request_needs_a_prompt_of_ids() -> None:
    with pytest.raises(PromptError, match=r"^request 'r1': the prompt is empty; give at least one id$"):
        Request("r1", (), SamplingParams())
    for bad in (-1, 2**31, True, 1.0):
        with pytest.raises(PromptError, match=r"^every id in prompt_ids must be an integer from 0 to 2147483647, not "):
            Request("r1", (2, bad), SamplingParams())  # type: ignore[arg-type]  # what is refused is the point


def test_a_sequence_joins_prompt_and_output() -> None:
    sequence = Sequence(Request("r1", (2, 5, 9), SamplingParams()))
    assert (sequence.ids, sequence.num_ids, sequence.num_computed, sequence.finish) == ((2, 5, 9), 3, 0, None)
    sequence.output_ids += [4, 4]
    assert (sequence.ids, sequence.num_prompt, sequence.num_ids) == ((2, 5, 9, 4, 4), 3, 5)
    assert Sequence(sequence.request).output_ids == []
    assert Sequence(sequence.request) != Sequence(sequence.request)


def test_finish_reasons_are_their_own_names_on_the_wire() -> None:
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "abort"]


def test_requests_know_no_tensor() -> None:
    tree = ast.parse(Path(str(request_module.__file__)).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pocketgem.errors" in modules
    assert not {str(name).split(".")[0] for name in modules} & {"torch", "numpy"}
