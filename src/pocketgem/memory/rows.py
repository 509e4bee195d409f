"""Rows of large tables, of which a token needs one: per-layer embeddings, and the embedding of a packed model.

A table is never a module parameter. Its stored bytes are held in memory, or stay in the file and are read a row at a
time; one gather makes float32 of them, so a row has the same bits from every place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import Progress
from pocketgem.kernels.compute import Compute
from pocketgem.memory.disk_rows import DiskRows
from pocketgem.memory.gather import Gather, by_kernel, by_torch, check_rows
from pocketgem.memory.place import HOT_BYTES, Place, settled

PIECE = 16 << 20  # bytes of a table read at a time


class RowSource(Protocol):
    """Rows of a table by number."""

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """Rows ``ids`` (int64 [n]) times ``factor``: float32 [n, width].

        Raises WeightsError for an id outside the table, CheckpointError if the file cannot be read or was changed.
        """

    def expect(self, ids: Sequence[int]) -> None:
        """These rows will be asked for soon. Never fails: what is wrong with them is said when they are asked for."""


def row_source(
    table: StoredTensor,
    place: Place,
    compute: Compute | None = None,
    *,
    device: torch.device | None = None,
    hot_bytes: int = HOT_BYTES,
    progress: Progress | None = None,
) -> RowSource:
    """Rows of ``table`` [rows, width] from ``place``, made float32 by ``compute``'s kernel or, without it, by torch.

    device: where the model runs and rows are wanted; None: the CPU. Stored bytes go there and become float32 there.
    hot_bytes: memory for rows that were read, where they come from disk. progress: called with (bytes read, bytes in
    all) where they are held. Raises CheckpointError if the file cannot be read.
    """
    gather = by_torch(table, device) if compute is None else by_kernel(table, compute)
    if settled(place) is Place.DISK:
        return DiskRows(table, gather, hot_bytes)
    held = read_table(table, progress)
    return HeldRows(table, gather, held.to(device) if place is Place.DEVICE and device is not None else held)


class HeldRows:
    """The table's stored bytes in memory, of the host or of a device; ``data`` is uint8 [table.nbytes]."""

    def __init__(self, table: StoredTensor, gather: Gather, data: Tensor) -> None:
        self._table, self._gather, self._data = table, gather, data

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """See ``RowSource``."""
        check_rows(ids, self._table)
        return self._gather(self._data, ids, factor)

    def expect(self, ids: Sequence[int]) -> None:
        """Nothing to do: they are here."""


def read_table(table: StoredTensor, progress: Progress | None = None) -> Tensor:
    """All bytes of a table, uint8 [nbytes], in memory of their own. Raises CheckpointError if they cannot be read."""
    data = torch.empty(table.nbytes, dtype=torch.uint8)
    view = data.numpy().data
    table.source.check_unchanged()
    for start in range(0, table.nbytes, PIECE):
        end = min(start + PIECE, table.nbytes)
        table.source.read_into(view[start:end], table.start + start)
        if progress is not None:
            progress(end, table.nbytes)
    table.source.check_unchanged()  # a write that met the last reads is seen only now
    return data
