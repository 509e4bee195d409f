"""Pasts worth keeping: the caches of finished sequences, so that a chat's next turn does not read its history again.

A sliding window cannot be cut back, so an entry serves only prompts that begin with all of its ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar


class Forkable(Protocol):
    """A past that can be continued twice."""

    def fork(self) -> Self: ...


CacheT = TypeVar("CacheT", bound=Forkable)


class PrefixStore(Generic[CacheT]):
    """At most ``capacity`` (ids, cache) pairs, the least recently used going first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: dict[tuple[int, ...], CacheT] = {}

    def keep(self, ids: Sequence[int], cache: CacheT) -> None:
        """Keep the cache of ``ids``; it must not be written afterwards."""
        if self.capacity:
            self.entries.pop(tuple(ids), None)
            self.entries[tuple(ids)] = cache
        while len(self.entries) > self.capacity:
            del self.entries[next(iter(self.entries))]

    def find(self, prompt: Sequence[int]) -> tuple[int, CacheT | None]:
        """(tokens reused, a fork to continue) of the longest entry that begins the prompt, one id left to compute."""
        known = tuple(prompt)
        fitting = [ids for ids in self.entries if len(ids) < len(known) and ids == known[: len(ids)]]
        if not fitting:
            return 0, None
        best = max(fitting, key=len)
        self.entries[best] = self.entries.pop(best)
        return len(best), self.entries[best].fork()

    @property
    def tokens(self) -> int:
        """Tokens kept."""
        return sum(map(len, self.entries))

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return 0
