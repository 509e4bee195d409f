"""Values that models write without delimiters: where they end. Every look ahead is bounded."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from pocketgem.text.markers import STAND_INS, Mark

QUOTE = Mark.DELIMITER.value
KEY = rf"[^:={{}}\[\](),\"'{STAND_INS}]{{1,256}}"

_SCALAR = re.compile(
    r"(?:[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|true|false|null|True|False|None|none|nil|NaN|-?Infinity)"
    r"(?=\s*([,}\])]|\Z))",
    re.ASCII,
)
_STOP = re.compile(rf"[,{{}}\[\](){STAND_INS}]")
_STAND_IN = re.compile(f"[{STAND_INS}]")
# After a comma: a key with its separator and what follows it; anything that may begin a member; the end of the list.
_NEXT_KEY = re.compile(
    rf"\s{{0,64}}(?:([\w@$.\-]{{1,64}})|[\"'][^\"'\n]{{1,64}}[\"'])\s{{0,64}}[:=]\s{{0,64}}({QUOTE}?)"
)
_NEXT_MEMBER = re.compile(rf"\s{{0,64}}(?:{QUOTE}|{KEY}[:=]|[\"'])")
_NEXT_END = re.compile(r"\s{0,64}(?:[}\])]|\Z)")


@dataclass(frozen=True)
class Place:
    """Where a value stands.

    in_list  a comma ends it, whatever follows
    parens   round brackets are brackets here
    known    the keys that may follow; empty where any may
    """

    in_list: bool = False
    parens: bool = False
    known: Collection[str] = ()


def scalar_end(text: str, at: int, place: Place) -> int | None:
    """Where a number, true, false or null ends that stands at ``at`` alone; None if something else does."""
    found = _SCALAR.match(text, at)
    if not found:
        return None
    if found[1] == "," and not place.in_list and not _is_followed(text, found.end(1)):
        return None  # the beginning of a text, as in "2024, in March"
    return found.end()


def text_end(text: str, at: int, place: Place) -> int | None:
    """Where a text ends: at a bracket it did not open, a comma that ends it, or any token."""
    openers, closers = ("{[(", "}])") if place.parens else ("{[", "}]")
    depth = 0
    for stop in _STOP.finditer(text, at):
        char = stop[0]
        if depth == 0 and (char in closers or (char == "," and _splits(text, stop.end(), place))):
            return stop.start()
        if is_stand_in(char):
            return stop.start()
        depth += (char in openers) - (char in closers)
    return None


def is_stand_in(char: str) -> bool:
    return _STAND_IN.match(char) is not None


def _is_followed(text: str, at: int) -> bool:
    return bool(_NEXT_MEMBER.match(text, at) or _NEXT_END.match(text, at))


def _splits(text: str, at: int, place: Place) -> bool:
    """Whether a text ends at the comma before ``at``, or goes on behind it, as in "Paris, France"."""
    if place.in_list or _NEXT_END.match(text, at):
        return True
    key = _NEXT_KEY.match(text, at)
    return key is not None and (not place.known or key[1] in place.known or bool(key[2]))
