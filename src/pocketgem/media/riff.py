"""What the chunks of a WAV file say, before a library believes it."""

from __future__ import annotations

import struct
from typing import BinaryIO

from pocketgem.media.worker import RefusedError

UNTOLD = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFF000)  # sizes that programs write which do not know the end yet
CHUNKS = 1000  # before the samples
_FORMAT = struct.Struct("<HHIIHH")


def check_wav(file: BinaryIO, size: int) -> bool:
    """Whether its samples go on to the end of the file, their number untold. Leaves ``file`` at its start.

    Raises RefusedError where the format makes no sense, samples are missing, or there are none.
    """
    place, found = 12, False
    for _ in range(CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            return _data(file, length, size - place - 8, found)
        if name == b"fmt ":
            _format(file.read(_FORMAT.size))
            found = True
        place += 8 + length + length % 2
    raise RefusedError("is cut short: it has no samples")


def _format(body: bytes) -> None:
    if len(body) < _FORMAT.size:
        raise RefusedError("is cut short in its format")
    _, channels, rate, _, align, _ = _FORMAT.unpack(body)
    if not (channels and rate and align):
        raise RefusedError(f"says {channels} channels, {rate} samples a second, {align} bytes a sample: no sound")


def _data(file: BinaryIO, length: int, there: int, described: bool) -> bool:
    if not described:
        raise RefusedError("has samples before it says what they are")
    if not there:
        raise RefusedError("holds no sound: it has no samples")
    if length > there and length not in UNTOLD:
        raise RefusedError(f"is cut short: {there} of {length} bytes of samples are there")
    file.seek(0)
    return length in UNTOLD
