"""Subtitles: lines of text and when they are shown, as SRT and WebVTT write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

MOST = 84  # characters of one subtitle: two lines of 42, as broadcasters have them
# Where a sentence ends. A run of marks is looked at from its beginning only: a thousand dots take no longer than that.
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s|$)|(?<![。！？])[。！？]++[」』）]*+")


@dataclass(frozen=True)
class Line:
    """One subtitle. ``start`` and ``end`` in seconds."""

    start: float
    end: float
    text: str


def spread(text: str, start: float, end: float, most: int = MOST) -> list[Line]:
    """A text that was said between two times, sentence by sentence; a long one in parts of ``most`` characters.

    Each gets time by its length: nobody said when a word was spoken.
    """
    parts = [part for sentence in sentences(text) for part in wrapped(sentence, most)]
    total, at = sum(map(len, parts)), 0
    lines = []
    for part in parts:
        began = start + (end - start) * at / total
        at += len(part)
        lines.append(Line(began, start + (end - start) * at / total, part))
    return lines


def sentences(text: str) -> list[str]:
    """A text cut behind the marks that end sentences. Nothing but the space between them is lost."""
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    found = (text[start:end].strip() for start, end in pairwise(ends))
    return [sentence for sentence in found if sentence]


def wrapped(text: str, most: int) -> Iterator[str]:
    """Parts of at most ``most`` characters, cut at spaces where there are any."""
    rest = " ".join(text.split())
    while len(rest) > most:
        space = rest.rfind(" ", 0, most + 1)
        end = space if space > 0 else most
        yield rest[:end]
        rest = rest[end:].lstrip()
    if rest:
        yield rest


def srt(lines: Iterable[Line]) -> str:
    """SubRip: numbered, times with a comma. An arrow in a text loses a dash: readers would take it for times."""
    entries = (
        f"{n}\n{_srt(line.start)} --> {_srt(line.end)}\n{line.text.replace('-->', '->')}\n"
        for n, line in enumerate(lines, 1)
    )
    return "\n".join(entries)


def vtt(lines: Iterable[Line]) -> str:
    """WebVTT. ``&``, ``<`` and ``>`` are written as it wants them, ``-->`` in a text with them."""
    entries = (f"{_time(line.start)} --> {_time(line.end)}\n{_escaped(line.text)}\n" for line in lines)
    return "\n".join(["WEBVTT\n", *entries])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _srt(seconds: float) -> str:
    return _time(seconds).replace(".", ",")


def _time(seconds: float) -> str:
    """``HH:MM:SS.mmm``; both formats allow more than two digits of hours."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
