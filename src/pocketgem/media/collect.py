"""What a decoder sends becomes a Picture, a Sound or a Clip. It may be a stranger's by now: all is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pocketgem.media import wire
from pocketgem.media.kinds import SAMPLE_RATE, Clip, Floats, Picture, Pixels, Sound
from pocketgem.media.limits import Limits

Messages = Iterator[tuple[bytes, bytes]]
LONGEST = 1e9  # seconds of a video, by its own account


def picture(messages: Messages, limits: Limits) -> Picture:
    found = _picture(_header(messages), messages, limits.picture_pixels)
    _end(messages)
    return found


def sound(messages: Messages, limits: Limits) -> Sound:
    """``samples``: in one piece of memory that grows, so that they are never there twice."""
    most = (limits.sound_seconds + 1) * SAMPLE_RATE
    held = bytearray()
    for kind, body in messages:
        _need(kind == wire.BYTES and len(held) + len(body) <= 4 * most and len(body) % 4 == 0, "samples")
        _need(_finite(np.frombuffer(body, np.float32)), "samples that are numbers")
        held += body
    _need(len(held) > 0, "samples")
    return Sound(np.frombuffer(held, np.float32))


def clip(messages: Messages, limits: Limits) -> Clip:
    head = _header(messages)
    count = _whole(head, "frames", limits.clip_frames)
    pictures: list[Picture] = []
    seconds: list[float] = []
    for kind, body in messages:
        _need(kind == wire.HEADER and len(pictures) < count, "a frame")
        said = wire.unpack_json(body)
        pictures.append(_picture(said, messages, limits.clip_pixels // count))
        seconds.append(_seconds(said, "second"))
    _need(len(pictures) > 0, "a frame")
    return Clip(tuple(pictures), tuple(seconds), _seconds(head, "duration"), head.get("has_sound") is True)


def _picture(said: dict[str, object], messages: Messages, most: int) -> Picture:
    height, width = _whole(said, "height", most), _whole(said, "width", most)
    _need(height * width <= most, "a picture within its limit")
    pixels = np.empty((height, width, 3), np.uint8)
    _fill(pixels, messages)
    return Picture(pixels)


def _fill(pixels: Pixels, messages: Messages) -> None:
    flat, done = pixels.reshape(-1), 0
    while done < len(flat):
        kind, body = next(messages, (b"", b""))
        _need(kind == wire.BYTES and 0 < len(body) <= len(flat) - done, "pixels")
        flat[done : done + len(body)] = np.frombuffer(body, np.uint8)
        done += len(body)


def _header(messages: Messages) -> dict[str, object]:
    kind, body = next(messages, (b"", b""))
    _need(kind == wire.HEADER, "a header")
    return wire.unpack_json(body)


def _end(messages: Messages) -> None:
    _need(next(messages, None) is None, "the end")


def _finite(samples: Floats) -> bool:
    return bool(np.isfinite(samples).all())


def _whole(said: dict[str, object], name: str, most: int) -> int:
    value = said.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise wire.WireError(f"{name} is {value!r:.80}")
    return value


def _seconds(said: dict[str, object], name: str) -> float:
    value = said.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= LONGEST:
        raise wire.WireError(f"{name} is {value!r:.80}")
    return float(value)


def _need(held: bool, what: str) -> None:
    if not held:
        raise wire.WireError(f"not {what}")
