"""Rows of the per-layer-embedding table: a lookup of gigabytes, of which a token needs one row.

The table is never a module parameter. It stays in the mapped file; only the rows asked for are read and dequantised.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor


class RowSource(Protocol):
    """Anything that answers ``rows(ids) -> [n, layers, dim]`` in float32."""

    def rows(self, ids: Tensor) -> Tensor: ...


class MappedRows:
    """Rows read from the mapped checkpoint; equal ids of one call are read once."""

    def __init__(self, table: StoredTensor, num_layers: int) -> None:
        self.table, self.num_layers = table, num_layers

    def rows(self, ids: Tensor) -> Tensor:
        unique, where = torch.unique(ids, return_inverse=True)
        rows = self.table.rows(unique)  # [unique, layers * dim]
        return rows[where].view(len(ids), self.num_layers, -1)
