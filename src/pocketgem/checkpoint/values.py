"""Python values as GGUF stores them under its keys: which type, and which bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from pocketgem.errors import UnsupportedError

FLOAT32_MAX = 3.4e38
_CODES = {  # GGUF's value types: number, and struct's letter
    "UINT32": (4, "I"),
    "INT32": (5, "i"),
    "FLOAT32": (6, "f"),
    "BOOL": (7, "?"),
    "STRING": (8, ""),
    "ARRAY": (9, ""),
    "UINT64": (10, "Q"),
    "INT64": (11, "q"),
    "FLOAT64": (12, "d"),
}


def value_bytes(key: str, value: object) -> bytes:
    """A Python value as GGUF stores it, its type before it; ``value_type`` says which type.

    Raises UnsupportedError for one that GGUF has no type for.
    """
    kind, element = value_type(key, value)
    if element is None:
        return struct.pack("<I", _CODES[kind][0]) + _encoded(kind, [value])
    many = value if isinstance(value, list | tuple) else [value]
    return struct.pack("<IIQ", _CODES[kind][0], _CODES[element][0], len(many)) + _encoded(element, many)


def text_bytes(text: str) -> bytes:
    """A length and UTF-8."""
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _encoded(kind: str, values: Sequence[object]) -> bytes:
    if kind == "STRING":
        return b"".join(text_bytes(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{_CODES[kind][1]}", *values)


def value_type(key: str, value: object) -> tuple[str, str | None]:
    """The GGUF value type of a Python value, and the element type if it is a list.

    A float becomes float32 (float64 only if it overflows); an int the first of uint32, int32, uint64, int64 that holds
    it, in a list (of at least one entry, all of one kind) the first of int32, int64, uint64.
    """
    if isinstance(value, list | tuple) and value:
        return "ARRAY", _kind(key, value, ("INT32", "INT64", "UINT64"))
    return _kind(key, [value], ("UINT32", "INT32", "UINT64", "INT64")), None


def _kind(key: str, values: Sequence[object], integers: Sequence[str]) -> str:
    floats = [value for value in values if isinstance(value, float)]
    if len(floats) == len(values):
        return "FLOAT64" if any(FLOAT32_MAX < abs(value) < math.inf for value in floats) else "FLOAT32"
    for kind, name in ((bool, "BOOL"), (str, "STRING")):
        if all(type(value) is kind for value in values):
            return name
    whole = [value for value in values if type(value) is int]
    for name in integers if len(whole) == len(values) else ():
        bits, low = int(name[-2:]), -(1 << int(name[-2:]) - 1) if name[0] == "I" else 0
        if low <= min(whole) and max(whole) < low + (1 << bits):
            return name
    raise UnsupportedError(f"metadata key {key}: GGUF has no type for {str(values)[:60]}")
