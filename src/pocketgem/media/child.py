"""The owner's side of one decoder process: started clean, asked, and ended when it is late."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pocketgem
from pocketgem.errors import MediaError, RunError
from pocketgem.media import wire

START_SECONDS = 60.0  # to import its libraries, from a cold and slow disk
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from pocketgem.media.worker import main; sys.argv[2:] = []; main()"


Messages = Generator[tuple[bytes, bytes], None, None]


class LateError(Exception):
    """The decoder did not end in time, and was ended."""


class DiedError(Exception):
    """The decoder died, or said what no decoder says."""


class Child:
    """One process for one kind of files. Not thread-safe: one request at a time."""

    def __init__(self, room: str) -> None:
        """Raises RunError if it does not start."""
        self.healthy, self.asked = False, 0
        self._process = subprocess.Popen(
            _command(room), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, cwd="/" if sys.platform != "win32" else None,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._end = weakref.finalize(self, _ended, self._process)  # where nobody closes the Decoder, and at the exit
        self.confined = self._start(room)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self, room: str) -> tuple[str, ...]:
        try:
            with self._within(START_SECONDS):
                kind, body = wire.receive(self._out)
            said = wire.unpack_json(body).get("confined")
            if kind != wire.READY or not isinstance(said, list):
                raise wire.WireError("not a decoder")
        except (wire.WireError, LateError) as error:
            self.end()
            raise RunError(f"the decoder of a {room} does not start ({error}): is pocketgem[media] whole?") from error
        self.healthy = True
        return tuple(str(line) for line in said)

    def ask(self, question: dict[str, object], data: memoryview, seconds: float) -> Messages:
        """Headers and bytes of the answer, as they come. A child that is not asked to the end is not used again.

        Raises MediaError with the decoder's reason, LateError, DiedError.
        """
        self.healthy, self.asked = False, self.asked + 1
        try:
            with self._within(seconds):
                wire.send(self._in, wire.ASK, wire.pack_json({**question, "size": len(data), "time": seconds}))
                refused = yield from self._answers(data)
        except wire.WireError as error:
            raise DiedError(str(error)) from error
        self.healthy = True
        if refused is not None:
            raise MediaError(refused)

    def _answers(self, data: memoryview) -> Generator[tuple[bytes, bytes], None, str | None]:
        """Returns the reason of a refusal, or None."""
        while True:
            kind, body = wire.receive(self._out)
            if kind == wire.READ:
                self._lend(body, data)
            elif kind in (wire.HEADER, wire.BYTES):
                yield kind, body
            elif kind == wire.REFUSED:
                return _plain(wire.unpack_json(body).get("why"))
            elif kind == wire.DONE:
                return None
            else:
                raise wire.WireError(f"a message of kind {kind!r}")

    def _lend(self, body: bytes, data: memoryview) -> None:
        if len(body) != wire.SPAN.size:
            raise wire.WireError("no span")
        start, count = wire.SPAN.unpack(body)
        if count > wire.MOST or start + count > len(data):
            raise wire.WireError("bytes that are not there")
        wire.send(self._in, wire.BYTES, data[start : start + count])

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Ends the process after so many seconds, which ends every wait for it."""
        late, process = threading.Event(), self._process

        def stop() -> None:  # holds the process and not this: a timer's thread may outlive its owner a little
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except wire.WireError as error:
            if late.is_set():
                raise LateError(f"not done after {seconds:.1f} s") from error
            raise
        finally:
            timer.cancel()
            timer.join()  # from here on it ends nobody
        if late.is_set():
            raise LateError(f"not done after {seconds:.1f} s")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self.healthy = False
        self._end()


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # bytes that nobody took
            if pipe is not None:
                pipe.close()
    process.wait()


def _command(room: str) -> list[str]:
    """A clean interpreter: no environment, no site, no current folder; only where our modules are found."""
    here = str(Path(pocketgem.__file__).resolve().parents[1])
    folders = [folder for folder in sys.path if Path(folder).is_absolute()]
    return [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, room, here, *folders]


def _plain(why: object) -> str:
    """A reason as one line that a terminal and a log can bear."""
    text = why if isinstance(why, str) else "cannot be read"
    return "".join(c if c.isprintable() else " " for c in text)[:400]
