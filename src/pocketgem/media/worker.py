"""The decoder process. It imports what its kind of files needs, gives up everything else it could do (confine.py), and
answers one request after the other until its owner is gone. It never imports torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import BinaryIO

from pocketgem.media import wire
from pocketgem.media.limits import LIMITS

Question = dict[str, object]
Read = Callable[[Question, BinaryIO, "Answer"], None]
GRACE = 5  # seconds after which a decoder ends itself, should nobody be left who would

# which kind -> who reads it. spoken: the sound of a container that holds videos too
READERS = {"picture": "read_image", "sound": "read_sound", "spoken": "read_track", "clip": "read_video"}


class RefusedError(Exception):
    """Why a file is not taken, in words for people."""


class Answer:
    """What goes back: headers and bytes, in the order they are read."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def header(self, **values: object) -> None:
        wire.send(self._out, wire.HEADER, wire.pack_json(values))

    def bytes(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), wire.MOST):
            wire.send(self._out, wire.BYTES, view[start : start + wire.MOST])


class Elsewhere(io.RawIOBase):
    """The file: its bytes stay with the owner and are asked for, so that there is one copy of them."""

    def __init__(self, into: BinaryIO, out: BinaryIO, size: int) -> None:
        self._in, self._out, self._size, self._at = into, out, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError("before the start of the file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at, wire.MOST))
        if count:
            wire.send(self._out, wire.READ, wire.SPAN.pack(self._at, count))
            kind, body = wire.receive(self._in)
            if kind != wire.BYTES or len(body) != count:
                raise wire.WireError("not the bytes that were asked for")
            buffer[:count] = body
            self._at += count
        return count


def main() -> None:
    into, out = _pipes()
    try:
        _serve(sys.argv[-1], into, out)
    except wire.WireError:  # the owner is gone
        os._exit(0)


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """Both pipes under numbers of their own: what a library prints goes nowhere."""
    into, out = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return os.fdopen(into, "rb"), os.fdopen(out, "wb")


def _serve(room: str, into: BinaryIO, out: BinaryIO) -> None:
    read: Read = import_module(f"pocketgem.media.{READERS[room]}").read
    confine = import_module("pocketgem.media.confine").confine
    wire.send(out, wire.READY, wire.pack_json({"confined": confine(LIMITS.address_space)}))
    while True:
        kind, body = wire.receive(into)
        if kind != wire.ASK:
            raise wire.WireError("not a question")
        _answer(read, wire.unpack_json(body), into, out)


def _answer(read: Read, question: Question, into: BinaryIO, out: BinaryIO) -> None:
    _end_after(int(number(question, "time")) + GRACE)
    file = io.BufferedReader(Elsewhere(into, out, int(number(question, "size"))), 1 << 18)
    try:
        read(question, file, Answer(out))
    except wire.WireError:
        raise
    except RefusedError as refused:
        _refuse(out, str(refused))
    except MemoryError:
        _refuse(out, "needs more memory than decoding may take here")
    except Exception as error:  # whatever a decoder raises of a stranger's bytes
        _refuse(out, f"is damaged or cut short ({_brief(error)})")
    else:
        wire.send(out, wire.DONE)
    _end_after(0)


def _end_after(seconds: int) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _refuse(out: BinaryIO, why: str) -> None:
    wire.send(out, wire.REFUSED, wire.pack_json({"why": why[:1000]}))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def number(question: Question, name: str) -> float:
    value = question.get(name)
    if not isinstance(value, int | float):
        raise wire.WireError(f"{name} is no number")
    return value
