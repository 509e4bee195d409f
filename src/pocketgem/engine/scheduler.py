"""Whose tokens run next: integers and queues, never a tensor.

Every sequence past its prompt advances by one token each step. Those that still read their prompts share a chunk: half
of it is the oldest one's, who thus always gets on, and the rest goes to who has the least left, so that a short
question need not wait for a long document. While others write, the chunk is a smaller one: they stand still meanwhile.

When cached tokens would pass the budget, the youngest sequence gives its place back and goes on later.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem.engine.inserts import uncut
from pocketgem.engine.queue import FairQueue
from pocketgem.engine.request import Sequence
from pocketgem.errors import PromptError
from pocketgem.memory.step_bytes import PREFILL_CHUNK

CHUNK_BESIDE = 64  # prompt tokens of a step in which others write


@dataclass(frozen=True)
class Turn:
    """``count`` next ids of ``sequence``; ``samples``: whether the last of them is also the last id known."""

    sequence: Sequence
    count: int
    samples: bool


class Scheduler:
    """Owners take turns, within these limits.

    chunk: prompt tokens a step; chunk_beside: while others write; max_running: sequences side by side; max_cached:
    tokens cached in all (None: no limit).
    """

    def __init__(
        self,
        *,
        chunk: int = PREFILL_CHUNK,
        chunk_beside: int = CHUNK_BESIDE,
        max_running: int = 16,
        max_cached: int | None = None,
    ) -> None:
        limits = {"chunk": chunk, "chunk_beside": chunk_beside, "max_running": max_running, "max_cached": max_cached}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise PromptError(f"{name} is {value}, expected at least 1")
        self.chunk, self.chunk_beside = chunk, chunk_beside
        self.max_running, self.max_cached = max_running, max_cached
        self.waiting = FairQueue()
        self.running: list[Sequence] = []  # the oldest first

    def check(self, tokens: int) -> None:
        """Raise PromptError when a prompt of so many tokens could never fit."""
        if self.max_cached is not None and tokens > self.max_cached:
            raise PromptError(f"a prompt of {tokens} tokens is over the cache's {self.max_cached}")

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PromptError when it alone could never fit."""
        self.check(sequence.num_ids)
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Let waiting sequences in while there is room; returns them, for the caller to give them a cache."""
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_running and self._fits(self.waiting.first.num_ids):
            self.running.append(self.waiting.take())
            admitted.append(self.running[-1])
        return admitted

    def plan(self) -> tuple[list[Turn], list[Sequence]]:
        """The next step's turns, and the sequences that were preempted to make room for them."""
        preempted = self._make_room()
        left = [sequence.num_ids - sequence.num_computed for sequence in self.running]
        reading = [at for at, count in enumerate(left) if count > 1]
        shares = self._shares([left[at] for at in reading], len(reading) < len(left)) if reading else []
        counts = [1] * len(left)
        for at, share in zip(reading, shares, strict=True):
            one = self.running[at]
            counts[at] = uncut(one.request.inserts, one.num_computed, share)
        planned = zip(self.running, counts, left, strict=True)
        return [Turn(one, count, count == all) for one, count, all in planned if count], preempted

    def _shares(self, left: list[int], beside: bool) -> list[int]:
        """How many tokens of their prompts each may read, the oldest first."""
        budget = min(self.chunk, self.chunk_beside) if beside else self.chunk
        shares = [0] * len(left)
        shares[0] = min(left[0], -(-budget // 2))
        budget -= shares[0]
        for at in sorted(range(len(left)), key=lambda at: (left[at], at)):
            more = min(left[at] - shares[at], budget)
            shares[at] += more
            budget -= more
        return shares

    # ---- tokens cached ---------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Tokens that will be cached once every running sequence has computed all it knows."""
        return sum(sequence.num_ids for sequence in self.running)

    @property
    def free(self) -> int | None:
        """Tokens that there is room for beside them; below 0 where a single sequence outgrows the budget."""
        return None if self.max_cached is None else self.max_cached - self.used

    def _fits(self, more: int) -> bool:
        return self.max_cached is None or not self.running or self.used + more <= self.max_cached

    def _make_room(self) -> list[Sequence]:
        preempted: list[Sequence] = []
        while self.max_cached is not None and self.used > self.max_cached and len(self.running) > 1:
            youngest = self.running.pop()
            youngest.num_computed = 0
            self.waiting.put_back(youngest)
            preempted.append(youngest)
        return preempted
