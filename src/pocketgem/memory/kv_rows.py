"""How many rows the stores of keys and values have, in integers alone: what ``model/cache.py`` does with tensors.

The cache follows this page row by row, and a plan walks through it before there is a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pocketgem.config import LayerConfig, ModelConfig

SLACK = 64  # decode steps between two moves of a sliding buffer
FIRST_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class Room:
    """The rows of one layer of one sequence: ``capacity`` of them, row 0 at position ``first``.

    limit: tokens the sequence will have at the most; doubling stops there.
    """

    window: int | None
    limit: int | None
    first: int
    capacity: int

    @classmethod
    def empty(cls, window: int | None, limit: int | None = None) -> Room:
        """What a new sequence begins with."""
        return cls(window, limit, 0, FIRST_CAPACITY if window is None else min(window + SLACK, FIRST_CAPACITY))

    def at(self, first: int, count: int) -> Room:
        """The room of ``count`` rows from position ``first`` on, as if what came before had been left behind."""
        return Room(self.window, self.limit, first, self.capacity if count <= self.capacity else self._capacity(count))

    def oldest(self, start: int) -> int:
        """The first position that a query at ``start`` still sees."""
        return 0 if self.window is None else max(0, start - self.window + 1)

    def with_room(self, start: int, count: int) -> Room:
        """With room for ``count`` rows from position ``start`` on: itself if there is, else without what nobody sees.

        In a room of the same capacity rows move to the front of the same buffers.
        """
        if start - self.first + count <= self.capacity:
            return self
        oldest = self.oldest(start)
        return Room(self.window, self.limit, oldest, self._capacity(start - oldest + count))

    def _capacity(self, needed: int) -> int:
        """A full layer doubles. A sliding one takes its window and slack, and more while a long chunk passes."""
        if self.window is None:
            return max(needed, 2 * self.capacity if self.limit is None else min(2 * self.capacity, self.limit))
        return max(needed, min(self.window + SLACK, 2 * self.capacity))


def row_bytes(layer: LayerConfig, itemsize: int) -> int:
    """Bytes of one token's keys and values in one layer."""
    return 2 * layer.num_kv_heads * layer.head_dim * itemsize


@dataclass(frozen=True)
class KindCost:
    """All layers of one kind while a sequence grows to its full length, in bytes.

    held: of the buffers at the end of the prompt. touched: the most of their rows that were ever written, which is what
    was resident. moving: of one layer's old buffers at its last growth, there beside the new ones.
    """

    kind: str
    layers: int
    window: int | None
    token: int  # bytes a token, until the window is full
    held: int
    touched: int
    moving: int


def chunks_of(tokens: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, count) of every step that reads a prompt."""
    return ((start, min(chunk, tokens - start)) for start in range(0, tokens, chunk))


def kv_costs(config: ModelConfig, tokens: int, chunk: int, itemsize: int) -> tuple[KindCost, ...]:
    """What the keys and values of one sequence cost when a prompt of ``tokens``, its limit, was read in chunks."""
    writers = [layer for layer in config.layers if layer.writes_kv]
    kinds = dict.fromkeys((layer.kind, layer.window) for layer in writers)
    return tuple(
        _cost([layer for layer in writers if (layer.kind, layer.window) == kind], tokens, chunk, itemsize)
        for kind in kinds
    )


def _cost(layers: list[LayerConfig], tokens: int, chunk: int, itemsize: int) -> KindCost:
    window = layers[0].window
    capacity, touched, moved = _walk(Room.empty(window, tokens), chunks_of(tokens, chunk))
    each = [row_bytes(layer, itemsize) for layer in layers]
    return KindCost(
        kind=layers[0].kind,
        layers=len(layers),
        window=window,
        token=sum(each),
        held=capacity * sum(each),
        touched=touched * sum(each),
        moving=moved * max(each),
    )


def _walk(room: Room, steps: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """Rows of a buffer after these steps, the most that were ever written, and those it had before it last grew."""
    written = most = moved = 0
    for start, count in steps:
        after = room.with_room(start, count)
        if after.capacity != room.capacity:
            written, moved = start - after.first, room.capacity
        room, written = after, max(written, start - after.first + count)
        most = max(most, written)
    return room.capacity, most, moved
