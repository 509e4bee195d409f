"""Numbers, true, false and null as models write them, and JSON within bounds of depth, length and time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

MAX_DEPTH = 100  # lists and objects inside each other
MAX_DIGITS = 1000  # of one number

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_LENIENT = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None}
_PYTHON: dict[str, object] = {"True": True, "False": False, "None": None, "none": None, "nil": None}
_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
# An escaped character beyond U+FFFF in two halves, or half a one, or any other escape.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)|\\.", re.DOTALL)


class NotJson(ValueError):
    """The text is none, or none within the bounds."""


def scalar(text: str) -> object:
    """A number, true, false or null as JSON spells it. Raises NotJson."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        raise NotJson(text[:40])
    return _number(text)


def lenient_number(text: str) -> object:
    """A number in spellings that JSON does not allow: ``+5``, ``.5``, ``1_000``, ``007``. Raises NotJson."""
    if len(text) > MAX_DIGITS or not _LENIENT.fullmatch(text):
        raise NotJson(text[:40])
    return _number(text.replace("_", ""))


def python_word(text: str) -> object:
    """True, False or None as Python and its kin spell them. Raises NotJson."""
    if text not in _PYTHON:
        raise NotJson(text[:40])
    return _PYTHON[text]


def parsed(text: str) -> object:
    """A whole JSON text. Raises NotJson, also for one that is nested too deep or holds a number JSON cannot carry."""
    depth = deepest = 0
    for match in _NESTING.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise NotJson("nested too deep")
    try:
        return json.loads(_mended(text), strict=False, parse_constant=_refuse, parse_float=_number, parse_int=_number)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def unescaped(quoted: str) -> str:
    """A JSON string, quotes included, as the text it stands for. Raises NotJson for a bad escape."""
    try:
        return str(json.loads(_mended(quoted), strict=False))
    except ValueError as error:
        raise NotJson(str(error)) from error


def _mended(text: str) -> str:
    """Half characters, which ``\\ud800`` writes and UTF-8 cannot carry, become U+FFFD."""
    return _ESCAPE.sub(lambda found: "\ufffd" if found[1] else found[0], text)


def _number(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise NotJson("a number of too many digits")
    try:
        return int(text)
    except ValueError:
        value = float(text)
    if not math.isfinite(value):
        raise NotJson("a number beyond JSON's")
    return value


def _refuse(name: str) -> object:
    raise NotJson(name)


def attempt(read: Callable[[str], object], text: str) -> tuple[bool, object]:
    """Whether ``read`` takes the text, and what it makes of it."""
    try:
        return True, read(text)
    except NotJson:
        return False, None
