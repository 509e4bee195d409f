"""Sampling options as completion requests spell them -> options of SamplingParams by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from pocketgem.engine.request import MAX_BIASES, MAX_ID, MAX_STOP_LENGTH, MAX_STOPS
from pocketgem.serve.fields import FieldError, Fields, shown, text_of

# name in the request, the same in SamplingParams -> lowest and highest
_NUMBERS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INTEGERS = {"seed": (-(2**63), 2**63 - 1), "min_tokens": (0, MAX_ID)}


def sampling_of(fields: Fields) -> dict[str, object]:
    """The options that were given. Raises FieldError."""
    found: dict[str, object] = {}
    for name, (low, high) in _NUMBERS.items():
        if fields.has(name):
            found[name] = number(fields, name, low, high)
    for name, limits in _INTEGERS.items():
        if fields.has(name):
            found[name] = fields.whole(name, low=limits[0], high=limits[1])
    readers: dict[str, Callable[[Fields], object]] = {"top_k": _top_k, "stop": _stop, "logit_bias": _biases}
    return found | {name: read(fields) for name, read in readers.items() if fields.has(name)}


def number(fields: Fields, name: str, low: float, high: float) -> float:
    value = fields.raw(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        fields.refuse(name, f"must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def _top_k(fields: Fields) -> int | None:
    """0 and -1 turn it off, as other servers have it."""
    return None if (k := fields.whole("top_k", low=-1, high=MAX_ID)) < 1 else k


def _stop(fields: Fields) -> tuple[str, ...]:
    """A text or a list of texts. Empty ones, which would end every answer, are no stops."""
    raw = fields.raw("stop")
    items = [("stop", raw)] if isinstance(raw, str) else fields.items("stop", most=MAX_STOPS)
    return tuple(text for path, item in items if (text := text_of(item, path, MAX_STOP_LENGTH)))


def _biases(fields: Fields) -> dict[int, float]:
    """Ids as the keys of a JSON object; -100 forbids, as OpenAI has it."""
    section = fields.section("logit_bias")
    if len(section.data) > MAX_BIASES:
        fields.refuse("logit_bias", f"has {len(section.data)} entries; at most {MAX_BIASES} are taken")
    found = {}
    for key in section.data:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_ID):
            raise FieldError(section.path, f"has the key {shown(key)}, which is no token id")
        bias = number(section, key, -100, 100)
        found[int(key)] = -math.inf if bias == -100 else bias
    return found
