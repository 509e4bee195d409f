"""The parent's side: a worker process is started, asked, and stopped, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pocketgem
from pocketgem.bench.subjects import Subject
from pocketgem.errors import RunError

PATIENCE = 10.0  # seconds a worker has to leave after its commands ended


class Worker:
    """One subject in a process of its own. It has loaded its model once ``ready`` returned."""

    def __init__(self, subject: Subject, options: Mapping[str, object]) -> None:
        self.subject = subject
        self._folder = tempfile.TemporaryDirectory(prefix="pocketgem-bench-")
        self._log = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 - closed with the worker
        call = [subject.python, "-m", subject.worker, json.dumps({**options, **subject.options})]
        self.began = time.perf_counter()
        # A session of its own: Ctrl-C reaches the parent alone, which then stops the workers.
        self._process = subprocess.Popen(
            call,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment(),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        """An interpreter that does not have this package must find it, and none of its neighbours in site-packages."""
        home = Path(self._folder.name) / "path"
        home.mkdir()
        (home / "pocketgem").symlink_to(Path(pocketgem.__file__).parent.resolve(), target_is_directory=True)
        paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}

    def ready(self) -> dict[str, Any]:
        """Wait until the model is loaded; what the worker says of itself."""
        return self._answer()

    def ask(self, command: Mapping[str, object]) -> dict[str, Any]:
        """Have one command carried out. Raises RunError, with the worker's last words, when it fails."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise RunError(f"{self.subject.name}: {self._last_words()}") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RunError(f"{self.subject.name}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self.subject.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {self._process.returncode}: {lines[-1][:300] if lines else 'no message'}"

    def stop(self) -> None:
        """End its commands, and the process itself if that is not enough. Calling it again does nothing."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(PATIENCE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.kill()
        self._close()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()
