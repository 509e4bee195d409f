"""Media in a prompt: the ids around them, and where their rows stand.

Gemma 4 writes ``<|image>``, a placeholder for each row, ``<image|>``; sounds likewise; a video as its frames, each
behind the time at which it is shown. Gemma 3 puts empty lines around an image. Source: transformers' processors, the
oracles of ``tests/test_senses_layout.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pocketgem.errors import MediaError
from pocketgem.senses.medium import Medium
from pocketgem.text.media import KINDS, Part, Slot
from pocketgem.text.tokenizer import Tokenizer

GEMMA_4 = {
    "image": ("<|image>", "<|image|>", "<image|>"),
    "video": ("<|image>", "<|video|>", "<image|>"),
    "audio": ("<|audio>", "<|audio|>", "<audio|>"),
}
GEMMA_3 = {"image": ("<start_of_image>", "<image_soft_token>", "<end_of_image>")}
SAME = {"<|video|>": "<|image|>"}  # vocabularies that were written before there was video have one less


@dataclass(frozen=True)
class Row:
    """The place of one run: ``count`` times the id of a placeholder."""

    medium: Medium
    run: int
    id: int

    @property
    def count(self) -> int:
        return self.medium.counts[self.run]


@dataclass(frozen=True)
class Laid:
    """A prompt's ids, and for each run of media rows where it begins."""

    ids: list[int]
    rows: list[tuple[int, Row]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the media were taken, each once."""
        return tuple(dict.fromkeys(note for _, row in self.rows for note in row.medium.notes))

    @property
    def media(self) -> dict[str, int]:
        """Rows of each kind of media."""
        return {kind: sum(row.count for _, row in self.rows if row.medium.kind == kind) for kind in KINDS}


class Layout:
    """How a model's vocabulary writes media."""

    def __init__(self, tokenizer: Tokenizer, *, gemma3: bool) -> None:
        self._tokenizer, self._names, self._gemma3 = tokenizer, GEMMA_3 if gemma3 else GEMMA_4, gemma3

    def lay(self, parts: Iterable[Part], media: Sequence[Medium]) -> Laid:
        """Parts of a prompt with the media of its slots. Raises MediaError where the vocabulary cannot write one."""
        ids: list[int] = []
        rows: list[tuple[int, Row]] = []
        wide = (one for part in parts for one in (self._wide(media[part.index]) if isinstance(part, Slot) else [part]))
        for is_text, group in groupby(wide, key=lambda one: isinstance(one, str)):
            if is_text:
                ids += self._tokenizer.encode("".join(map(str, group)), add_bos=False)
                continue
            for one in group:
                if isinstance(one, Row):
                    rows.append((len(ids), one))
                ids += [one.id] * one.count if isinstance(one, Row) else [int(one)]
        whole = self._tokenizer.with_bos(ids)
        return Laid(whole, [(start + len(whole) - len(ids), row) for start, row in rows])

    def check(self, kind: str) -> None:
        """Raises MediaError where the vocabulary has no way to write media of a kind."""
        self._marks(kind)

    def _wide(self, medium: Medium) -> Iterator[str | int | Row]:
        opening, place, closing = self._marks(medium.kind)
        around = "\n\n" if self._gemma3 else ""
        for run in range(len(medium.counts)):
            if medium.stamps:
                yield f"{' ' if run else ''}{medium.stamps[run]} "
            yield from (around, opening, Row(medium, run, place), closing, around)

    def _marks(self, kind: str) -> tuple[int, int, int]:
        names = self._names.get(kind)
        if names is None:
            raise MediaError(f"this model takes {' and '.join(self._names)}, and no {kind}")
        opening, place, closing = map(self._id, names)
        return opening, place, closing

    def _id(self, name: str) -> int:
        known: Callable[[str], int | None] = self._tokenizer.special_tokens.get
        found = known(name) if name not in SAME else known(name) or known(SAME[name])
        if found is None:
            raise MediaError(f"the model's vocabulary has no {name}, so it cannot be given media")
        return found
