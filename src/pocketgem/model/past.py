"""Pieces of a past that outlive their sequence, and a new cache made of them.

A piece has the keys and values of some layers at positions in a row: of the full layers, which can be cut at any token,
or of the sliding ones, which have only what they have not forgotten yet. Several pasts share pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.errors import RunError
from pocketgem.model.cache import Cache, LayerStore

Pair = tuple[Tensor, Tensor]  # keys and values, each [rows, kv_heads, head_dim]


@dataclass(frozen=True, eq=False)
class Rows:
    """Keys and values of some layers at ``count`` positions from ``first`` on. Never written to."""

    first: int
    count: int
    layers: Mapping[int, Pair]

    @property
    def stop(self) -> int:
        return self.first + self.count

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers.values())

    def piece(self, first: int, stop: int) -> Rows:
        """These positions of it, in memory of their own: one may go and the other stay."""
        rows = slice(first - self.first, stop - self.first)
        layers = {index: (k[rows].clone(), v[rows].clone()) for index, (k, v) in self.layers.items()}
        return Rows(first, stop - first, layers)

    def joined(self, others: Sequence[Rows]) -> Rows:
        """These and the others, each of which begins where the one before ends, as one."""
        pieces = [self, *others]
        layers = {
            index: (
                torch.cat([one.layers[index][0] for one in pieces]),
                torch.cat([one.layers[index][1] for one in pieces]),
            )
            for index in self.layers
        }
        return Rows(self.first, sum(one.count for one in pieces), layers)


def gathered(pieces: Sequence[Rows], first: int, stop: int) -> Rows:
    """These positions out of pieces that ascend. Raises RunError for a gap."""
    layers: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for piece, rows in _overlaps(pieces, first, stop):
        for index, (k, v) in piece.layers.items():
            keys, values = layers.setdefault(index, ([], []))
            keys.append(k[rows])
            values.append(v[rows])
    return Rows(first, stop - first, {index: (torch.cat(k), torch.cat(v)) for index, (k, v) in layers.items()})


def _overlaps(pieces: Sequence[Rows], first: int, stop: int) -> Iterator[tuple[Rows, slice]]:
    """The pieces that have these positions, and which rows of each. Raises RunError at a gap."""
    at = first
    for piece in pieces:
        if piece.first <= at < min(piece.stop, stop):
            end = min(piece.stop, stop)
            yield piece, slice(at - piece.first, end - piece.first)
            at = end
    if at < stop:
        raise RunError(f"a kept past has no rows of token {at}")


class Stored:
    """A past that was read from somewhere, as something to take pieces of like ``Past``.

    rows: of the full layers, from the first token on. slid: of the sliding ones, ascending.
    """

    def __init__(self, rows: Rows, slid: Sequence[Rows]) -> None:
        self.all, self.all_slid = rows, slid

    def rows_bytes(self, count: int) -> int:
        return self.all.nbytes // max(self.all.count, 1) * count

    def rows(self, first: int, stop: int) -> Rows:
        return self.all.piece(first, stop)

    def slid_bytes(self, count: int) -> int:
        return sum(one.nbytes for one in self.all_slid) // max(sum(one.count for one in self.all_slid), 1) * count

    def slid(self, first: int, stop: int) -> Rows:
        return gathered(self.all_slid, first, stop)

    def knows(self, first: int, stop: int) -> bool:
        return any(one.first <= first and stop <= one.stop for one in self.all_slid)


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

    def rows(self, first: int, stop: int) -> Rows:
        """A copy of the full layers' rows at these positions."""
        return Rows(first, stop - first, {index: _copied(store, first, stop) for index, store in self._full.items()})

    def slid_bytes(self, count: int) -> int:
        """Bytes of the sliding layers' rows at ``count`` positions."""
        return sum(store.row_bytes * count for store in self._sliding.values())

    def slid(self, first: int, stop: int) -> Rows:
        """A copy of the sliding layers' rows at these positions, which they know."""
        return Rows(first, stop - first, {index: _copied(store, first, stop) for index, store in self._sliding.items()})

    def knows(self, first: int, stop: int) -> bool:
        """Whether the sliding layers still have the rows of all these positions."""
        return stop <= self.length and all(store.room.first <= first for store in self._sliding.values())


def restore(cache: Cache, rows: Sequence[Rows], slid: Sequence[Rows], length: int) -> Cache:
    """Fill an empty cache with the first ``length`` tokens of a past. Nothing is shared with the pieces.

    rows, slid: pieces of the full and of the sliding layers, ascending. Raises RunError when they do not have all that
    is needed; nothing was filled then.
    """
    rooms = {store.room.window: store.room for store in cache.stores.values()}  # a kind of layer each
    parts = {
        window: list(_overlaps(rows if window is None else slid, room.oldest(length), length))
        for window, room in rooms.items()
    }
    for index, store in cache.stores.items():
        first, at = store.room.oldest(length), 0
        store.begin(first, length - first)
        for piece, where in parts[store.room.window]:
            (k, v), stop = piece.layers[index], at + where.stop - where.start
            store.k[at:stop], store.v[at:stop] = k[where], v[where]
            at = stop
    cache.length = length
    return cache


def _copied(store: LayerStore, first: int, stop: int) -> Pair:
    rows = slice(first - store.room.first, stop - store.room.first)
    return store.k[rows].clone(), store.v[rows].clone()
