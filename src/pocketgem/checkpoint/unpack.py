"""The torch side of a stored tensor: its bytes as they lie in the file become values, whole or by rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pocketgem.checkpoint.dequant import dequantize, dtype_of
from pocketgem.checkpoint.types import Buffer, StoredType
from pocketgem.errors import WeightsError

# Weights unpacked at a time. The temporaries of one chunk are about 10 MiB: small enough to stay near the cores,
# large enough that the cost of calling torch vanishes.
CHUNK = 1 << 20


def viewed(buffer: Buffer) -> Tensor:
    """Bytes as uint8 [n] without a copy; writing to it crashes if they are mapped read-only."""
    # DLPack is the one road from read-only bytes to a tensor that neither copies nor warns.
    return from_dlpack(np.frombuffer(buffer, dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class Unpacker:
    """``data`` is uint8 [nbytes]; ``check`` is asked before every read and raises if the bytes are no longer there."""

    name: str
    shape: tuple[int, ...]
    type: StoredType
    data: Tensor
    check: Callable[[], None]

    @property
    def dtype(self) -> torch.dtype | None:
        return dtype_of(self.type)

    def dense(self, dtype: torch.dtype | None) -> Tensor:
        """See ``StoredTensor.dense``."""
        self.check()
        dtype = dtype or torch.float32
        if self.dtype is not None:
            return self._plain(self.dtype).view(self.shape).to(dtype)
        blocks = self.data.view(-1, self.type.type_size)
        out = torch.empty(math.prod(self.shape), dtype=dtype)
        for part in self._chunks(blocks.shape[0], self.type.block_size):
            weights = slice(part.start * self.type.block_size, part.stop * self.type.block_size)
            out[weights] = dequantize(blocks[part], self.type).view(-1)
        return out.view(self.shape)

    def rows(self, ids: Tensor) -> Tensor:
        """See ``StoredTensor.rows``."""
        width = self.shape[-1] if self.shape else 1
        table = self.data.view(math.prod(self.shape) // width, -1)  # [rows, bytes a row]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < table.shape[0]:
            raise WeightsError(f"{self.name} has {table.shape[0]} rows; rows {ids.min()} to {ids.max()} were asked for")
        out = torch.empty(len(ids), width, device=self.data.device)
        for part in self._chunks(len(ids), width):
            blocks = table.index_select(0, ids[part]).view(-1, self.type.type_size)
            out[part] = dequantize(blocks, self.type).view(-1, width)
        return out

    def _chunks(self, count: int, weights_each: int) -> Iterator[slice]:
        """Slices of ``range(count)`` of about CHUNK weights; the file is checked before each."""
        step = max(1, CHUNK // weights_each)
        for start in range(0, count, step):
            self.check()
            yield slice(start, min(start + step, count))

    def _plain(self, dtype: torch.dtype) -> Tensor:
        # safetensors does not promise alignment, and torch only reinterprets aligned bytes.
        aligned = self.data.storage_offset() % dtype.itemsize == 0 and self.data.data_ptr() % dtype.itemsize == 0
        return (self.data if aligned else self.data.clone()).view(dtype)
