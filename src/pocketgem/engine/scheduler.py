"""Whose tokens run next: integers and queues, never a tensor.

Every running sequence advances each step: those past their prompt by one token, one that still reads its prompt by a
chunk. When cached tokens would pass the budget, the youngest sequence gives its place back and starts over later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pocketgem.engine.request import Sequence
from pocketgem.errors import PromptError
from pocketgem.memory.step_bytes import PREFILL_CHUNK


@dataclass(frozen=True)
class Turn:
    """``count`` next ids of ``sequence``; ``samples``: whether the last of them is also the last id known."""

    sequence: Sequence
    count: int
    samples: bool


class Scheduler:
    """First come, first served, within three limits.

    chunk: prompt tokens a step; max_running: sequences side by side; max_cached: tokens cached in all (None: no limit).
    """

    def __init__(self, *, chunk: int = PREFILL_CHUNK, max_running: int = 16, max_cached: int | None = None) -> None:
        for name, value in (("chunk", chunk), ("max_running", max_running), ("max_cached", max_cached)):
            if value is not None and value < 1:
                raise PromptError(f"{name} is {value}, expected at least 1")
        self.chunk, self.max_running, self.max_cached = chunk, max_running, max_cached
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def check(self, tokens: int) -> None:
        """Raise PromptError when a prompt of so many tokens could never fit."""
        if self.max_cached is not None and tokens > self.max_cached:
            raise PromptError(f"a prompt of {tokens} tokens is over the cache's {self.max_cached}")

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PromptError when it alone could never fit."""
        self.check(sequence.num_ids)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Let waiting sequences in while there is room; returns them, for the caller to give them a cache."""
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_running and self._fits(self.waiting[0].num_ids):
            self.running.append(self.waiting.popleft())
            admitted.append(self.running[-1])
        return admitted

    def plan(self) -> tuple[list[Turn], list[Sequence]]:
        """The next step's turns, and the sequences that were preempted to make room for them."""
        preempted = self._make_room()
        turns, budget = [], self.chunk
        for sequence in self.running:
            left = sequence.num_ids - sequence.num_computed
            count = min(left, budget) if left > 1 else 1
            if count:
                budget -= count if left > 1 else 0
                turns.append(Turn(sequence, count, samples=count == left))
        return turns, preempted

    def _fits(self, more: int) -> bool:
        return self.max_cached is None or not self.running or self._cached() + more <= self.max_cached

    def _cached(self) -> int:
        """Tokens that will be cached once every running sequence has computed all it knows."""
        return sum(sequence.num_ids for sequence in self.running)

    def _make_room(self) -> list[Sequence]:
        preempted: list[Sequence] = []
        while self.max_cached is not None and self._cached() > self.max_cached and len(self.running) > 1:
            youngest = self.running.pop()
            youngest.num_computed = 0
            self.waiting.appendleft(youngest)
            preempted.append(youngest)
        return preempted
