"""Attention of the audio conformer: each row sees itself and a few before it, in blocks, with relative positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.model import ops
from pocketgem.model.tower import ClippedLinear, WideLinear

KEY_SCALE = math.log(1 + math.e) / math.log(2)  # softplus(1), in the units of softplus(0) that queries are scaled by


@dataclass(frozen=True)
class Span:
    """Who sees whom: rows come in blocks of ``block``; a row sees ``back`` rows, itself counted as one.

    The context of a block is the block and the ``back`` rows before it.
    """

    block: int
    back: int

    @property
    def context(self) -> int:
        return self.block + self.back

    def blocks(self, rows: int) -> int:
        return -(-rows // self.block)

    def seen(self, rows: int) -> Tensor:
        """Whether row i of a block sees row j of its context: ``[blocks, 1, block, context]`` bool."""
        i, j = torch.arange(self.block)[:, None], torch.arange(self.context)
        distance = i + self.back - j  # [block, context]
        first = torch.arange(self.blocks(rows))[:, None, None] * self.block - self.back  # where each context begins
        return ((distance >= 0) & (distance < self.back) & (first + j >= 0))[:, None]


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions over wavelengths from 1 to 10,000: ``[n] -> [n, width]``.

    Source: Vaswani et al. 2017, halves instead of pairs.
    """
    steps = torch.arange(width // 2, dtype=torch.float32)
    inverse = torch.exp(steps * (-math.log(10_000) / max(width // 2 - 1, 1)))  # [width / 2]
    angles = positions[:, None].float() * inverse
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def shifted(scores: Tensor, context: int) -> Tensor:
    """Scores by distance become scores by place: ``[..., block, distances] -> [..., block, context]``.

    Column c of row i goes to column i + c; what wraps round lies where no row sees. Source: Dai et al. 2019, app. B.
    """
    *lead, block, distances = scores.shape
    flat = F.pad(scores, (0, context + 1 - distances)).reshape(*lead, block * (context + 1))
    return flat[..., : block * context].reshape(*lead, block, context)


class LocalAttention(nn.Module):
    """Multi-head attention within ``Span``, scores soft-capped, in float32."""

    def __init__(self, hidden: int, heads: int, span: Span, cap: float, *, clipped: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.span, self.cap = heads, hidden // heads, span, cap
        self.q_proj = ClippedLinear(hidden, hidden, clipped=clipped)
        self.k_proj = ClippedLinear(hidden, hidden, clipped=clipped)
        self.v_proj = ClippedLinear(hidden, hidden, clipped=clipped)
        self.post = ClippedLinear(hidden, hidden, clipped=clipped)
        self.relative_k_proj = WideLinear(hidden, hidden)
        self.per_dim_scale = nn.Parameter(torch.empty(self.head_dim))  # softplus applied

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: ``[rows, hidden]``; seen: ``Span.seen`` of as many rows."""
        q = self._heads(self.q_proj(x)) * (self.per_dim_scale * self.head_dim**-0.5 / math.log(2))
        k, v = self._heads(self.k_proj(x)) * KEY_SCALE, self._heads(self.v_proj(x))  # [rows, heads, dim]
        q = self._blocks(q)  # [blocks, heads, block, dim]
        scores = q @ self._contexts(k).mT + shifted(q @ self._distances(), self.span.context)
        weights = ops.softcap(scores, self.cap).masked_fill(~seen, -math.inf).softmax(dim=-1)
        out = weights @ self._contexts(v)  # [blocks, heads, block, dim]
        projected: Tensor = self.post(out.transpose(1, 2).reshape(-1, x.shape[-1])[: len(x)])
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, self.head_dim)

    def _blocks(self, x: Tensor) -> Tensor:
        missing = self.span.blocks(len(x)) * self.span.block - len(x)
        padded = F.pad(x, (0, 0, 0, 0, 0, missing))
        return padded.view(-1, self.span.block, self.heads, self.head_dim).transpose(1, 2)

    def _contexts(self, x: Tensor) -> Tensor:
        """``[rows, heads, dim] -> [blocks, heads, context, dim]``; contexts of neighbours overlap."""
        missing = self.span.blocks(len(x)) * self.span.block - len(x)
        padded = F.pad(x, (0, 0, 0, 0, self.span.back, missing))
        return padded.unfold(0, self.span.context, self.span.block).transpose(-1, -2)

    def _distances(self) -> Tensor:
        """Keys of the distances from ``back`` down to 0: ``[heads, dim, back + 1]``."""
        table = sinusoids(torch.arange(self.span.back, -1, -1), self.heads * self.head_dim)
        return self._heads(self.relative_k_proj(table)).permute(1, 2, 0)
