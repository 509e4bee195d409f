"""Rows of a source become bytes of the new file, a piece at a time, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pocketgem.checkpoint.dequant import dequantize, dtype_of
from pocketgem.checkpoint.grid import grid_q4_0, lies_on_grid
from pocketgem.checkpoint.quantize import TILE, quantizable, quantize
from pocketgem.checkpoint.stream import SourceTensor, read_rows
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType, tensor_bytes
from pocketgem.errors import UnsupportedError, WeightsError

AHEAD = 3  # pieces in the making for each thread
SAMPLE = 256  # rows looked at to see whether a tensor lies on a grid
Rounding = Callable[[Tensor, StoredType], Tensor]  # float32 [n, block_size] -> uint8 [n, type_size]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Encoding:
    """How one tensor is turned: ``type`` is what it becomes, ``on_grid`` that its blocks are looked for exactly."""

    tensor: SourceTensor
    type: StoredType
    on_grid: bool = False
    rounding: Rounding = quantize

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.tensor.shape, self.type)

    @property
    def how(self) -> str:
        """``copied`` as it is, ``converted`` to another plain type, ``grid`` or ``rounded``."""
        if self.tensor.type is self.type and not self.tensor.offset:
            return "copied"
        return "grid" if self.on_grid else "rounded" if self.type.packed else "converted"

    def encode(self, raw: Tensor) -> tuple[Tensor, int]:
        """Rows as the source has them, uint8 [n, bytes a row] -> the same in ``type``, and how many blocks are exact.

        Raises WeightsError for weights that are not numbers.
        """
        if self.how == "copied":
            return raw, 0
        tiles = [self._tile(part) for part in raw.split(max(1, TILE // self.tensor.width))]
        return torch.cat([data for data, _ in tiles]), sum(exact for _, exact in tiles)

    def _tile(self, raw: Tensor) -> tuple[Tensor, int]:
        source = self.tensor.type
        values = dequantize(raw.view(-1, source.type_size), source)  # float32, whatever the source
        if self.tensor.offset:
            values += self.tensor.offset
        if not self.type.packed:
            data = values.to(dtype_of(self.type)).view(torch.uint8)
            return data.view(raw.shape[0], -1), 0
        if not values.sum().isfinite():  # a sum of finite weights overflows for none that a model could have
            raise WeightsError(f"{self.tensor.name}: holds weights that are not finite numbers")
        values = values.view(-1, self.type.block_size)
        if not self.on_grid:
            return self.rounding(values, self.type).view(raw.shape[0], -1), 0
        blocks, exact = grid_q4_0(_native(raw, source).view(-1, self.type.block_size))
        if not exact.all():
            blocks[~exact] = self.rounding(values[~exact], self.type)
        return blocks.view(raw.shape[0], -1), int(exact.sum())


def _native(raw: Tensor, stored: StoredType) -> Tensor:
    """Bytes [n, size] of a plain type as its numbers."""
    dtype = dtype_of(stored)
    assert dtype is not None, "only plain types lie on a grid"
    return raw.view(dtype)


def encoding(tensor: SourceTensor, type: StoredType, rounding: Rounding = quantize) -> Encoding:
    """Look at a few rows, and settle how the tensor is turned. Raises UnsupportedError for a type nobody writes."""
    if type.packed and not quantizable(type) and type is not tensor.type:
        raise UnsupportedError(f"{tensor.name}: cannot be stored as {type}")
    on_grid = type is StoredType.Q4_0 and tensor.type in _GRIDDED and lies_on_grid(_sample(tensor))
    return Encoding(tensor, type, on_grid, rounding)


_GRIDDED = (StoredType.BF16, StoredType.F16, StoredType.F32)


def _sample(tensor: SourceTensor) -> Tensor:
    """Rows from all over a tensor, [n, 32]: about SAMPLE blocks, but whole rows."""
    part = tensor.stored[len(tensor.stored) // 2]
    rows = part.numel // tensor.width
    count = min(rows, max(1, SAMPLE * 32 // tensor.width))
    picked = [read_rows(part, row, row + 1) for row in range(0, rows, max(1, rows // count))]
    return _native(torch.cat(picked[:count]), tensor.type).view(-1, 32)


def encoded(plan: Encoding, pool: ThreadPoolExecutor, workers: int) -> Iterator[tuple[Tensor, int]]:
    """The tensor's bytes in order, uint8 [n, bytes a row], and how many blocks of each piece are exact."""
    if plan.tensor.values is not None:
        yield plan.tensor.values.contiguous().view(torch.uint8), 0
    yield from in_order(pool, lambda piece: plan.encode(read_rows(*piece)), plan.tensor.pieces(), workers * AHEAD)


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` that has ``ahead`` items in the making and no more, and drops what is left when it is left."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class RoundedMatrix:
    """A stored matrix as it will read once it was encoded: for ``model.streamed``, without a file in between."""

    def __init__(self, plan: Encoding, stored: StoredTensor, pool: ThreadPoolExecutor, workers: int) -> None:
        self.plan, self.stored, self.pool, self.workers = plan, stored, pool, workers
        self.shape = stored.shape

    def rows(self, start: int, stop: int) -> Tensor:
        step = max(1, TILE // self.shape[-1])
        pieces = [(first, min(first + step, stop)) for first in range(start, stop, step)]
        return torch.cat([*in_order(self.pool, self._rows, pieces, self.workers * AHEAD)])

    def _rows(self, piece: tuple[int, int]) -> Tensor:
        data, _ = self.plan.encode(read_rows(self.stored, *piece))
        return dequantize(data.view(-1, self.plan.type.type_size), self.plan.type).view(len(data), -1)

    def take(self, ids: Tensor) -> Tensor:
        return torch.cat([self._rows((id, id + 1)) for id in ids.tolist()])
