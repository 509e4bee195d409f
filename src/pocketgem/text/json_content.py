"""Content that was asked for as JSON, without the fences and words that models put around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pocketgem.text.events import Content, Event, Marker, Thought
from pocketgem.text.literals import attempt, parsed

_FENCE = re.compile(r"\s*```(?:json)?\s*\Z|\s+\Z", re.IGNORECASE)
_BEGIN = re.compile(r"[{\[]")


class JsonContent:
    """Between the parser and its reader. ``flaw`` is "truncated_json" after ``finish`` where the limit cut it."""

    def __init__(self) -> None:
        self.flaw: str | None = None
        self._begun = False
        self._before: list[Content | Marker] = []  # what may belong to the JSON, or to the thought before it
        self._fenced = False
        self._tail: list[Content | Marker] = []  # white space and backticks that may be the closing fence
        self._whole: list[str] = []

    def read(self, parts: Iterable[Event | Marker]) -> Iterator[Event | Marker]:
        """The same parts, content as far as it is certain to belong to the JSON."""
        for part in parts:
            if isinstance(part, Content):
                yield from self._inside(part.text) if self._begun else self._outside(part)
            elif isinstance(part, Marker) and (held := self._before or self._tail):
                held.append(part)
            else:
                yield from self._released(Thought if isinstance(part, Thought) else Content)
                yield from self._tail_shown()
                yield part

    def finish(self, *, cut: bool = False) -> Iterator[Event | Marker]:
        """What was held back."""
        yield from self._released(Content)
        tail = "".join(part.text for part in self._tail if isinstance(part, Content))
        if self._fenced and tail.strip() == "```":
            yield from (Marker(part.text, "json_fence") if isinstance(part, Content) else part for part in self._tail)
        else:
            yield from self._tail_shown()
        if cut and not attempt(parsed, "".join(self._whole))[0]:
            self.flaw = "truncated_json"

    def _released(self, kind: type[Content | Thought]) -> Iterator[Event | Marker]:
        """What stood before, now that no JSON follows: dashes before a thought are the first of it."""
        before, self._before = self._before, []
        for part in before:
            if isinstance(part, Marker):
                yield part
            elif kind is Thought:
                yield Marker("", "preamble_dropped")
                yield Thought(part.text)
            else:
                yield from self._shown(part.text)

    def _outside(self, part: Content) -> Iterator[Event | Marker]:
        found = _BEGIN.search(part.text)
        if not found:
            self._before.append(part)
            return
        self._begun = True
        start = found.start()
        before, self._before = [*self._before, Content(part.text[:start])], []
        words = "".join(part.text for part in before if isinstance(part, Content))
        repair = "json_fence" if _FENCE.match(words) else "preamble_dropped"
        self._fenced = "```" in words
        yield from (
            piece if isinstance(piece, Marker) else Marker(piece.text, repair) for piece in before if piece.text
        )
        yield from self._inside(part.text[start:])

    def _inside(self, text: str) -> Iterator[Event | Marker]:
        ready = text.rstrip(" \t\r\n`")
        if ready:
            yield from self._tail_shown()
            yield from self._shown(ready)
        if len(ready) < len(text):
            self._tail.append(Content(text[len(ready) :]))

    def _tail_shown(self) -> Iterator[Event | Marker]:
        """What was taken for a fence is content, now that more comes."""
        tail, self._tail = self._tail, []
        for part in tail:
            yield from self._shown(part.text) if isinstance(part, Content) else (part,)

    def _shown(self, text: str) -> Iterator[Content]:
        self._whole.append(text)
        yield Content(text)
