"""Strangers' files become pictures, sounds and clips, in processes that can do nothing else (docs/media-limits.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import Literal, TypeVar

from pocketgem.errors import MediaError, RunError
from pocketgem.media import collect, sniff, wire
from pocketgem.media.child import Child, DiedError, LateError
from pocketgem.media.kinds import Clip, Picture, Sound
from pocketgem.media.limits import LIMITS, MIB, Limits

Made = TypeVar("Made", Picture, Sound, Clip)
Question = dict[str, object]
Room = Literal["picture", "sound", "spoken", "clip"]
Data = bytes | bytearray | memoryview
REQUESTS = 500  # that one process serves, so that nothing piles up in it
NEEDS: dict[Room, tuple[str, ...]] = {
    "picture": ("PIL",),
    "sound": ("soundfile", "soxr"),
    "spoken": ("av", "soxr"),
    "clip": ("av",),
}


class Decoder:
    """Reads files of strangers. Thread-safe; calls block. Close it, or use it in a ``with``.

    at_once: files that are decoded side by side, each in a process of its own. More of them wait. limits: of what is
    asked for and what is taken back; the processes keep to LIMITS.
    """

    def __init__(self, *, at_once: int = 2, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._places = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._idle: dict[Room, list[Child]] = {room: [] for room in NEEDS}
        self._closed = False

    def picture(self, data: Data, *, declared: str | None = None) -> Picture:
        """From PNG, JPEG, WebP or GIF (the first frame), upright, over white. declared: a media type that came with it.

        Raises MediaError.
        """
        name = self._kind(data, sniff.PICTURES, "picture", declared, self._limits.picture_bytes)
        return self._ask("picture", "picture", {"format": name}, data, collect.picture)

    def sound(self, data: Data, *, declared: str | None = None) -> Sound:
        """From WAV, FLAC, MP3, Ogg, or the sound of MP4 (m4a) and WebM. Raises MediaError."""
        name = self._kind(data, sniff.SOUNDS, "sound", declared, self._limits.sound_bytes)
        room: Room = "spoken" if name in sniff.CLIPS else "sound"
        return self._ask(room, "sound", {"format": name}, data, collect.sound)

    def clip(
        self,
        data: Data,
        *,
        frames: int = 32,
        fps: float | None = None,
        seconds: float = 60.0,
        declared: str | None = None,
    ) -> Clip:
        """``frames`` pictures, evenly spread over the first ``seconds`` of an MP4 or WebM file, or ``fps`` a second.

        Raises MediaError.
        """
        self._check(frames, fps, seconds)
        name = self._kind(data, sniff.CLIPS, "video", declared, self._limits.clip_bytes)
        question: Question = {"format": name, "frames": frames, "fps": fps, "seconds": seconds}
        return self._ask("clip", "video", question, data, collect.clip)

    def confined(self, room: Room = "picture") -> tuple[str, ...]:
        """What holds for processes of a kind on this machine, in words: ``no files``, ``limit AS`` ... Starts one."""
        _installed(room, room)
        with self._places:
            child = self._take(room)
            self._give_back(room, child)
        return child.confined

    def close(self) -> None:
        """Ends the processes; from now on requests raise RunError. What is being decoded is done first."""
        with self._lock:
            self._closed = True
            children = [child for idle in self._idle.values() for child in idle]
            self._idle = {room: [] for room in NEEDS}
        for child in children:
            child.end()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _kind(self, data: Data, kinds: tuple[str, ...], what: str, declared: str | None, most: int) -> str:
        if len(data) > most:
            raise MediaError(f"the {what} has {len(data) / MIB:.0f} MiB; {most // MIB} are taken: make it smaller")
        return sniff.expect(memoryview(data), kinds, what, declared)

    def _check(self, frames: int, fps: float | None, seconds: float) -> None:
        if not 1 <= frames <= self._limits.clip_frames:
            raise MediaError(f"frames is {frames}; 1 to {self._limits.clip_frames} can be taken from a video")
        if fps is not None and not 0 < fps <= 60:
            raise MediaError(f"fps is {fps}; above 0 to 60 frames a second can be taken from a video")
        if not 0 < seconds <= self._limits.clip_seconds:
            raise MediaError(f"seconds is {seconds}; a video is watched for {self._limits.clip_seconds:.0f} at most")

    def _ask(
        self,
        room: Room,
        what: str,
        question: Question,
        data: Data,
        made: Callable[[collect.Messages, Limits], Made],
    ) -> Made:
        _installed(room, what)
        seconds = self._limits.time(room, len(data))
        with self._places:
            child = self._take(room)
            try:
                with closing(child.ask(question, memoryview(data).cast("B"), seconds)) as messages:
                    return made(messages, self._limits)
            except MediaError as error:
                raise MediaError(f"the {what} {error}") from None
            except LateError:
                raise MediaError(f"the {what} is too much work: {seconds:.0f} s were not enough to decode it") from None
            except (DiedError, wire.WireError):
                raise MediaError(f"the {what} broke its decoder; it is damaged, or needs too much memory") from None
            finally:
                self._give_back(room, child)

    def _take(self, room: Room) -> Child:
        while True:
            with self._lock:
                if self._closed:
                    raise RunError("the decoder is closed")
                child = self._idle[room].pop() if self._idle[room] else None
            if child is None:
                return Child(room)
            if child.alive:
                return child
            child.end()

    def _give_back(self, room: Room, child: Child) -> None:
        with self._lock:
            keep = child.healthy and child.asked < REQUESTS and not self._closed
            if keep:
                self._idle[room].append(child)
        if not keep:
            child.end()


def _installed(room: Room, what: str) -> None:
    missing = [name for name in NEEDS[room] if find_spec(name) is None]
    if missing:
        raise MediaError(f"reading a {what} needs {' and '.join(missing)}: pip install 'pocketgem[media]'")
