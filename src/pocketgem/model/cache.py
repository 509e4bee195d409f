"""Keys and values of past tokens, and the step that reads and writes them.

A layer's store is one contiguous buffer of rows ``[capacity, kv_heads, head_dim]`` that grows by doubling. On sliding
layers rows that nobody sees any more are left behind when the end is reached, so that what attention reads is always
one contiguous slice: a ring without the wrap.

Writes go to absolute positions, and only ``Step.commit`` moves a sequence on. After a step that failed half-way a store
either still holds all that a second try needs, or refuses it: never a shorter past in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pocketgem.config import LayerConfig, ModelConfig
from pocketgem.errors import RunError
from pocketgem.memory.kv_rows import Room
from pocketgem.model import ops

CPU = torch.device("cpu")


class Seen(Protocol):
    """Keys and values of one layer that the queries of one sequence may look at."""

    @property
    def k(self) -> Tensor: ...  # [rows, kv_heads, head_dim]
    @property
    def v(self) -> Tensor: ...
    def visible(self, positions: Tensor, window: int | None, last: Tensor | None = None) -> Tensor | None: ...


Places = tuple[int, int, int]  # addresses of the first row's keys and values, bytes from a row to the next


def places_of(keys: Tensor, values: Tensor) -> Places:
    """Of contiguous buffers of one shape. Asked once for each buffer: torch takes a microsecond to say."""
    return keys.data_ptr(), values.data_ptr(), keys.stride(0) * keys.itemsize


@dataclass(slots=True)
class KeysValues:
    """What one sequence's queries may read in one layer: rows ``begin`` to ``end`` of its buffers.

    Row ``begin`` is at position ``first``. Kernels ask for addresses, torch for views; a step makes many of these.
    """

    keys: Tensor  # [capacity, kv_heads, head_dim]
    values: Tensor
    begin: int
    end: int
    first: int
    places: Places | None = None  # None: kernels will not ask often

    @property
    def k(self) -> Tensor:
        return self.keys[self.begin : self.end]  # [rows, kv_heads, head_dim]

    @property
    def v(self) -> Tensor:
        return self.values[self.begin : self.end]

    def visible(self, positions: Tensor, window: int | None, last: Tensor | None = None) -> Tensor | None:
        """Which of these rows queries at ``positions`` see; see ``ops.visible``."""
        return ops.visible(positions, self.first, self.end - self.begin, window, last)

    def addresses(self, row: int) -> tuple[int, int]:
        """Where row ``row`` of the buffers begins, in keys and in values. Both are contiguous."""
        keys, values, size = self.places or places_of(self.keys, self.values)
        return keys + row * size, values + row * size


@dataclass(slots=True)
class Slot:
    """Where the new rows of one sequence go in one layer: the rows from ``used`` on of what their queries may read."""

    seen: KeysValues
    used: int

    @property
    def k(self) -> Tensor:
        return self.seen.keys[self.used : self.seen.end]  # [rows, kv_heads, head_dim]

    @property
    def v(self) -> Tensor:
        return self.seen.values[self.used : self.seen.end]


class LayerStore:
    """K/V of one layer of one sequence."""

    def __init__(
        self, layer: LayerConfig, dtype: torch.dtype, device: torch.device = CPU, limit: int | None = None
    ) -> None:
        self.row = (layer.num_kv_heads, layer.head_dim)
        self.dtype, self.device = dtype, device
        self.room = Room.empty(layer.window, limit)
        self._take(self._empty(self.room), self._empty(self.room))

    def _take(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self.places = k, v, places_of(k, v)

    def _empty(self, room: Room) -> Tensor:
        return torch.empty((room.capacity, *self.row), dtype=self.dtype, device=self.device)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    @property
    def row_bytes(self) -> int:
        """Of one token's keys and values."""
        return 2 * self.row[0] * self.row[1] * self.k.itemsize

    def reserve(self, start: int, count: int) -> Slot:
        """Room for ``count`` rows at positions ``start...``; rows no query can see any more may be gone after it."""
        room, oldest = self.room.with_room(start, count), self.room.oldest(start)
        if oldest < self.room.first:
            raise RunError(
                f"cache: tokens {oldest} to {self.room.first - 1} are gone after a failed step; prefill again"
            )
        if room is not self.room:
            self._move(room, start - oldest)
        used = start - room.first
        return Slot(KeysValues(self.k, self.v, oldest - room.first, used + count, oldest, self.places), used)

    def _move(self, room: Room, kept: int) -> None:
        """Bring the ``kept`` rows that somebody still sees to the front of buffers as ``room`` has them."""
        begin = room.first - self.room.first
        rows = slice(begin, begin + kept)
        if room.window is not None and room.capacity == len(self.k):
            self.k[:kept], self.v[:kept] = self.k[rows].clone(), self.v[rows].clone()  # the two places may overlap
        else:
            k, v = self._empty(room), self._empty(room)
            k[:kept], v[:kept] = self.k[rows], self.v[rows]
            self._take(k, v)
        self.room = room

    def begin(self, first: int, count: int) -> None:
        """Be a store whose first row is at position ``first``, with room for ``count``: for who fills them."""
        before, self.room = self.room, self.room.at(first, count)
        if self.room.capacity != before.capacity:
            self._take(self._empty(self.room), self._empty(self.room))

    def fork(self) -> LayerStore:
        twin = object.__new__(LayerStore)
        twin.__dict__.update(self.__dict__)
        twin._take(self.k.clone(), self.v.clone())
        return twin


