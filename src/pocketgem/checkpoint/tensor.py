"""A tensor as it lies in a file: a name, a shape, a stored type, and mapped bytes that nobody has read yet."""

from __future__ import annotations

import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, FormatError, WeightsError

__all__ = ["MappedFile", "StoredTensor", "StoredType"]

# Weights unpacked at a time. The temporaries of one chunk are about 10 MiB: small enough to stay near the cores,
# large enough that the cost of calling torch vanishes.
CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs"


class MappedFile:
    """A regular file mapped read-only: ``data`` is uint8 [size], and pages are read when somebody looks at them.

    A read-only mapping may exceed the machine's memory; a private writable one (``torch.from_file``, and so
    ``safe_open(framework="pt")``) is refused by Linux when it does. The price is that writing to ``data`` crashes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError for a file that is missing, unreadable, empty or not regular."""
        self.path = Path(path)
        self._descriptor = _open_regular(self.path)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._look()
        self.size = self._state[0]
        if self.size == 0:
            raise FormatError(f"{self.path}: the file is empty")
        try:
            self.buffer = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # a file system without mapping; a file cut short just now
            raise CheckpointError(f"{self.path}: cannot be mapped ({error})") from error
        # DLPack is the one road from read-only bytes to a tensor that neither copies nor warns.
        self.data: Tensor = from_dlpack(np.frombuffer(self.buffer, dtype=np.uint8))
        if self.buffer[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise FormatError(f"{self.path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was cut, extended or rewritten since it was opened.

        Touching a page that no longer exists kills the process, and a torn read is a wrong answer in silence; asking
        first costs a microsecond. (A file replaced by renaming another over it is harmless: the mapping keeps the old.)
        """
        if self._look() != self._state:
            raise CheckpointError(f"{self.path}: the file was changed while in use; load the model again")

    def _look(self) -> tuple[int, int]:
        """Size in bytes, time of the last change in nanoseconds."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def _open_regular(path: Path) -> int:
    try:
        # Looked at before and after opening: a named pipe would wait for ever, some devices act on being opened,
        # and what the name stands for may change in between.
        if stat.S_ISREG(path.stat().st_mode):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be opened ({reason})") from error
    raise CheckpointError(f"{path}: not a regular file")


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """``data`` is uint8 [nbytes], a view of a mapped file: read-only. ``shape`` is in torch order, last dim packed."""

    name: str
    shape: tuple[int, ...]
    type: StoredType
    data: Tensor = field(repr=False)
    source: MappedFile | None = field(default=None, repr=False)  # asked before every read if the bytes are still there

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole tensor as ``dtype`` [*shape]; a view of the file if that is what is stored, else a new tensor.

        Raises CheckpointError if the file changed since it was opened. Beyond the result, about 10 MiB is used.
        """
        self._check_source()
        if self.type.dtype is not None:
            return self._plain(self.type.dtype).view(self.shape).to(dtype)
        out = torch.empty(self.numel, dtype=dtype)
        blocks = self.data.view(-1, self.type.type_size)
        for part in self._chunks(blocks.shape[0], self.type.block_size):
            weights = slice(part.start * self.type.block_size, part.stop * self.type.block_size)
            out[weights] = dequantize(blocks[part], self.type).view(-1)
        return out.view(self.shape)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 [n]) of the leading dims taken as one, float32 [n, shape[-1]]; only they are read.

        Raises WeightsError for an id outside the table, CheckpointError if the file changed since it was opened.
        """
        width = self.shape[-1] if self.shape else 1
        table = self.data.view(self.numel // width, -1)  # [rows, bytes a row]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < table.shape[0]:
            raise WeightsError(f"{self.name} has {table.shape[0]} rows; rows {ids.min()} to {ids.max()} were asked for")
        out = torch.empty(len(ids), width)
        for part in self._chunks(len(ids), width):
            blocks = table.index_select(0, ids[part]).view(-1, self.type.type_size)
            out[part] = dequantize(blocks, self.type).view(-1, width)
        return out

    def _chunks(self, count: int, weights_each: int) -> Iterator[slice]:
        """Slices of ``range(count)`` of about CHUNK weights; the file is checked before each."""
        step = max(1, CHUNK // weights_each)
        for start in range(0, count, step):
            self._check_source()
            yield slice(start, min(start + step, count))

    def _plain(self, dtype: torch.dtype) -> Tensor:
        # safetensors does not promise alignment, and torch only reinterprets aligned bytes.
        aligned = self.data.storage_offset() % dtype.itemsize == 0 and self.data.data_ptr() % dtype.itemsize == 0
        return (self.data if aligned else self.data.clone()).view(dtype)

    def _check_source(self) -> None:
        if self.source is not None:
            self.source.check_unchanged()
