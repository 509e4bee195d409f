"""Rows of a table as they are stored become float32: by a compiled kernel, or by torch. The same bits from both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.unpack import Unpacker
from pocketgem.errors import WeightsError
from pocketgem.kernels.compute import Compute

# stored rows uint8 [n * bytes a row], which of them int64 [m], factor -> float32 [m, width]
Gather = Callable[[Tensor, Tensor, float], Tensor]


def by_kernel(table: StoredTensor, compute: Compute) -> Gather:
    """How rows stored like those of ``table`` [rows, width] become float32 in one call of a kernel."""
    size, width = table.nbytes // table.shape[0], table.shape[1]

    def gather(data: Tensor, which: Tensor, factor: float) -> Tensor:
        return compute.rows(table.type.value, data, (data.numel() // size, width), which, factor)

    return gather


def by_torch(table: StoredTensor, device: torch.device | None = None) -> Gather:
    """The same in torch, on ``device`` (None: the CPU); equal rows of one call are moved and unpacked once.

    What lies in the host's memory goes to the device as it is stored, from pinned memory where that is a CUDA card.
    """
    size, width = table.nbytes // table.shape[0], table.shape[1]

    def gather(data: Tensor, which: Tensor, factor: float) -> Tensor:
        unique, where = torch.unique(which, return_inverse=True)
        if device is not None and data.device != device:
            chosen = data.view(-1, size).index_select(0, unique).view(-1)
            chosen = chosen.pin_memory() if device.type == "cuda" else chosen
            data, unique = chosen.to(device, non_blocking=True), torch.arange(len(unique))
        stored = Unpacker(table.name, (data.numel() // size, width), table.type, data, _unchanged)
        return (stored.rows(unique.to(data.device)) * factor)[where.to(data.device)]

    return gather


def _unchanged() -> None:
    """Bytes in memory stay as they are."""


def check_rows(ids: Tensor, table: StoredTensor) -> None:
    """Raise WeightsError unless all ``ids`` are rows of ``table``."""
    count = table.shape[0]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise WeightsError(f"{table.name} has {count} rows; rows {int(ids.min())} to {int(ids.max())} were asked for")