class Cache:
    """K/V of one sequence: a store for each layer that writes. ``length`` counts the tokens already in it.

    limit: tokens it will have at the most, where that is known: no store takes more rows.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU, limit: int | None = None
    ) -> None:
        self.length, self.device = 0, device
        writers = (layer for layer in config.layers if layer.writes_kv)
        self._stores = {layer.index: LayerStore(layer, dtype, device, limit) for layer in writers}
        self._borrower: Callable[[Cache], None] | None = None

    @property
    def stores(self) -> dict[int, LayerStore]:
        """By layer. What somebody borrowed comes back first."""
        if self._borrower is not None:
            self._borrower(self)
        return self._stores

    @property
    def is_lent(self) -> bool:
        """Whether newer rows than the stores' are somewhere else."""
        return self._borrower is not None

    def lend(self, borrower: Callable[[Cache], None]) -> None:
        """From now on new rows are the borrower's to keep, until it is called: then it must ``take_back``."""
        self._borrower = borrower

    def take_back(self) -> dict[int, LayerStore]:
        """For the borrower: the loan ends, and these stores are to be brought up to ``length``."""
        self._borrower = None
        return self._stores

    @property
    def nbytes(self) -> int:
        """Bytes held now, in all layers."""
        return sum(store.nbytes for store in self._stores.values())

    def fork(self) -> Cache:
        """An independent copy: the start of another sequence with the same past."""
        twin = object.__new__(Cache)
        twin.length, twin.device = self.length, self.device
        twin._stores, twin._borrower = {index: store.fork() for index, store in self.stores.items()}, None
        return twin


@dataclass(frozen=True)
class Span:
    """The rows of one sequence within a packed step."""

    cache: Cache
    start: int  # first row of the step that is this sequence's
    stop: int


@dataclass(frozen=True)
class Step:
    """One forward pass over packed rows: who they belong to, where they stand, whose logits are wanted.

    Positions lie on the device of the caches; so does ``last``, the last position each row sees in layers that see
    images whole, None where no row of the step is an image's. ``logit_rows`` are row numbers, ascending, on the CPU;
    ``skip`` lets rows nobody asked for stop at the last layer that writes.
    """

    spans: tuple[Span, ...]
    positions: Tensor  # [rows] int64
    logit_rows: Tensor  # [wanted] int64
    skip: bool = True
    last: Tensor | None = None  # [rows] int64

    @classmethod
    def packed(
        cls, caches: Sequence[Cache], counts: Sequence[int], *, logits: Sequence[int] | None = None, skip: bool = True
    ) -> Step:
        """Rows for ``counts[i]`` next tokens of sequence ``i``, in order.

        ``logits[i]``: how many of its last rows want logits (default 1 each).
        """
        spans, positions, wanted, row = [], list[int](), list[int](), 0
        for i, (cache, count) in enumerate(zip(caches, counts, strict=True)):
            spans.append(Span(cache, row, row + count))
            positions += range(cache.length, cache.length + count)
            asked = 1 if logits is None else logits[i]
            wanted += range(row + count - asked, row + count)
            row += count
        device = caches[0].device
        return cls(
            tuple(spans),
            torch.tensor(positions, dtype=torch.int64, device=device),
            torch.tensor(wanted, dtype=torch.int64),
            skip,
        )

    def sight(self, layer: LayerConfig, rows: slice | None = None) -> tuple[Tensor, Tensor | None]:
        """Positions of these rows, and the last ones they see where that is not their own."""
        last = self.last if layer.both_ways else None
        if rows is None:
            return self.positions, last
        return self.positions[rows], None if last is None else last[rows]

    def reserve(self, layer: int) -> tuple[Slot, ...]:
        """Room for the rows of each span in ``layer``."""
        return tuple(span.cache.stores[layer].reserve(span.cache.length, span.stop - span.start) for span in self.spans)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Seen, ...]:
        """Store the rows' K/V of ``layer``; returns what each span's queries may read."""
        slots = self.reserve(layer)
        for span, slot in zip(self.spans, slots, strict=True):
            slot.k.copy_(k[span.start : span.stop])
            slot.v.copy_(v[span.start : span.stop])
        return tuple(slot.seen for slot in slots)

    def attend(self, layer: LayerConfig, q: Tensor, seen: Sequence[Seen], scale: float) -> Tensor:
        """What each span's queries ``[rows, heads, dim]`` find in what they may read."""
        out = torch.empty_like(q)
        for span, past in zip(self.spans, seen, strict=True):
            if span.stop == span.start:
                continue
            rows = slice(span.start, span.stop)
            positions, last = self.sight(layer, rows)
            mask = past.visible(positions, layer.window, last)
            out[rows] = ops.attention(q[rows], past.k, past.v, mask, scale)
        return out

    def wanted(self) -> Step:
        """The same step with only the rows whose logits are asked for."""
        spans = []
        bounds = torch.tensor([[span.start, span.stop] for span in self.spans])
        for span, (start, stop) in zip(self.spans, torch.searchsorted(self.logit_rows, bounds).tolist(), strict=True):
            spans.append(Span(span.cache, start, stop))
        kept = self.logit_rows
        last = None if self.last is None else self.last[kept]
        rows = torch.arange(len(kept))
        return replace(self, spans=tuple(spans), positions=self.positions[kept], logit_rows=rows, last=last)

    def commit(self) -> None:
        """The pass succeeded: its tokens are part of every sequence's past."""
        for span in self.spans:
            span.cache.length += span.stop - span.start
