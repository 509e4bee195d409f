"""Modules whose weights stay packed: they take the places of ``Linear``, ``Embedding`` and ``Experts`` from outside.

Activations are float32; the kernels quantise them to int8 on the way into a packed product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pocketgem.kernels.compute import Compute, Weight
from pocketgem.memory.rows import RowSource


class PackedLinear(nn.Module):
    """``[rows, in] -> [rows, out]`` by a compiled product."""

    def __init__(self, compute: Compute, matrix: Weight) -> None:
        super().__init__()
        self.compute, self.matrix = compute, matrix
        self.in_features, self.out_features = matrix.cols, matrix.rows

    def forward(self, x: Tensor) -> Tensor:
        return self.compute.linear(x.contiguous(), self.matrix)


class PackedHead(PackedLinear):
    """The last product, with finer activations: what is rounded here reaches the logits undiminished."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute.fine_linear(x.contiguous(), self.matrix)


class PackedEmbedding(nn.Module):
    """Rows of the vocabulary as the file has them, scaled."""

    dtype = torch.float32

    def __init__(self, table: RowSource, scale: float) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    def forward(self, ids: Tensor) -> Tensor:
        return self.table.rows(ids, self.scale)

    def expect(self, ids: Sequence[int]) -> None:
        """See ``Gemma.expect``."""
        self.table.expect(ids)


class PackedExperts(nn.Module):
    """All routed experts of one layer, gate, up and down of each packed by itself."""

    def __init__(self, compute: Compute, gate: Sequence[Weight], up: Sequence[Weight], down: Sequence[Weight]) -> None:
        super().__init__()
        self.compute, self.stack = compute, compute.stack(gate, up, down)

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        return self.compute.experts(x.contiguous(), self.stack, weights.contiguous(), indices)
