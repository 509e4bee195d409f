"""Modules whose weights stay packed: they take the places of ``Linear``, ``Embedding`` and ``Experts`` from outside.

Activations are float32; the kernels quantise them to int8 on the way into a packed product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketgem.kernels.compute import Compute, Weight
from pocketgem.memory.experts import ExpertStore
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

    def expect(self, indices: Tensor) -> None:
        """All are in memory."""


class BudgetedExperts(nn.Module):
    """The same where not all are in memory: what the router chose is computed batch by batch as it comes."""

    def __init__(self, compute: Compute, shape: Any, store: ExpertStore, layer: int) -> None:
        super().__init__()
        self.compute, self.shape, self.store, self.layer = compute, shape, store, layer

    def expect(self, indices: Tensor) -> None:
        """Start to read those of ``[rows, top_k]`` that are missing."""
        self.store.begin(self.layer, indices)

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        x = x.contiguous()
        products = torch.empty(indices.numel(), x.shape[-1])  # [rows * top_k, hidden]
        for addresses in self.store.batches(self.layer, indices):
            self.compute.experts_present(x, self.shape, addresses, indices, products)
        return self.compute.experts_mix(products, weights.contiguous())


def store_of(model: nn.Module) -> ExpertStore | None:
    """Where a model's experts are under a budget; None where all are in memory."""
    return next((module.store for module in model.modules() if isinstance(module, BudgetedExperts)), None)
