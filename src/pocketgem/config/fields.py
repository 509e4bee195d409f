"""Typed, bounded reads from a dictionary somebody else wrote. Foreign keys are ignored; the ones read are checked."""

from __future__ import annotations

import math

# The readers below are called int, float, bool and str, so inside their class the types need other names.
from builtins import bool as _bool
from builtins import float as _float
from builtins import int as _int
from builtins import str as _str
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketgem.errors import FormatError

MAX_SIZE = 1 << 24  # no released width, vocabulary or context is within a factor of eight of this
MAX_LAYERS = 1024
MAX_TEXT = 200  # characters: names of types and functions, never prose
_REQUIRED: Any = object()


@dataclass(frozen=True)
class Fields:
    """``data`` read with checks; ``where`` names the file or section in messages. Every method raises FormatError."""

    data: Mapping[_str, object]
    where: _str
    prefix: _str = ""

    def has(self, key: _str) -> _bool:
        return self.data.get(self.prefix + key) is not None

    def raw(self, key: _str, default: Any = _REQUIRED) -> Any:
        value = self.data.get(self.prefix + key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise FormatError(f"{self.where}: {self.prefix}{key} is missing")
        return default

    def int(self, key: _str, default: Any = _REQUIRED, *, low: _int = 1, high: _int = MAX_SIZE) -> _int:
        return self._bounded_int(key, self.raw(key, default), low, high)

    def ints(self, key: _str, length: _int, default: Any = _REQUIRED, *, low: _int = 1) -> tuple[_int, ...]:
        """A list of ``length`` ints, or one int that stands for all of them."""
        return tuple(self._bounded_int(key, item, low, MAX_SIZE) for item in self._items(key, length, default))

    def float(self, key: _str, default: Any = _REQUIRED, *, low: _float = 1e-12, high: _float = 1e12) -> _float:
        return self._bounded_float(key, self.raw(key, default), low, high)

    def floats(self, key: _str, length: _int, default: Any = _REQUIRED, *, low: _float = -1e12) -> tuple[_float, ...]:
        """A list of ``length`` numbers, or one that stands for all of them. Minus infinity only where ``low`` is."""
        return tuple(self._bounded_float(key, item, low, 1e12) for item in self._items(key, length, default))

    def bool(self, key: _str, default: Any = _REQUIRED) -> _bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self.where}: {self.prefix}{key} is {_show(value)}, expected true or false")
        return value

    def str(self, key: _str, default: Any = _REQUIRED) -> _str:
        value = self.raw(key, default)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise FormatError(f"{self.where}: {self.prefix}{key} is {_show(value)}, expected a short text")
        return value

    def section(self, key: _str) -> Fields:
        """A nested dictionary, empty when absent."""
        value = self.raw(key, {})
        if not isinstance(value, Mapping):
            raise FormatError(f"{self.where}: {self.prefix}{key} is {_show(value)}, expected an object")
        return Fields(value, f"{self.where}: {key}")

    def _items(self, key: _str, length: _int, default: Any) -> list[Any] | tuple[Any, ...]:
        value = self.raw(key, default)
        items = value if isinstance(value, list | tuple) else [value] * length
        if len(items) != length:
            raise FormatError(f"{self.where}: {self.prefix}{key} has {len(items)} entries, expected {length}")
        return items

    def _bounded_int(self, key: _str, value: object, low: _int, high: _int) -> _int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FormatError(f"{self.where}: {self.prefix}{key} is {_show(value)}, expected {low} to {high}")
        return value

    def _bounded_float(self, key: _str, value: object, low: _float, high: _float) -> _float:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not low <= number <= high:  # also refuses NaN
            raise FormatError(f"{self.where}: {self.prefix}{key} is {_show(value)}, expected {low:g} to {high:g}")
        return float(number)


def _show(value: object) -> str:
    """A short picture of a value: a message must not carry a megabyte of somebody's file, nor take long to write."""
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to write integers of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
