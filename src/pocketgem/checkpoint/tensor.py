"""A tensor as it lies in a file: a name, a shape, a stored type, and mapped bytes that nobody has read yet.

Opening and describing take no torch; ``unpack.py``, which turns bytes into values, is imported at the first value.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, FormatError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pocketgem.checkpoint.unpack import Unpacker

__all__ = ["MappedFile", "StoredTensor", "StoredType"]

_LFS_POINTER = b"version https://git-lfs"


class MappedFile:
    """A regular file mapped read-only as ``buffer``; pages are read when somebody looks at them.

    A read-only mapping may exceed the machine's memory; a private writable one (``torch.from_file``, and so
    ``safe_open(framework="pt")``) is refused by Linux when it does. The price is that writing to ``data`` crashes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError for a file that is missing, unreadable, empty or not regular."""
        self.path = Path(path)
        self.descriptor = open_regular(self.path, CheckpointError)
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._look()
        self.size = self._state[0]
        if self.size == 0:
            raise FormatError(f"{self.path}: the file is empty")
        try:
            self.buffer = mmap.mmap(self.descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # a file system without mapping; a file cut short just now
            raise CheckpointError(f"{self.path}: cannot be mapped ({error})") from error
        if self.buffer[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise FormatError(f"{self.path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")

    @cached_property
    def data(self) -> Tensor:
        """The same bytes as uint8 [size]."""
        from pocketgem.checkpoint.unpack import viewed  # as in ``StoredTensor``

        return viewed(self.buffer)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was cut, extended or rewritten since it was opened.

        Touching a page that no longer exists kills the process, and a torn read is a wrong answer in silence; asking
        first costs a microsecond. (A file replaced by renaming another over it is harmless: the mapping keeps the old.)
        """
        if self._look() != self._state:
            raise CheckpointError(f"{self.path}: the file was changed while in use; load the model again")

    def read_into(self, target: memoryview, start: int) -> None:
        """Copy the bytes from ``start`` on into ``target`` by reading the file, not the mapping.

        What is read here and there from a large table then does not count as this process's memory, page by page, and a
        file cut short is an error instead of the end of the process. Raises CheckpointError.
        """
        self.read_into_each([target], start)

    def read_into_each(self, targets: Sequence[memoryview], start: int) -> None:
        """The same for targets (up to a thousand) whose bytes follow one another in the file, in one call."""
        wanted = sum(map(len, targets))
        if not hasattr(os, "preadv"):  # Windows: the mapping will do
            self._copy_each(targets, start)
            return
        with self.reading():
            found = os.preadv(self.descriptor, targets, start)
        if found != wanted:
            raise self.cut_short()

    def _copy_each(self, targets: Sequence[memoryview], start: int) -> None:
        self.check_unchanged()
        for target in targets:
            target[:] = self.buffer[start : start + len(target)]
            start += len(target)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What the system says against a read becomes a CheckpointError."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error

    def cut_short(self) -> CheckpointError:
        """The error for bytes that should be there and are not."""
        return CheckpointError(f"{self.path}: the file was cut short while in use; load the model again")

    def read_soon(self, start: int, size: int) -> None:
        """Ask the system to read these bytes ahead, many requests at once, and return. Never fails; macOS and Windows
        have no such request, and there nothing happens."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # a file system without it; or the next read meets the same fault
                os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def is_at(self, descriptor: int) -> bool:
        """Whether another open descriptor is of this very file."""
        return os.path.samestat(os.fstat(descriptor), os.fstat(self.descriptor))

    def _look(self) -> tuple[int, int]:
        """Size in bytes, time of the last change in nanoseconds."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns


def open_regular(path: Path, refusal: type[InputError]) -> int:
    """A descriptor to read a regular file by. Raises ``refusal`` for what is missing, unreadable or another kind."""
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
        raise refusal(f"{path}: cannot be opened ({reason})") from error
    raise refusal(f"{path}: not a regular file")


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Bytes ``start`` to ``end`` of a mapped file. ``shape`` is in torch order, the last dimension packed."""

    name: str
    shape: tuple[int, ...]
    type: StoredType
    source: MappedFile = field(repr=False)
    start: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def data(self) -> Tensor:
        """The bytes, uint8 [nbytes], a view of the mapped file: read-only."""
        return self._unpacker.data

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype whose bytes these are; None for a block type."""
        return self._unpacker.dtype

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor as ``dtype`` (None: float32) [*shape]; a view of the file if it holds that, else new.

        Raises CheckpointError if the file changed since it was opened. Beyond the result, about 10 MiB is used.
        """
        return self._unpacker.dense(dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 [n]) of the leading dims taken as one, float32 [n, shape[-1]]; only they are read.

        Raises WeightsError for an id outside the table, CheckpointError if the file changed since it was opened.
        """
        return self._unpacker.rows(ids)

    def numbers(self) -> list[float]:
        """The values of a small tensor; of a float32 one without torch, for what a header's reader must know."""
        if self.type is not StoredType.F32:
            return [float(value) for value in self.dense().flatten().tolist()]
        self.source.check_unchanged()
        return list(struct.unpack(f"<{self.numel}f", self.source.buffer[self.start : self.end]))

    @cached_property
    def _unpacker(self) -> Unpacker:
        from pocketgem.checkpoint.unpack import Unpacker  # here: it imports torch, and most headers are only looked at

        data = self.source.data[self.start : self.end]
        return Unpacker(self.name, self.shape, self.type, data, self.source.check_unchanged)
