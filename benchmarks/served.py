"""A server in a process of its own, for benchmarks that ask it: ours, or another that speaks the same API."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 300.0  # seconds until a model is loaded


@dataclass(frozen=True)
class Served:
    url: str
    pid: int
    log: Path

    def rss(self) -> int:
        """Resident bytes of the process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has ended")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return str(answer.read().decode())


@contextmanager
def served(model: str, *options: str) -> Iterator[Served]:
    """``pocketgem serve MODEL`` with these options, once it is ready."""
    command = [sys.executable, "-m", "pocketgem", "serve", model, "--quiet", "--no-access-log", *options]
    with process(command) as found:
        yield found


@contextmanager
def process(command: Sequence[str], port_option: str = "--port") -> Iterator[Served]:
    """A command that serves at the port it is given, ``/health`` included. Raises RuntimeError if it ends too early."""
    port = free_port()
    with (
        tempfile.NamedTemporaryFile("w+", prefix="served-", suffix=".log") as log,
        subprocess.Popen([*command, port_option, str(port)], stdout=log, stderr=log) as child,
    ):
        try:
            found = Served(f"http://127.0.0.1:{port}", child.pid, Path(log.name))
            _wait(found, child)
            yield found
        finally:
            child.terminate()
            child.wait(60)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(found: Served, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if child.poll() is not None:
            raise RuntimeError(f"the server ended with {child.returncode}: {found.log.read_text()[-2000:]}")
        try:
            found.get("/health")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("the server is not ready")
