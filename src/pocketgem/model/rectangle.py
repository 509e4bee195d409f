"""Attention of several whole sequences at once: rows without padding are laid into a rectangle and taken out again.

Many small products cost more than one that is somewhat too large. Gradients flow through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem.config import LayerConfig
from pocketgem.model.cache import Seen, Span

SHORT = 256  # keys up to which scores are kept for the way back: then they are not more than the rows themselves
ALIKE = 2  # longest to shortest in one rectangle


@dataclass(frozen=True)
class Rectangle:
    """Sequences of about one length: ``size`` of them, so many query rows each, so many keys each."""

    size: tuple[int, int, int]
    rows: Tensor  # [n] query rows of the step, sequence by sequence
    places: Tensor  # [n] where they lie in [sequences * most rows]
    keys: Tensor  # [m] key rows
    key_places: Tensor
    positions: Tensor  # [sequences, most rows]; 0 where there is no row: it sees one key, and nobody sees it
    seen: dict[int | None, Tensor] = field(default_factory=dict)  # by window: every layer of a kind asks for the same

    def attend(self, layer: LayerConfig, q: Tensor, past: Seen, scale: float) -> Tensor:
        """q ``[all rows, heads, dim]`` -> ``[n, heads, dim]``, in the order of ``rows``."""
        count, rows, keys = self.size
        q = _laid(q[self.rows], self.places, count, rows)
        k, v = (_laid(part[self.keys], self.key_places, count, keys) for part in (past.k, past.v))
        attend = _attend_short if keys <= SHORT else _attend_long
        return attend(q, k, v, self._seen(layer.window), scale).flatten(0, 1)[self.places]

    def _seen(self, window: int | None) -> Tensor:
        """Which keys each query sees: ``[sequences, rows, keys]`` bool. Keys that are not there lie ahead of all."""
        if window not in self.seen:
            keys = torch.arange(self.size[2], device=self.positions.device)
            ahead = self.positions[..., None] - keys
            self.seen[window] = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
        return self.seen[window]


def rectangles(spans: Sequence[Span], counts: Sequence[int], positions: Tensor) -> list[Rectangle]:
    """Cover a step's query rows. counts: keys of each span's sequence, which lie one sequence after the other."""
    begins = [0, *accumulate(counts)]
    asking = sorted((at for at, span in enumerate(spans) if span.stop > span.start), key=lambda at: counts[at])
    groups: list[list[int]] = []
    for at in asking:
        if groups and counts[at] <= ALIKE * counts[groups[-1][0]]:
            groups[-1].append(at)
        else:
            groups.append([at])
    found = []
    for group in groups:
        rows, places, most = _places([(spans[at].start, spans[at].stop) for at in group], positions.device)
        keys, key_places, most_keys = _places([(begins[at], begins[at + 1]) for at in group], positions.device)
        placed = positions.new_zeros(len(group) * most).index_copy(0, places, positions[rows]).view(len(group), most)
        found.append(Rectangle((len(group), most, most_keys), rows, places, keys, key_places, placed))
    return found


def _places(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Row numbers, where they lie in a rectangle of one line a span, and how long a line is."""
    most = max(stop - start for start, stop in spans)
    rows = torch.cat([torch.arange(start, stop) for start, stop in spans])
    places = torch.cat([torch.arange(stop - start) + line * most for line, (start, stop) in enumerate(spans)])
    return rows.to(device), places.to(device), most


def _laid(x: Tensor, places: Tensor, lines: int, width: int) -> Tensor:
    """``[n, heads, dim]`` -> ``[lines, width, heads, dim]``, zeros where nothing lies."""
    empty = x.new_zeros(lines * width, *x.shape[1:])
    return empty.index_copy(0, places, x).view(lines, width, *x.shape[1:])


def _attend_short(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Two batched products: the queries of all heads that share a key are the rows of one."""
    (lines, rows, heads, dim), (_, keys, shared, _) = q.shape, k.shape
    group = heads // shared
    asked = q.view(lines, rows, shared, group, dim).transpose(1, 2).reshape(lines * shared, rows * group, dim)
    k, v = (part.transpose(1, 2).reshape(lines * shared, keys, dim) for part in (k, v))
    scores = torch.bmm(asked, k.mT).view(lines, shared, rows, group, keys).float() * scale
    weights = scores.masked_fill(~seen[:, None, :, None], -torch.inf).softmax(-1).to(v.dtype)
    out = torch.bmm(weights.view(lines * shared, rows * group, keys), v)
    return out.view(lines, shared, rows, group, dim).transpose(1, 2).reshape(lines, rows, heads, dim)


def _attend_long(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Torch's own, which keeps no scores."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [lines, heads, rows, dim]
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)
