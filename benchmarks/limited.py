"""Run a command under a memory limit that the kernel enforces, and print the kernel's own numbers.

    python -m benchmarks.limited 6GiB COMMAND ...

A memory cgroup (version 1 or 2) is made below this process's own; it counts what the command's processes have in
memory, the page cache of the files they read included. Needs the right to make one: root, or a delegated group.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketgem.sizes import parse_size

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Held:
    """What the kernel saw. Bytes; ``at_limit``: times the limit was met (and pages of files were given back)."""

    rc: int
    limit: int
    peak: int  # of the group, page cache included
    at_limit: int
    killed: int
    most_resident: int  # VmHWM of the largest process
    waited_for_pages: int  # times it stopped for a page that had to be read


@dataclass(frozen=True)
class _Files:
    """The names of one version's files, and the keys in them."""

    limit: str
    peak: str
    events: str
    met: str
    killed: str


_V1 = _Files("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "memory.failcnt", "oom_kill")
_V2 = _Files("memory.max", "memory.peak", "memory.events", "memory.events", "oom_kill")


class Group:
    """A memory cgroup of its own, removed at the end."""

    def __init__(self, limit: int) -> None:
        """Raises OSError where no group can be made."""
        parent, self.files = _own_group()
        self.path = parent / f"pocketgem-{os.getpid()}-{secrets.token_hex(2)}"
        self.path.mkdir()
        (self.path / self.files.limit).write_text(str(limit))
        self.limit = limit

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.rmdir()

    def enter(self) -> None:
        """Move this process into the group: for a child, before it becomes the command."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def number(self, name: str, key: str | None = None) -> int:
        text = (self.path / name).read_text()
        return int(text) if key is None else dict(_pairs(text)).get(key, 0)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: object) -> Held:
        """Run to the end. ``options`` go to ``subprocess.Popen``."""
        child = subprocess.Popen(command, preexec_fn=self.enter, env=environment, **options)  # type: ignore[call-overload]
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a group left behind would stay for ever
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        rc = os.waitstatus_to_exitcode(status)
        met = self.number(self.files.met) if self.files is _V1 else self.number(self.files.met, "max")
        return Held(
            rc=rc,
            limit=self.limit,
            peak=self.number(self.files.peak),
            at_limit=met,
            killed=self.number(self.files.events, self.files.killed),
            most_resident=usage.ru_maxrss * 1024,
            waited_for_pages=usage.ru_majflt,
        )


def _pairs(text: str) -> list[tuple[str, int]]:
    return [(key, int(value)) for key, value in (line.split() for line in text.splitlines()) if value.isdecimal()]


def _own_group() -> tuple[Path, _Files]:
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in groups:
        return ROOT / "memory" / groups["memory"].lstrip("/"), _V1
    return ROOT / groups[""].lstrip("/"), _V2


def main() -> int:
    limit, *command = sys.argv[1:]
    with Group(parse_size(limit)) as group:
        held = group.run(command)
    print(json.dumps(asdict(held)), file=sys.stderr)
    return held.rc


if __name__ == "__main__":
    sys.exit(main())
