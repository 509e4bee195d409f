"""Frames of a video, in a confined process, by PyAV: counted without decoding, then decoded and sent one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np

from pocketgem.media.limits import LIMITS
from pocketgem.media.streams import VIDEO_CODECS, opened, ready
from pocketgem.media.worker import Answer, Question, RefusedError, number

SLOWEST = 1e-4  # frames a second that are believed
LONGEST = 1e6  # seconds that are believed


@dataclass(frozen=True)
class Counted:
    """What is in a video. frames: within the wanted seconds. duration: of the whole, in seconds."""

    frames: int
    rate: float
    duration: float
    has_sound: bool


def read(question: Question, file: BinaryIO, answer: Answer) -> None:
    name = question["format"]
    counted = _count(name, file, number(question, "seconds"))
    wanted = _wanted(counted, question)
    answer.header(duration=counted.duration, has_sound=counted.has_sound, frames=len(wanted))
    if not _decode(name, file, wanted, counted.rate, answer):
        raise RefusedError("has no frame that can be decoded")


def _wanted(counted: Counted, question: Question) -> list[int]:
    """Numbers of the frames, evenly from the first: those that transformers' Gemma 4 processor takes."""
    count = int(number(question, "frames"))
    if question.get("fps") is not None:
        count = max(1, int(counted.frames / counted.rate * number(question, "fps")))
    count = min(count, counted.frames, LIMITS.clip_frames)
    return [place * counted.frames // count for place in range(count)]


def _picture_stream(container: Any) -> Any:
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        raise RefusedError("has no pictures in it")
    stream = ready(streams[0], VIDEO_CODECS)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise RefusedError(f"has no pixels: {width}x{height}")
    if width * height > LIMITS.video_pixels:
        raise RefusedError(
            f"has frames of {width}x{height}; they may have {LIMITS.video_pixels} pixels: make it smaller"
        )
    return stream


def _too_large(width: int, height: int) -> str:
    return f"has frames of {width}x{height}; they may have {LIMITS.video_pixels} pixels, as 4096x2304: make it smaller"


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _count(name: object, file: BinaryIO, seconds: float) -> Counted:
    with opened(name, file) as container:
        stream = _picture_stream(container)
        told = (container.duration or 0) / av.time_base
        times, all_seen = _times(container, stream, seconds)
        if not times:
            raise RefusedError("has no frames")
        if all_seen and stream.frames > len(times):
            raise RefusedError(f"is cut short: {len(times)} of {stream.frames} frames are there")
        length = _sane(max(times) - min(times), 0.0)
        rate = float(stream.average_rate or 0)
        if not SLOWEST <= rate <= 1 / SLOWEST:
            rate = len(times) / max(length, SLOWEST)
        return Counted(len(times), rate, max(_sane(told, 0.0), length), bool(container.streams.audio))


def _times(container: Any, stream: Any, seconds: float) -> tuple[list[float], bool]:
    """When each frame of the first ``seconds`` is shown, and whether there is none after them."""
    times: list[float] = []
    later = 0
    for seen, packet in enumerate(container.demux(stream)):
        if seen > LIMITS.packets:
            raise RefusedError(f"has more than {LIMITS.packets} frames")
        if not packet.size:
            continue
        when = packet.pts if packet.pts is not None else packet.dts
        time = float(when * packet.time_base) if when is not None else float(len(times))
        if times and time - min(times) >= seconds:
            later += 1
            if later > 32:  # frames are stored a little out of order, never so much
                break
            continue
        times.append(time)
    return times, later == 0


def _decode(name: object, file: BinaryIO, wanted: list[int], rate: float, answer: Answer) -> int:
    """How many frames were sent."""
    places, sent, first = set(wanted), 0, None
    with opened(name, file) as container:
        for place, frame in enumerate(container.decode(_picture_stream(container))):
            if first is None:
                first = frame.time or 0.0
            if place in places:
                second = -1.0 if frame.time is None else frame.time - first
                _send(frame, _sane(second, place / rate), len(wanted), answer)
                sent += 1
            if place >= wanted[-1]:
                break
    return sent


def _sane(seconds: float, instead: float) -> float:
    return seconds if 0 <= seconds <= LONGEST else instead


def _send(frame: Any, second: float, count: int, answer: Answer) -> None:
    pixels = _upright(_small(frame, LIMITS.clip_pixels // count), frame.rotation)
    height, width, _ = pixels.shape
    answer.header(height=height, width=width, second=second)
    answer.bytes(np.ascontiguousarray(pixels).data)


def _small(frame: Any, most: int) -> Any:
    """``[height, width, 3]`` of at most so many pixels."""
    if frame.width * frame.height > LIMITS.video_pixels:
        raise RefusedError(_too_large(frame.width, frame.height))
    if frame.width * frame.height <= most:
        return frame.to_ndarray(format="rgb24", threads=1)
    scale = (most / (frame.width * frame.height)) ** 0.5
    width, height = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
    whole = frame.reformat(format="rgb24", threads=1)  # colours at full size first, as they are seen unscaled
    return whole.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)


def _upright(pixels: Any, rotation: int) -> Any:
    """Turned as the file says. Quarter turns only: nothing else is written by cameras."""
    return np.rot90(pixels, round(rotation / 90) % 4)
