"""Pieces of a past that outlive their sequence, and a new cache made of them.

Full-attention layers can be cut at any token: their rows are kept in segments that several pasts share. Sliding layers
forget, so what they still know at one position, the rows of their windows before it, is kept as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.errors import RunError
from pocketgem.memory.kv_rows import Room
from pocketgem.model.cache import Cache, LayerStore

Pair = tuple[Tensor, Tensor]  # keys and values, each [rows, kv_heads, head_dim]


@dataclass(frozen=True, eq=False)
class Rows:
    """Keys and values of the full layers at ``count`` positions in a row. Never written to."""

    count: int
    layers: Mapping[int, Pair]

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers.values())

    def joined(self, others: Sequence[Rows], count: int) -> Rows:
        """The first ``count`` positions of these and the others', which follow."""
        pieces = [self, *others]
        layers = {
            index: tuple(torch.cat([piece.layers[index][i] for piece in pieces])[:count] for i in range(2))
            for index in self.layers
        }
        return Rows(count, {index: (k, v) for index, (k, v) in layers.items()})

    def cut(self, at: int) -> tuple[Rows, Rows]:
        """The first ``at`` and the others, in memory of their own: one may go and the other stay."""
        head = {index: (k[:at].clone(), v[:at].clone()) for index, (k, v) in self.layers.items()}
        tail = {index: (k[at:].clone(), v[at:].clone()) for index, (k, v) in self.layers.items()}
        return Rows(at, head), Rows(self.count - at, tail)


@dataclass(frozen=True, eq=False)
class LayerWindow:
    """What one sliding layer knows: rows from position ``first`` on. ``size``: its window."""

    size: int
    first: int
    k: Tensor
    v: Tensor

    def oldest(self, position: int) -> int:
        """The first row that a query at ``position`` sees."""
        return Room(self.size, None, 0, 0).oldest(position)


@dataclass(frozen=True, eq=False)
class Window:
    """What the sliding layers know at position ``end``. Never written to."""

    end: int
    layers: Mapping[int, LayerWindow]

    @property
    def nbytes(self) -> int:
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers.values())

    def serves(self, position: int) -> bool:
        """Whether a sequence can go on from ``position`` with it: its end, or before it while nothing slid out."""
        return position <= self.end and all(layer.first <= layer.oldest(position) for layer in self.layers.values())


@dataclass(frozen=True, eq=False)
class Stored:
    """A past that was read from somewhere, as something to take pieces of like ``Past``."""

    all: Rows
    windows: Sequence[Window]

    def rows_bytes(self, count: int) -> int:
        return self.all.nbytes // max(self.all.count, 1) * count

    def rows(self, start: int, stop: int) -> Rows:
        layers = {index: (k[start:stop].clone(), v[start:stop].clone()) for index, (k, v) in self.all.layers.items()}
        return Rows(stop - start, layers)

    def window_bytes(self, end: int) -> int:
        found = self.window(end)
        return 0 if found is None else found.nbytes

    def window(self, end: int) -> Window | None:
        return next((window for window in self.windows if window.end == end), None)


class Past:
    """A sequence's cache as something to take pieces of."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.length = cache, cache.length
        stores = cache.stores.items()
        self._full = {index: store for index, store in stores if store.room.window is None}
        self._sliding = {index: store for index, store in stores if store.room.window is not None}

    def rows_bytes(self, count: int) -> int:
        """Bytes of the full layers' rows at ``count`` positions."""
        return sum(store.row_bytes * count for store in self._full.values())

    def rows(self, start: int, stop: int) -> Rows:
        """A copy of the full layers' rows at these positions."""
        return Rows(stop - start, {index: _copied(store, start, stop) for index, store in self._full.items()})

    def window_bytes(self, end: int) -> int:
        """Bytes of a window there."""
        return sum(store.row_bytes * (end - store.room.oldest(end)) for store in self._sliding.values())

    def window(self, end: int) -> Window | None:
        """A copy of what the sliding layers know at ``end``; None when that is gone already."""
        stores = self._sliding
        if any(store.room.first > store.room.oldest(end) for store in stores.values()) or end > self.length:
            return None
        return Window(end, {index: _window(store, end) for index, store in stores.items()})


def restore(cache: Cache, rows: Sequence[Rows], window: Window, length: int) -> Cache:
    """Fill an empty cache with the first ``length`` tokens of a past. Nothing is shared with the pieces.

    Raises RunError when they do not fit it or each other: nothing half-filled is ever used.
    """
    if sum(piece.count for piece in rows) < length or not window.serves(length):
        raise RunError(f"a kept past does not reach to token {length}")
    for index, store in cache.stores.items():
        if store.room.window is None:
            _fill_full(store, [piece.layers[index] for piece in rows], length)
        else:
            _fill_sliding(store, window.layers[index], length)
    cache.length = length
    return cache


def _fill_full(store: LayerStore, pieces: Sequence[Pair], length: int) -> None:
    slot, at = store.reserve(0, length), 0
    for k, v in pieces:
        count = min(len(k), length - at)
        slot.k[at : at + count].copy_(k[:count])
        slot.v[at : at + count].copy_(v[:count])
        at += count


def _fill_sliding(store: LayerStore, kept: LayerWindow, length: int) -> None:
    first = store.room.oldest(length)
    store.begin(first, length - first)
    rows = slice(first - kept.first, length - kept.first)
    store.k[: length - first].copy_(kept.k[rows])
    store.v[: length - first].copy_(kept.v[rows])


def _copied(store: LayerStore, start: int, stop: int) -> Pair:
    rows = slice(start - store.room.first, stop - store.room.first)
    return store.k[rows].clone(), store.v[rows].clone()


def _window(store: LayerStore, end: int) -> LayerWindow:
    first = store.room.oldest(end)
    return LayerWindow(store.room.window or 0, first, *_copied(store, first, end))
