"""A large file that is written through a mapping and appears under its name only when it is complete."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from types import TracebackType

import torch

from pocketgem.checkpoint.durable import Temporary, check_room
from pocketgem.memory.packed_file import is_ours

MARGIN = 256 << 20  # bytes left free on the disk: a full one breaks other programs
_ZEROS = bytes(1 << 20)


class Draft:
    """``size`` bytes of disk, filled through ``data`` (uint8 [size], zeros at first), then published as ``target``.

    Used as a context: what was not published is removed at its end, and what a crash left is removed by the next draft
    of the same target. A draft that a living process works on is locked, and left alone. Every method raises OSError
    where the disk, the folder or a file in the way refuses.
    """

    def __init__(self, target: Path, size: int) -> None:
        self.target = target
        _check_replaceable(target)
        self._temporary = Temporary(target)
        self._settled = (0, 0)
        try:
            check_room(target.parent, size, MARGIN)
            _allocate(self._temporary.descriptor, size)
            self._mapping = mmap.mmap(self._temporary.descriptor, size, access=mmap.ACCESS_WRITE)
        except BaseException:
            self._temporary.close()
            raise
        self.data = torch.frombuffer(self._mapping, dtype=torch.uint8)

    @property
    def path(self) -> Path:
        """The name it has until it is published."""
        return self._temporary.path

    def settle(self, start: int, end: int) -> None:
        """Bytes [start, end) will not change any more: the disk may have them, and must have those settled before.

        Under a memory limit what waits for the disk is not given back, and the system may kill who writes faster than
        it. So at most two such ranges wait; the disk works on one while the next is filled.
        """
        start = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._start_writing(start, end)
        before, self._settled = self._settled, (start, end)
        self._mapping.flush(before[0], before[1] - before[0])

    def _start_writing(self, start: int, end: int) -> None:
        if hasattr(os, "posix_fadvise"):  # of pages in use this only writes the changed ones, and does not wait
            os.posix_fadvise(self._temporary.descriptor, start, end - start, os.POSIX_FADV_DONTNEED)

    def publish(self) -> None:
        """Bring all bytes to the disk, then give the file its name. ``data`` must not be written to any more."""
        self._mapping.flush()
        self._temporary.sync()
        _check_replaceable(self.target)
        self._temporary.publish()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._temporary.close()


def _check_replaceable(target: Path) -> None:
    if os.path.lexists(target) and not is_ours(target):
        raise FileExistsError(errno.EEXIST, f"{target} is there and not ours; it stays as it is")


def _allocate(descriptor: int, size: int) -> None:
    """Take ``size`` bytes of the disk now: a full disk that is met through a mapping kills the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    with open(descriptor, "wb", closefd=False) as file:
        for start in range(0, size, len(_ZEROS)):
            file.write(_ZEROS[: size - start])
