"""What one rendering of a stranger's template may cost, and what is left of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

MAX_SOURCE = 1 << 17  # characters; Gemma 4's has 16 thousand, and compiling takes time before any budget runs


class LimitError(Exception):
    """A template asked for more than its budget. Never leaves the text room: ``ChatTemplate`` renames it."""


@dataclass(frozen=True)
class Limits:
    """Gemma 4's own template takes 1 ms for a short chat, and 0.6 s for 1000 messages: at each it looks back at all."""

    seconds: float = 3.0
    steps: int = 5_000_000  # operations
    work: int = 1 << 26  # characters read or written by them, all together
    output: int = 1 << 22  # characters of prompt


class Budget:
    """What is left of the limits in one rendering. The clock starts when it is made."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._steps, self._work = limits, limits.steps, limits.work
        self._deadline = time.monotonic() + limits.seconds

    def spend(self, work: int = 1) -> None:
        """One step, and ``work`` characters. Raises LimitError."""
        self._steps -= 1
        self._work -= work
        if self._steps < 0:
            raise LimitError(f"it takes more than {self._limits.steps} steps")
        if self._work < 0:
            raise LimitError(f"it handles more than {self._limits.work} characters")
        if work > 4096 or self._steps % 32 == 0:
            self.look_at_clock()

    def look_at_clock(self) -> None:
        """Raises LimitError when the time is up."""
        if time.monotonic() >= self._deadline:
            raise LimitError(f"it takes longer than {self._limits.seconds:g} s")
