"""Keys and values of past tokens, and the step that reads and writes them.

A layer's store is one contiguous buffer of rows ``[capacity, kv_heads, head_dim]`` that grows by doubling. On sliding
layers it stops at the window and a little slack, and compacts when the end is reached, so that what attention reads is
always one contiguous slice: a ring without the wrap.

Writes go to absolute positions, and only ``Step.commit`` moves a sequence on. After a step that failed half-way a store
either still holds all that a second try needs, or refuses it: never a shorter past in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pocketgem.config import LayerConfig, ModelConfig
from pocketgem.errors import RunError

SLACK = 64  # decode steps between two compactions of a sliding buffer
FIRST_CAPACITY = 256
UNBOUNDED = 1 << 62  # rows a full layer may hold


@dataclass(frozen=True)
class KeysValues:
    """What one sequence's queries may read in one layer: keys at positions ``first, first + 1, ...``"""

    k: Tensor  # [keys, kv_heads, head_dim]
    v: Tensor  # [keys, kv_heads, head_dim]
    first: int


class LayerStore:
    """K/V of one layer of one sequence."""

    def __init__(self, layer: LayerConfig, dtype: torch.dtype) -> None:
        self.window = layer.window
        self.row = (layer.num_kv_heads, layer.head_dim)
        self.dtype = dtype
        self.first = 0  # position of the buffer's row 0
        self.most = UNBOUNDED if layer.window is None else layer.window + SLACK
        capacity = min(self.most, FIRST_CAPACITY)
        self.k, self.v = self._empty(capacity), self._empty(capacity)

    def _empty(self, capacity: int) -> Tensor:
        return torch.empty((capacity, *self.row), dtype=self.dtype)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def append(self, start: int, k: Tensor, v: Tensor) -> KeysValues:
        """Write rows at positions ``start...`` and return all that their queries may see."""
        oldest = 0 if self.window is None else max(0, start - self.window + 1)
        if oldest < self.first:
            raise RunError(f"cache: tokens {oldest} to {self.first - 1} are gone after a failed step; prefill again")
        used, end = start - self.first, start - self.first + len(k)
        if end > self.most:
            return self._compact(oldest, used, k, v)
        if end > len(self.k):
            self.k, self.v = self._grown(self.k, used, end), self._grown(self.v, used, end)
        self.k[used:end], self.v[used:end] = k, v
        return KeysValues(self.k[oldest - self.first : end], self.v[oldest - self.first : end], oldest)

    def _grown(self, old: Tensor, used: int, needed: int) -> Tensor:
        new = self._empty(min(self.most, max(needed, 2 * len(old))))
        new[:used] = old[:used]
        return new

    def _compact(self, oldest: int, used: int, k: Tensor, v: Tensor) -> KeysValues:
        """The end of a sliding buffer: what the new rows see is put together aside, its last window kept."""
        begin = oldest - self.first
        seen = KeysValues(torch.cat((self.k[begin:used], k)), torch.cat((self.v[begin:used], v)), oldest)
        kept = min(len(seen.k), self.most - SLACK)
        if kept > len(self.k):
            self.k, self.v = self._grown(self.k, 0, self.most), self._grown(self.v, 0, self.most)
        self.k[:kept], self.v[:kept] = seen.k[-kept:], seen.v[-kept:]
        self.first = oldest + len(seen.k) - kept
        return seen

    def fork(self) -> LayerStore:
        twin = object.__new__(LayerStore)
        twin.__dict__.update(self.__dict__, k=self.k.clone(), v=self.v.clone())
        return twin


class Cache:
    """K/V of one sequence: a store for each layer that writes. ``length`` counts the tokens already in it."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.length = 0
        self.stores = {layer.index: LayerStore(layer, dtype) for layer in config.layers if layer.writes_kv}

    @property
    def nbytes(self) -> int:
        """Bytes held now, in all layers."""
        return sum(store.nbytes for store in self.stores.values())

    def fork(self) -> Cache:
        """An independent copy: the start of another sequence with the same past."""
        twin = object.__new__(Cache)
        twin.length = self.length
        twin.stores = {index: store.fork() for index, store in self.stores.items()}
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

    ``logit_rows`` are row numbers, ascending; ``skip`` lets rows nobody asked for stop at the last layer that writes.
    """

    spans: tuple[Span, ...]
    positions: Tensor  # [rows] int64
    logit_rows: Tensor  # [wanted] int64
    skip: bool = True

    @classmethod
    def packed(
        cls, caches: Sequence[Cache], counts: Sequence[int], *, logits: Sequence[int] | None = None, skip: bool = True
    ) -> Step:
        """Rows for ``counts[i]`` next tokens of sequence ``i``, in order.

        ``logits[i]``: how many of its last rows want logits (default 1 each).
        """
        spans, positions, wanted, row = [], [], [], 0
        for i, (cache, count) in enumerate(zip(caches, counts, strict=True)):
            spans.append(Span(cache, row, row + count))
            positions.append(torch.arange(cache.length, cache.length + count))
            asked = 1 if logits is None else logits[i]
            wanted.append(torch.arange(row + count - asked, row + count))
            row += count
        return cls(tuple(spans), torch.cat(positions), torch.cat(wanted), skip)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[KeysValues, ...]:
        """Store the rows' K/V of ``layer``; returns what each span's queries may read."""
        return tuple(
            span.cache.stores[layer].append(span.cache.length, k[span.start : span.stop], v[span.start : span.stop])
            for span in self.spans
        )

    def wanted(self) -> Step:
        """The same step with only the rows whose logits are asked for."""
        spans = []
        bounds = torch.tensor([[span.start, span.stop] for span in self.spans])
        for span, (start, stop) in zip(self.spans, torch.searchsorted(self.logit_rows, bounds).tolist(), strict=True):
            spans.append(Span(span.cache, start, stop))
        kept = self.logit_rows
        return replace(self, spans=tuple(spans), positions=self.positions[kept], logit_rows=torch.arange(len(kept)))

    def commit(self) -> None:
        """The pass succeeded: its tokens are part of every sequence's past."""
        for span in self.spans:
            span.cache.length += span.stop - span.start
