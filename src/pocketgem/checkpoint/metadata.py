"""Typed, bounded reads of GGUF metadata. A file may store any type under any key, so a reader says what it expects.

A whole number is accepted from any of the eight integer types: writers differ, and the value is what counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pocketgem.errors import FormatError

T = TypeVar("T", str, int, float, bool)


def metadata_int(
    metadata: Mapping[str, object], key: str, default: int | None = None, *, low: int = 0, high: int = 1 << 31,
    where: str = "GGUF metadata",
) -> int:  # fmt: skip
    """An int from ``low`` to ``high``. Raises FormatError for any other value, or if missing without a default."""
    value = _get(metadata, key, default, where)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(where, key, value, f"a whole number from {low} to {high}")
    return value


def metadata_float(
    metadata: Mapping[str, object], key: str, default: float | None = None, *, low: float = -1e38, high: float = 1e38,
    where: str = "GGUF metadata",
) -> float:  # fmt: skip
    """A finite float from ``low`` to ``high``; an int counts. Raises FormatError as ``metadata_int``."""
    value = _get(metadata, key, default, where)
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:  # also refuses NaN
        raise _wrong(where, key, value, f"a number from {low:g} to {high:g}")
    return number


def metadata_str(
    metadata: Mapping[str, object], key: str, default: str | None = None, *, where: str = "GGUF metadata"
) -> str:
    """A text. Raises FormatError as ``metadata_int``."""
    value = _get(metadata, key, default, where)
    if not isinstance(value, str):
        raise _wrong(where, key, value, "text")
    return value


def metadata_bool(
    metadata: Mapping[str, object], key: str, default: bool | None = None, *, where: str = "GGUF metadata"
) -> bool:
    """A bool. Raises FormatError as ``metadata_int``."""
    value = _get(metadata, key, default, where)
    if not isinstance(value, bool):
        raise _wrong(where, key, value, "true or false")
    return value


def metadata_list(
    metadata: Mapping[str, object], key: str, element: type[T], default: Sequence[T] | None = None, *,
    length: int | None = None, where: str = "GGUF metadata",
) -> list[T]:  # fmt: skip
    """A list whose entries are all ``element`` (bool is not int), ``length`` of them if given. Raises FormatError."""
    value = _get(metadata, key, default, where)
    if not isinstance(value, list | tuple) or any(type(entry) is not element for entry in value):
        raise _wrong(where, key, value, f"a list of {element.__name__}")
    if length is not None and len(value) != length:
        raise FormatError(f"{where}: {key} has {len(value)} entries, expected {length}")
    return list(value)


def _get(metadata: Mapping[str, object], key: str, default: object, where: str) -> object:
    value = metadata.get(key, default)
    if value is None:
        raise FormatError(f"{where}: the key {key} is missing")
    return value


def _wrong(where: str, key: str, value: object, expected: str) -> FormatError:
    return FormatError(f"{where}: {key} is {show(value)}, expected {expected}")


def show(value: object) -> str:
    """A short picture of something from a file, safe to print: control characters are escaped by ``repr``."""
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"a list of {len(value)}"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 70 else f"{text[:67]}..."
