"""Typed, bounded reads from a request's JSON. What is wrong is refused with the path of the field, never repaired.

The one exception: a lone surrogate, which JavaScript leaves where it cuts an emoji in two, becomes U+FFFD. It is not
text, and no answer could carry it back.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NoReturn

from pocketgem.errors import InputError

MAX_NAME = 256  # characters of a model's, a role's or an id's name
MAX_TEXT = 64 << 20  # characters of one text; the body has its own, lower limit
MAX_ITEMS = 4096  # entries of a list that has no tighter limit of its own
MAX_UNREAD = 20  # unknown fields that an answer names
MAX_DEPTH = 64  # levels of a schema or of arguments: templates and grammars walk them recursively
MAX_INT_BITS = 64  # of a number inside a schema; Python would take days to write out a longer one it was sent

_SURROGATE = re.compile("[\ud800-\udfff]")  # whole pairs are one character by now
_REQUIRED: Any = object()


class FieldError(InputError):
    """A field of a request is missing, of the wrong type, out of range or not supported.

    ``field`` is its path, such as ``messages[2].content``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True)
class Fields:
    """An object of the request, read with checks. null is the same as absent. Every method raises FieldError."""

    data: Mapping[str, object]
    path: str = ""

    @classmethod
    def of(cls, value: object, path: str = "") -> Fields:
        """``value`` if it is an object."""
        if not isinstance(value, Mapping):
            raise FieldError(path or "body", f"must be a JSON object, not {shown(value)}")
        return cls(value, path)

    def at(self, key: str) -> str:
        """The path of one of its fields."""
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise FieldError(self.at(key), problem)

    def refuse_any(self, reasons: Mapping[str, str]) -> None:
        """Refuses the first of these fields that was given, for its reason."""
        for name, reason in reasons.items():
            if self.has(name):
                self.refuse(name, reason)

    def unread(self, known: Collection[str]) -> tuple[str, ...]:
        """Fields that were given and are none of ``known``, for the answer to name; at most MAX_UNREAD of them."""
        names = (name for name in self.data if name not in known and self.has(name))
        return tuple(_SURROGATE.sub("\ufffd", self.at(name[:60])) for name in islice(names, MAX_UNREAD))

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            self.refuse(key, "is missing")
        return default

    def text(self, key: str, default: str = _REQUIRED, *, most: int = MAX_TEXT) -> str:
        return text_of(self.raw(key, default), self.at(key), most)

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            self.refuse(key, f"must be true or false, not {shown(value)}")
        return value

    def whole(self, key: str, default: int = _REQUIRED, *, low: int, high: int) -> int:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"must be an integer from {low} to {high}, not {shown(value)}")
        return value

    def one_of(self, key: str, names: Collection[str], default: str = _REQUIRED) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str) or value not in names:
            self.refuse(key, f"must be one of {', '.join(names)}, not {shown(value)}")
        return value

    def section(self, key: str) -> Fields:
        """A nested object, empty when absent."""
        return Fields.of(self.raw(key, {}), self.at(key))

    def items(self, key: str, *, most: int = MAX_ITEMS) -> list[tuple[str, object]]:
        """A list's entries with their paths; none when absent."""
        value = self.raw(key, [])
        if not isinstance(value, list):
            self.refuse(key, f"must be a list, not {shown(value)}")
        if len(value) > most:
            self.refuse(key, f"has {len(value)} entries; at most {most} are taken")
        return [(f"{self.at(key)}[{index}]", item) for index, item in enumerate(value)]

    def sections(self, key: str, *, most: int = MAX_ITEMS) -> list[Fields]:
        """A list of objects; none when absent."""
        return [Fields.of(item, path) for path, item in self.items(key, most=most)]

    def json(self, key: str) -> dict[str, object]:
        """A nested object as plain values, at most MAX_DEPTH levels deep, every number finite. Empty when absent."""
        return {name: plain(item, path) for name, item, path in _members(self.section(key))}


def moved(fields: Fields, path: str) -> Fields:
    """The same object under another path, for errors."""
    return replace(fields, path=path)


def text_of(value: object, path: str, most: int = MAX_TEXT) -> str:
    """``value`` if it is a text of at most ``most`` characters."""
    if not isinstance(value, str):
        raise FieldError(path, f"must be a text, not {shown(value)}")
    if len(value) > most:
        raise FieldError(path, f"has {len(value)} characters; at most {most} are taken")
    return _SURROGATE.sub("\ufffd", value)


def plain(value: object, path: str, depth: int = 1) -> object:
    """A copy of a JSON value that anything may walk, write or compare: shallow, finite and valid text."""
    if isinstance(value, str):
        return text_of(value, path)
    if isinstance(value, Mapping | list):
        if depth >= MAX_DEPTH:
            raise FieldError(path, f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, list):
            return [plain(item, path, depth + 1) for item in value]
        return {text_of(name, path): plain(item, path, depth + 1) for name, item in value.items()}
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise FieldError(path, f"holds {shown(value)}; at most {MAX_INT_BITS} bits are taken")
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(path, f"holds {value}, which is not a JSON number")
    return value


def shown(value: object) -> str:
    """A short picture of a value: an error must not carry a megabyte back, nor take long to write."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        return f"an integer of {value.bit_length()} bits"
    return _SURROGATE.sub("\ufffd", reprlib.repr(value))


def _members(fields: Fields) -> list[tuple[str, object, str]]:
    return [(text_of(name, fields.path), item, fields.path) for name, item in fields.data.items()]
