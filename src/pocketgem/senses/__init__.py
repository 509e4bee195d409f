"""Messages with media become a prompt: ids, and rows that stand in it for what the towers saw and heard.

    senses = Senses(Towers.of(checkpoint), config, tokenizer)
    asked = senses.read(media_of(messages))            decoded and counted; no tower has run
    laid = senses.lay(chat.parts(messages), asked)     ids and places
    inserts = senses.encode(laid)                      the towers run, or the rows are still there

Nothing of it takes the engine's lock: others' answers go on meanwhile.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from pocketgem.checkpoint.towers import TOWER_OF
from pocketgem.config import ModelConfig
from pocketgem.engine.inserts import Insert
from pocketgem.errors import MediaError, RunError
from pocketgem.media.decode import Decoder
from pocketgem.media.given import Budget, checked_budget
from pocketgem.media.kinds import Clip, Frames, Patches, Picture, Sound
from pocketgem.senses.layout import Laid, Layout
from pocketgem.senses.medium import Medium, Wanted, wanted
from pocketgem.senses.prepare import prepared
from pocketgem.senses.shelf import Encoded, Shelf
from pocketgem.text.media import Kind, Part
from pocketgem.text.tokenizer import Tokenizer

MOST_MEDIA = 64  # of one prompt
ROOM = 256 << 20  # bytes of encoded media that are kept; 1120 rows of 1536 numbers are 7 MiB
READY = 64 << 20  # bytes that are prepared for towers at a time; what is beyond is decoded again when its turn comes
Proceed = Callable[[], bool]


class Tower(Protocol):
    """What senses ask of ``model/towers.py``."""

    @property
    def sees(self) -> bool: ...
    @property
    def hears(self) -> bool: ...
    def see(self, values: Tensor, positions: Tensor) -> Tensor: ...
    def hear(self, values: Tensor) -> Tensor: ...
    def identity(self, kind: str) -> bytes: ...
    def drop(self) -> None: ...


class Senses:
    """The eyes and ears of one model. Calls from several threads take turns where a tower runs.

    decoder: reads strangers' files; None: one of this object's own, made when it is needed. budget: of images that name
    none. room: bytes of encoded media that are kept.
    """

    def __init__(
        self,
        towers: Tower,
        config: ModelConfig,
        tokenizer: Tokenizer,
        decoder: Decoder | None = None,
        *,
        budget: Budget = "auto",
        room: int = ROOM,
    ) -> None:
        self.towers, self.config, self.decoder = towers, config, decoder
        self.budget, self.shelf = checked_budget(budget), Shelf(room)
        self._layout = Layout(tokenizer, gemma3=config.family == "gemma3")
        self._lock, self._encoding = Lock(), Lock()

    def can(self, kind: Kind) -> bool:
        """Whether media of a kind can be given: by the checkpoint's tensors and its vocabulary."""
        try:
            self.check(kind)
        except MediaError:
            return False
        return True

    def check(self, kind: Kind) -> None:
        """Raises MediaError that says why media of a kind cannot be given."""
        tower, has = ("audio", self.towers.hears) if kind == "audio" else ("vision", self.towers.sees)
        if not has:
            raise MediaError(
                f"this checkpoint has no {tower} tower, so {kind} cannot be given; "
                "a GGUF file's towers are in an mmproj file beside it: give that too"
            )
        if self.config.family not in ("gemma3", "gemma4"):
            raise MediaError(f"{tower} towers of {self.config.family} are not run by this version")
        self._layout.check(kind)

    def read(self, parts: Sequence[Mapping[str, object]], *, owner: str = "", most: int | None = None) -> list[Medium]:
        """Media decoded and counted, in their order. No tower runs.

        owner: whose media these are; what one owner's request left in the cache speeds up nobody else's.
        most: tokens that there is room for. Raises MediaError.
        """
        if len(parts) > MOST_MEDIA:
            raise MediaError(f"there are {len(parts)} images, sounds and videos; {MOST_MEDIA} are taken at once")
        media: dict[bytes, Medium] = {}
        order: list[bytes] = []
        tokens = held = 0
        for part in parts:
            one = wanted(part, self.budget)
            order.append(key := self._key(one, owner))
            if key not in media:
                medium = self._medium(one, key)
                media[key] = medium if held + medium.nbytes <= READY else medium.light()
                held += media[key].nbytes
            tokens += media[key].tokens
            if most is not None and tokens >= most:
                raise MediaError(f"the media have {tokens} tokens or more; the context holds {most} with the answer")
        return [media[key] for key in order]

    def lay(self, parts: Iterable[Part], media: Sequence[Medium]) -> Laid:
        """Ids of a prompt with the places of its media. Raises MediaError."""
        return self._layout.lay(parts, media)

    def encode(self, laid: Laid, proceed: Proceed = lambda: True) -> tuple[Insert, ...]:
        """Rows for every place, from the cache or a tower. proceed: asked before a tower runs; RunError if it says no.

        Raises UnsupportedError for a tower that cannot be built.
        """
        found: dict[bytes, Encoded] = {}
        for _, row in laid.rows:
            if row.medium.key not in found:
                found[row.medium.key] = self._encoded(row.medium, proceed)
        return tuple(
            Insert(
                start,
                row.count,
                row.medium.kind,
                row.medium.run_key(row.run),
                found[row.medium.key].vectors[row.run],
                whole=row.medium.kind != "audio" and self.config.sees_images_whole,
            )
            for start, row in laid.rows
        )

    def picture(self, given: bytes | Path | Picture) -> Picture:
        """A picture decoded. Raises MediaError."""
        made = self._decoded(wanted({"type": "image", "image": given}, self.budget))
        if not isinstance(made, Picture):
            raise TypeError("an image is decoded to a Picture")
        return made

    def clip(self, given: bytes | Path | Clip, frames: int | None = None) -> Clip:
        """A video decoded, with so many of its frames. Raises MediaError."""
        made = self._decoded(wanted({"type": "video", "video": given, "frames": frames}, self.budget))
        if not isinstance(made, Clip):
            raise TypeError("a video is decoded to a Clip")
        return made

    def sound(self, given: bytes | Path | Sound) -> Sound:
        """A sound decoded, for a model that hears. Raises MediaError."""
        self.check("audio")
        made = self._decoded(wanted({"type": "audio", "audio": given}, self.budget))
        if not isinstance(made, Sound):
            raise TypeError("a sound is decoded to a Sound")
        return made

    def drop(self) -> None:
        """Give back the memory of towers and of encoded media."""
        self.towers.drop()
        self.shelf.clear()

    # ---- one medium ------------------------------------------------------------------------------------------------

    def _key(self, one: Wanted, owner: str) -> bytes:
        self.check(one.kind)
        return one.key(self.towers.identity(TOWER_OF[one.kind]), owner)

    def _medium(self, one: Wanted, key: bytes) -> Medium:
        known = self.shelf.find(key)
        return replace(known.medium, wanted=one) if known else self._prepared(one, key)

    def _prepared(self, one: Wanted, key: bytes) -> Medium:
        made = prepared(self.config, self._decoded(one), one.budget)
        return Medium(key, one, tuple(take.tokens for take in made.takes), made.stamps, made.notes, made.takes)

    def _decoded(self, one: Wanted) -> Picture | Sound | Clip:
        if not isinstance(one.content, bytes):
            return one.content
        with self._lock:
            decoder = self.decoder = self.decoder or self._own_decoder()
        if one.kind == "image":
            return decoder.picture(one.content, declared=one.declared)
        if one.kind == "audio":
            return decoder.sound(one.content, declared=one.declared)
        return decoder.clip(one.content, frames=one.frames, declared=one.declared)

    def _own_decoder(self) -> Decoder:
        """One whose processes end when nobody has these senses any more."""
        decoder = Decoder()
        weakref.finalize(self, decoder.close)
        return decoder

    def _encoded(self, medium: Medium, proceed: Proceed) -> Encoded:
        with self._encoding:  # who waits here for the same medium finds it afterwards
            known = self.shelf.find(medium.key)
            self.shelf.count(hit=known is not None)
            if known is not None:
                return known
            takes = medium.takes or self._prepared(medium.wanted, medium.key).takes or ()
            vectors = tuple(self._rows(take, proceed) for take in takes)
            light = replace(medium.light(), wanted=replace(medium.wanted, content=b""))
            encoded = Encoded(light, vectors)
            self.shelf.keep(encoded)
            return encoded

    def _rows(self, take: Patches | Frames, proceed: Proceed) -> Tensor:
        if not proceed():
            raise RunError("the media were given up")
        values = torch.from_numpy(take.values)
        if isinstance(take, Patches):
            return self.towers.see(values, torch.from_numpy(take.positions))
        return self.towers.hear(values)
