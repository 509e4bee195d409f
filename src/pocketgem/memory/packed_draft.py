"""A large file that is written through a mapping and appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType

import torch

from pocketgem.memory.packed_file import is_ours

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove an open file: that serves as the lock
    fcntl = None  # type: ignore[assignment]  # a module that is not there

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
        _sweep(target)
        if shutil.disk_usage(target.parent).free < size + MARGIN:
            raise OSError(errno.ENOSPC, f"no room for {size / 1e9:.1f} GB beside {MARGIN >> 20} MiB to spare")
        self._descriptor, self.path = _create(target)
        self._settled = (0, 0)
        try:
            _allocate(self._descriptor, size)
            self._mapping = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_WRITE)
        except BaseException:
            self._remove()
            raise
        self.data = torch.frombuffer(self._mapping, dtype=torch.uint8)

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
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)

    def publish(self) -> None:
        """Bring all bytes to the disk, then give the file its name. ``data`` must not be written to any more."""
        self._mapping.flush()
        os.fsync(self._descriptor)
        _check_replaceable(self.target)
        os.replace(self.path, self.target)
        if hasattr(os, "O_DIRECTORY"):  # Windows has no way to bring a name to the disk
            folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # published: it has another name now
            self.path.unlink()
        os.close(self._descriptor)


def _check_replaceable(target: Path) -> None:
    if os.path.lexists(target) and not is_ours(target):
        raise FileExistsError(errno.EEXIST, f"{target} is there and not ours; it stays as it is")


def _create(target: Path) -> tuple[int, Path]:
    """A new, locked, empty file in the folder of ``target``."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(path, flags, 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody sweeps either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, path
        os.close(descriptor)  # swept by another process before it was locked


def _sweep(target: Path) -> None:
    """Remove drafts of ``target`` that nobody works on any more."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+\.[0-9a-f]{{8}}\.tmp")
    for path in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
        with contextlib.suppress(OSError):  # locked, or gone already
            if fcntl is None:
                path.unlink()
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


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
