"""A medium on its way from somebody's file to rows of the text model: what was given, and what a tower takes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pocketgem.errors import MediaError
from pocketgem.media.given import Budget, checked_budget, read_file
from pocketgem.media.kinds import Clip, Frames, Patches, Picture, Sound
from pocketgem.text.media import Kind

USUAL_FRAMES, FRAME_BUDGET = 32, 70  # of a video: pictures, and rows for each, as Gemma 4's own processor takes them
MAX_FRAMES = 256
_DECODED: dict[Kind, type[Picture] | type[Sound] | type[Clip]] = {"image": Picture, "audio": Sound, "video": Clip}
_VERSION = b"pocketgem media 1"  # of how media are prepared: another one makes all keys others


@dataclass(frozen=True, eq=False)
class Wanted:
    """One medium as a message gives it, its options checked. ``content`` is decoded, or a file's bytes."""

    kind: Kind
    content: bytes | Picture | Sound | Clip
    budget: Budget
    frames: int
    declared: str | None = None  # the media type that came with it, which its bytes must not belie

    def key(self, tower: bytes, owner: str) -> bytes:
        """32 bytes that name the rows: content, how it is prepared, by which tower, and for whom they are kept.

        Every part stands behind its length, so that no two lists of parts are the same bytes.
        """
        parts = [_VERSION, self.kind.encode(), str(self.budget).encode(), str(self.frames).encode(), tower]
        digest = hashlib.sha256()
        for part in (*parts, owner.encode("utf-8", "surrogateescape"), *_content(self.content)):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


@dataclass(frozen=True, eq=False)
class Medium:
    """A medium as a prompt knows it. It becomes one run of rows, or several: frames of a video, pieces of a sound.

    counts  rows of each run           stamps  for a video, when each frame is shown, "MM:SS"
    notes   what a person should know  takes   what the tower takes for each run; None once that was let go
    wanted  what it was made of
    """

    key: bytes
    wanted: Wanted
    counts: tuple[int, ...]
    stamps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    takes: tuple[Patches | Frames, ...] | None = None

    @property
    def kind(self) -> Kind:
        return self.wanted.kind

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def nbytes(self) -> int:
        """Of ``takes``."""
        return sum(take.values.nbytes for take in self.takes or ())

    def light(self) -> Medium:
        """The same without ``takes``."""
        return replace(self, takes=None)

    def run_key(self, index: int) -> bytes:
        """The name of one run's rows."""
        return hashlib.sha256(self.key + index.to_bytes(8, "little")).digest()


def wanted(part: Mapping[str, object], usual: Budget) -> Wanted:
    """A message's part, read. ``usual``: the budget of an image that names none. Raises MediaError."""
    kind = _kind(part)
    given = part.get(kind)
    if isinstance(given, Path):
        given = read_file(given)
    if isinstance(given, bytearray | memoryview):
        given = bytes(given)
    decoded = _DECODED[kind]
    if not isinstance(given, bytes) and not isinstance(given, decoded):
        name = decoded.__name__
        raise MediaError(f"{kind} is a {type(given).__name__}; it can be a file's bytes, a Path or a {name}")
    budget, frames = part.get("budget"), part.get("frames")
    return Wanted(
        kind,
        given,
        checked_budget(budget) if budget is not None else FRAME_BUDGET if kind == "video" else usual,
        USUAL_FRAMES if frames is None else _frames(frames),
        _declared(part.get("media_type")),
    )


def _kind(part: Mapping[str, object]) -> Kind:
    kind = part.get("type")
    if kind not in _DECODED:
        raise MediaError(f"a part of type {str(kind)[:40]!r} is no medium")
    return kind


def _frames(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_FRAMES:
        raise MediaError(f"frames is {str(value)[:40]!r}; 1 to {MAX_FRAMES} can be taken from a video")
    return value


def _declared(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise MediaError(f"media_type is a {type(value).__name__}; it can be a text such as image/png")
    return value


def _content(content: bytes | Picture | Sound | Clip) -> list[bytes | memoryview]:
    """A content as bytes from which it could be made again."""
    if isinstance(content, bytes):
        return [b"file", content]
    if isinstance(content, Picture):
        pixels = content.pixels
        return [b"pixels", repr((pixels.shape, pixels.dtype.str)).encode(), pixels.tobytes()]
    if isinstance(content, Sound):
        return [b"samples", content.samples.dtype.str.encode(), content.samples.tobytes()]
    frames = [part for frame in content.frames for part in _content(frame)]
    return [b"clip", repr((content.seconds, content.duration, content.has_sound)).encode(), *frames]
