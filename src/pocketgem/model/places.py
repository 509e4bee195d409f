"""Where the new rows of a step go and which keys they see, in every layer at once: addresses and counts, for kernels.

``Step.reserve`` says the same for one layer, a slot for each sequence. Decode needs it of all layers at each token, and
a store stays where it is for 64 of them at the least: so what there is to know of a sequence's buffers is noted once,
and looked up again when one of them has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from pocketgem.memory.kv_rows import Room
from pocketgem.model.cache import Cache, LayerStore, Step

Numbers = npt.NDArray[np.int64]
EVERYTHING = 1 << 62  # the window of a layer that has none


@dataclass(frozen=True, eq=False)
class Standing:
    """How the buffers of one sequence lie. numbers ``[layers, 5]``: addresses of keys and of values, bytes of a row,
    position of the first row, window. until: the tokens for which there is room."""

    stores: Sequence[LayerStore]
    rooms: Sequence[Room]
    numbers: Numbers
    until: int

    @classmethod
    def of(cls, cache: Cache, layers: Sequence[int]) -> Self:
        stores = [cache.stores[index] for index in layers]
        rooms = [store.room for store in stores]
        numbers = [(*store.places, store.room.first, store.room.window or EVERYTHING) for store in stores]
        return cls(stores, rooms, np.array(numbers, np.int64), min(room.first + room.capacity for room in rooms))

    def holds(self, length: int) -> bool:
        """Whether it is still so, and for so many tokens."""
        return length <= self.until and all(
            store.room is room for store, room in zip(self.stores, self.rooms, strict=True)
        )


class Places:
    """The places of every step, for layers that write."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self._known: WeakKeyDictionary[Cache, Standing] = WeakKeyDictionary()

    def of(self, step: Step) -> tuple[Numbers, Numbers]:
        """``[spans, 2]``: the rows from and up to which they are a sequence's. ``[layers, spans, 6]``: where its keys
        and its values are written, where those begin that it sees, the position of the first of these, and how many
        there are with the new ones. Raises RunError as ``LayerStore.reserve`` does."""
        rows = np.array([(span.start, span.stop) for span in step.spans], np.int64)
        counts = rows[:, 1] - rows[:, 0]
        standing = [self._standing(span.cache, span.stop - span.start) for span in step.spans]
        numbers = np.stack([one.numbers for one in standing], 1)  # [layers, spans, 5]
        keys, values, size, first, window = (numbers[:, :, i] for i in range(5))
        lengths = np.array([span.cache.length for span in step.spans], np.int64)
        oldest = np.maximum(lengths - window + 1, 0)
        begin, used = (oldest - first) * size, (lengths - first) * size  # in bytes
        if begin.min() < 0:  # says which and why
            for index in self.layers:
                step.reserve(index)
        places = (keys + used, values + used, keys + begin, values + begin, oldest, lengths + counts - oldest)
        return rows, np.stack(places, 2)

    def _standing(self, cache: Cache, count: int) -> Standing:
        known, stores = self._known.get(cache), cache.stores
        if known is None or not known.holds(cache.length + count):
            for index in self.layers:
                stores[index].reserve(cache.length, count)
            known = self._known[cache] = Standing.of(cache, self.layers)
        return known
