"""What the operating system tells of the computer, read safely: files and sysctl entries may be missing or nonsense."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_FILE = 1 << 20  # bytes; /proc/cpuinfo of 1024 processors is about this long
MAX_CPUS = 1 << 14  # numbers in one list


def _sysctl(name: str) -> str | None:
    """An entry of macOS as text, numbers in decimal; None where there is none."""
    function = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    size, buffer = ctypes.c_size_t(1 << 12), ctypes.create_string_buffer(1 << 12)
    if function is None or function(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    raw = buffer.raw[: size.value]
    is_number = size.value in (4, 8) and not name.startswith("machdep")
    return str(int.from_bytes(raw, "little")) if is_number else raw.rstrip(b"\0").decode("utf-8", "replace")


def _affinity() -> frozenset[int] | None:
    """The logical processors this process may use; None where the system does not tell."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


@dataclass(frozen=True)
class System:
    """One computer; tests make up others."""

    name: str  # as platform.system() says it
    machine: str  # as platform.machine() says it
    logical: int
    root: Path = Path("/")
    sysctl: Callable[[str], str | None] = _sysctl
    affinity: Callable[[], frozenset[int] | None] = _affinity

    def text(self, path: str) -> str:
        """A file under the root, its first megabyte, without the line's end; empty if it cannot be read."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(MAX_FILE).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return ""

    def number(self, path: str) -> int | None:
        """The whole number that is all of a file."""
        return whole(self.text(path))

    def processors(self, path: str) -> frozenset[int]:
        """A file's list of logical processors, as in ``0-3,8``."""
        return frozenset(_listed(self.text(path)))

    def entry(self, name: str) -> int | None:
        """A number among macOS's sysctl entries."""
        return whole(self.sysctl(name) or "")


def this_system() -> System:
    return System(platform.system(), platform.machine(), os.cpu_count() or 1)


def whole(text: str) -> int | None:
    """A number that is not negative, if the text is one of at most 18 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _listed(text: str) -> Iterable[int]:
    for part in text.split(",") if len(text) < MAX_FILE else ():
        first, _, last = part.partition("-")
        low, high = whole(first.strip()), whole((last or first).strip())
        if low is not None and high is not None and low <= high < MAX_CPUS:
            yield from range(low, high + 1)
