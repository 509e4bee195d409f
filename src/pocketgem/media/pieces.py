"""A sound longer than a model hears at once, in pieces that overlap; and their texts, as one again.

A piece ends where it is quietest near the limit, and the next begins a little before that, so that a word cut in two is
whole in one of them. What both pieces say there is one run of words, and is kept once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from unicodedata import category

import numpy as np

from pocketgem.media.kinds import SAMPLE_RATE, Floats, Sound
from pocketgem.media.mel import MAX_SECONDS

OVERLAP = 1.0  # seconds that two pieces have in common
SEARCH = 5.0  # seconds before the limit in which the quietest place is looked for
PAUSE = 0.2  # seconds whose loudness is compared
STEP = 320  # samples; the grain of the search

AROUND = 24  # words on each side of a seam that are compared
SLACK = 3  # words that may be left over between a common run and the seam: halves of words, mostly
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")  # a character of a script without spaces counts as a word


@dataclass(frozen=True)
class Piece:
    """Samples ``start`` to ``stop`` of a sound, heard at once; what is new in it begins at ``own``."""

    start: int
    own: int
    stop: int

    def of(self, sound: Sound) -> Sound:
        return Sound(sound.samples[self.start : self.stop])

    @property
    def seconds(self) -> tuple[float, float]:
        """When the piece's own part begins and ends."""
        return self.own / SAMPLE_RATE, self.stop / SAMPLE_RATE


def cut(
    sound: Sound, *, limit: float = MAX_SECONDS, overlap: float = OVERLAP, search: float = SEARCH
) -> tuple[Piece, ...]:
    """Pieces of at most ``limit`` seconds that cover the sound; one if it is short enough.

    Each but the first begins ``overlap`` seconds before the last one's end, which is the quietest place of its last
    ``search`` seconds. ``limit`` must be greater than the two together.
    """
    if limit <= overlap + search:
        raise ValueError(f"a limit of {limit} s leaves no room for {overlap} s of overlap and {search} s of search")
    most, shared = int(limit * SAMPLE_RATE), int(overlap * SAMPLE_RATE)
    pieces, start, own = [], 0, 0
    while len(sound.samples) - start > most:
        stop = start + most - int(search * SAMPLE_RATE)
        stop += quietest(sound.samples[stop : start + most])
        pieces.append(Piece(start, own, stop))
        start, own = stop - shared, stop
    return (*pieces, Piece(start, own, len(sound.samples)))


def quietest(samples: Floats) -> int:
    """Where the middle of the quietest ``PAUSE`` lies; the last of several. The end, for less than that."""
    steps = len(samples) // STEP
    width = int(PAUSE * SAMPLE_RATE) // STEP
    if steps < width:
        return len(samples)
    energy = np.square(samples[: steps * STEP], dtype=np.float64).reshape(steps, STEP).sum(axis=1)
    sums = np.convolve(energy, np.ones(width), "valid")  # each a pause that begins at a step
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return last * STEP + width * STEP // 2


# ---- texts -----------------------------------------------------------------------------------------------------------


def glued(parts: Sequence[str]) -> str:
    """Parts of a text as one, with spaces between them where their script has spaces."""
    whole = ""
    for part in filter(None, parts):
        whole += part if not whole or _meets_unspaced(whole, part) else f" {part}"
    return whole


def own_parts(texts: Sequence[str]) -> list[str]:
    """Each text without what its neighbours say too; a common run stays with the first of two."""
    starts, stops = [0] * len(texts), [len(text) for text in texts]
    for index, (before, after) in enumerate(pairwise(texts)):
        if seam := _seam(before, after):
            stops[index], starts[index + 1] = seam
    return [text[start : max(start, stop)].strip() for text, start, stop in zip(texts, starts, stops, strict=True)]


def _seam(before: str, after: str) -> tuple[int, int] | None:
    """Where to end ``before`` and where to begin ``after``, in characters; None if nothing is said twice."""
    tail, head = list(_WORD.finditer(before))[-AROUND:], list(_WORD.finditer(after))[:AROUND]
    run = _common_run([_bare(word[0]) for word in tail], [_bare(word[0]) for word in head])
    if run is None:
        return None
    i, j, count = run
    return tail[i + count - 1].end(), head[j + count - 1].end()


def _common_run(tail: list[str], head: list[str]) -> tuple[int, int, int] | None:
    """The longest run of words that both have near the seam: where it begins in each, and how long it is.

    A single word counts only at the very seam: elsewhere it is chance.
    """
    best: tuple[int, int, int] | None = None
    for i in range(len(tail)):
        for j in range(min(len(head), SLACK + 1)):
            count = _length(tail[i:], head[j:])
            left_over = len(tail) - i - count
            at_seam = j == 0 and left_over == 0
            if count >= (1 if at_seam else 2) and left_over <= SLACK and (best is None or count > best[2]):
                best = i, j, count
    return best


def _length(one: list[str], other: list[str]) -> int:
    """How many words from the first on are the same. Marks alone are no word."""
    same = takewhile(lambda pair: pair[0] == pair[1] != "", zip(one, other, strict=False))
    return sum(1 for _ in same)


def _bare(word: str) -> str:
    """A word without case and punctuation: pieces differ in how they begin and end sentences."""
    return "".join(letter for letter in word.casefold() if category(letter)[0] not in "PSZ")


def _meets_unspaced(before: str, after: str) -> bool:
    return bool(re.match(f"[{_UNSPACED}]", after) and re.search(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uffef]$", before))
