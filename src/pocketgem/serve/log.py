"""What happened, a JSON object a line: who asked what, how it ended, how long it took. Never what was said."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from starlette.types import Scope

from pocketgem.errors import InputError
from pocketgem.serve.call import Call

LONGEST = 200  # characters of a text that came from outside


class Log:
    """Lines to a stream, one at a time. A full disk does not stop the server."""

    def __init__(self, stream: TextIO | None = None, *, requests: bool = True) -> None:
        """``requests``: whether every request gets a line; faults do in any case."""
        self.stream, self.requests, self._lock = stream or sys.stderr, requests, threading.Lock()

    @classmethod
    def to_file(cls, path: Path, *, requests: bool = True) -> Log:
        """Lines at the end of a file that only its owner can read. Raises InputError."""
        try:
            stream = open(path, "a", encoding="utf-8", opener=_private)  # noqa: SIM115 - open as long as the server
        except OSError as error:
            raise InputError(f"{path}: the log cannot be written: {error.strerror}") from error
        return cls(stream, requests=requests)

    def write(self, event: str, **more: object) -> None:
        """One line. Control characters and all that is not ASCII are escaped."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        line = json.dumps({"time": stamp, "event": event, **more}, default=str).replace("\x7f", "\\u007f")
        with self._lock, suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()

    def request(self, call: Call, scope: Scope, error: Exception | None) -> None:
        """A request that is over."""
        if call.status >= 500 and error is not None:
            self.fault(error, request=call.id)
        if not self.requests:
            return
        client = scope.get("client")
        self.write(
            "request",
            request=call.id,
            client=client[0] if client else None,
            key=call.key,
            method=scope["method"][:20],
            path=scope["path"][:LONGEST],
            status=call.status,
            ms=round((time.monotonic() - call.began) * 1000, 1),
            **call.note,
        )

    def fault(self, error: BaseException, **more: object) -> None:
        """Something broke: its kind and the places in the program, but not its message, which may quote a prompt."""
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        self.write("fault", **more, error=type(error).__name__, at=places)


class Bridge(logging.Handler):
    """What uvicorn has to say, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.log.fault(error)
        else:
            first = record.getMessage().strip().partition("\n")[0]
            told = "what was left was cut off" if first.startswith("Traceback") else first
            self.log.write("server", message=told[:LONGEST])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
