"""Regular expressions by strangers, as terms of a grammar. The engine behind is one of derivatives: linear, no stack.

A pattern means what it means to JSON Schema and Python: ``^`` and ``$`` at its ends, or at those of its alternatives,
are taken here; grammars have no place for them elsewhere. ``\\d`` is 0 to 9.
"""

from __future__ import annotations

import re

from llguidance import regex_to_lark

from pocketgem.errors import PromptError

MAX_PATTERN = 2048  # characters
MAX_EXPANDED = 20_000  # characters, counted repetitions written out
_ANYTHING = "(?s:.*)"
_ITEM = re.compile(
    r"(?P<atom>\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|\{(?P<least>\d{1,9})(?:,(?P<most>\d{0,9}))?\}|.",
    re.DOTALL,
)


def check_pattern(pattern: object, where: str) -> None:
    """Raise PromptError unless ``pattern`` is text of bounded size. Whether it is an expression is seen later."""
    if not isinstance(pattern, str):
        raise PromptError(f"{where} must be an expression as text, not a {type(pattern).__name__}")
    if len(pattern) > MAX_PATTERN:
        raise PromptError(f"{where} is {len(pattern)} characters long; the limit is {MAX_PATTERN}")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise PromptError(f"{where} ends in a backslash that escapes nothing")
    if _expanded(pattern) > MAX_EXPANDED:
        raise PromptError(f"{where} repeats to more than {MAX_EXPANDED} characters; use smaller counts")


def whole(pattern: str) -> str:
    """The term that matches what ``pattern`` matches from end to end."""
    return _term("|".join(f"(?:{body})" for body, _, _ in map(_without_anchors, _branches(pattern))))


def searched(pattern: str) -> str:
    """The term that matches texts in which ``pattern`` matches somewhere."""
    parts = map(_without_anchors, _branches(pattern))
    return _term("|".join(f"{'' if at else _ANYTHING}(?:{body}){'' if to else _ANYTHING}" for body, at, to in parts))


def _term(expression: str) -> str:
    return f"/{regex_to_lark(expression, 'd')}/"


def _without_anchors(branch: str) -> tuple[str, bool, bool]:
    """(the rest, whether it began with ^, whether it ended with $)."""
    begins = branch.startswith("^")
    body = branch[1:] if begins else branch
    ends = body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\"))) % 2 == 1
    return body[:-1] if ends else body, begins, ends


def _branches(pattern: str) -> list[str]:
    """An expression cut at the bars that stand outside of groups and classes."""
    branches, start, depth = [], 0, 0
    for item in _ITEM.finditer(pattern):
        if item["atom"] is None:
            depth += {"(": 1, ")": -1}.get(item[0], 0)
            if item[0] == "|" and depth == 0:
                branches.append(pattern[start : item.start()])
                start = item.end()
    return [*branches, pattern[start:]]


def _expanded(pattern: str) -> int:
    """About how many characters a pattern has when its counted repetitions are written out."""
    sizes, last = [0], 0  # of the groups that are open; of what a repetition would repeat
    for item in _ITEM.finditer(pattern):
        if item[0] == "(" and item["atom"] is None:
            sizes.append(0)
        elif item[0] == ")" and item["atom"] is None and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif item["least"] is not None:
            more = last * (max(int(item["least"]), int(item["most"] or 0), 1) - 1)
            last += more
            sizes[-1] += more
        else:
            last = 1
            sizes[-1] += 1
        if max(sizes) > 1 << 62:
            break
    return sum(sizes)
