"""Rows of media that were seen before, by content: the ones used last, in so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from torch import Tensor

from pocketgem.senses.medium import Medium


@dataclass(frozen=True, eq=False)
class Encoded:
    """A medium and its rows: ``[count, hidden_size]`` for each run."""

    medium: Medium
    vectors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(vectors.nbytes for vectors in self.vectors)


class Shelf:
    """At most ``room`` bytes. Thread-safe."""

    def __init__(self, room: int) -> None:
        self.room, self.nbytes, self.hits, self.misses = room, 0, 0, 0
        self._kept: OrderedDict[bytes, Encoded] = OrderedDict()
        self._lock = Lock()

    def find(self, key: bytes) -> Encoded | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, encoded: Encoded) -> None:
        """Keep it, and let go of those that were not used for longest. One larger than the room is not kept."""
        with self._lock:
            if encoded.nbytes > self.room or encoded.medium.key in self._kept:
                return
            self._kept[encoded.medium.key] = encoded
            self.nbytes += encoded.nbytes
            while self.nbytes > self.room:
                _, old = self._kept.popitem(last=False)
                self.nbytes -= old.nbytes

    def count(self, *, hit: bool) -> None:
        with self._lock:
            self.hits += hit
            self.misses += not hit

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self.nbytes = 0
