"""Rows of the per-layer-embedding table: a lookup of gigabytes, of which a token needs one row.

The table is never a module parameter. It stays in the file; only the rows asked for are read and dequantised.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import WeightsError
from pocketgem.kernels.compute import Compute


class RowSource(Protocol):
    """Anything that answers ``rows(ids) -> [n, layers, dim]`` in float32, each times ``factor``."""

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor: ...


class MappedRows:
    """Rows read from the mapped checkpoint; equal ids of one call are read once."""

    def __init__(self, table: StoredTensor, num_layers: int) -> None:
        self.table, self.num_layers = table, num_layers

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        unique, where = torch.unique(ids, return_inverse=True)
        rows = self.table.rows(unique) * factor  # [unique, layers * dim]
        return rows[where].view(len(ids), self.num_layers, -1)


class PackedRows:
    """The same rows by a compiled kernel: gathered and dequantised in one go."""

    def __init__(self, compute: Compute, table: StoredTensor, num_layers: int) -> None:
        self.compute, self.table, self.num_layers = compute, table, num_layers

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        return stored_rows(self.compute, self.table, ids, factor).view(len(ids), self.num_layers, -1)


def stored_rows(compute: Compute, table: StoredTensor, ids: Tensor, factor: float = 1.0) -> Tensor:
    """Rows ``ids`` (int64) of a table that lies in a file, times ``factor``: float32 ``[ids, width]``.

    Raises WeightsError for an id outside the table, CheckpointError if the file changed since it was opened.
    """
    table.source.check_unchanged()
    (count, width), wanted = table.shape, ids.tolist()
    if wanted and not 0 <= min(wanted) <= max(wanted) < count:
        raise WeightsError(f"{table.name} has {count} rows; rows {min(wanted)} to {max(wanted)} were asked for")
    size = table.nbytes // count
    raw = torch.empty(len(wanted) * size, dtype=torch.uint8)
    view = raw.numpy().data
    for place, id in enumerate(wanted):
        table.source.read_into(view[place * size : (place + 1) * size], table.start + id * size)
    return compute.rows(table.type.value, raw, (len(wanted), width), torch.arange(len(wanted)), factor)
