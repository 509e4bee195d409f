"""From which positions a past can go on, in integers alone.

Full-attention layers can be cut at any token. Sliding layers must still have the rows that a query at the position
sees. An interval is (first, stop): rows of the positions from ``first`` up to ``stop``, that one not included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocketgem.config import ModelConfig
from pocketgem.memory.kv_rows import Room

Interval = tuple[int, int]


@dataclass(frozen=True)
class Slide:
    """How far sliding layers look back: ``window`` positions, with the query's own; None where no layer slides."""

    window: int | None

    @classmethod
    def of(cls, config: ModelConfig) -> Slide:
        """The widest window of the model's: all of one model are alike."""
        return cls(max((layer.window for layer in config.layers if layer.writes_kv and layer.window), default=None))

    def oldest(self, position: int) -> int:
        """The first row that a query at ``position`` sees; ``position`` itself where nothing slides."""
        return position if self.window is None else Room.empty(self.window).oldest(position)

    def needs(self, ends: Iterable[int]) -> list[Interval]:
        """The rows that queries at these positions see, ascending."""
        return merged((self.oldest(end), end) for end in sorted(ends))

    def best(self, held: Iterable[Interval], limit: int) -> int:
        """The last position up to ``limit`` that rows of ``held`` let a sequence go on from."""
        if self.window is None:
            return limit
        ends = ((first, min(stop, limit)) for first, stop in held)
        return max((end for first, end in ends if first <= self.oldest(end) and first < end), default=0)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same rows in as few intervals as do; they come in the order of their beginnings."""
    found: list[Interval] = []
    for first, stop in intervals:
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        elif first < stop:
            found.append((first, stop))
    return found


def without(wanted: Interval, held: Sequence[Interval]) -> list[Interval]:
    """What of ``wanted`` is not in ``held``, which ascend and do not overlap."""
    found, at = [], wanted[0]
    for first, stop in held:
        if stop > at and first < wanted[1]:
            found.append((at, first))
            at = max(at, stop)
    found.append((at, wanted[1]))
    return [(first, stop) for first, stop in found if first < stop]


def length(intervals: Iterable[Interval]) -> int:
    return sum(stop - first for first, stop in intervals)
