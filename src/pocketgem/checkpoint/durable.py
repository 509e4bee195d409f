"""Files and folders that appear under their names only when they are whole.

Each is written beside its target under a name of its own, brought to the disk and renamed. What fails, an interrupt
included, is taken away; what a killed process left is taken away by the next who writes the same target. A temporary
that a living process works on is locked, and left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pocketgem.checkpoint.lock import HAS_LOCKS, lock
from pocketgem.errors import CheckpointError, PocketgemError, RunError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def refusal(target: Path, error: OSError) -> PocketgemError:
    """Why ``target`` cannot be written, as an error for people: a full disk fails a run, a bad place is bad input."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return RunError(
            f"{target}: cannot be written ({reason}); nothing was left behind, free some space or go elsewhere"
        )
    return CheckpointError(f"{target}: cannot be written ({reason})")


def check_room(folder: Path, size: int, spare: int = 0) -> None:
    """Raise OSError if the disk of ``folder`` has no room for ``size`` bytes with ``spare`` left over."""
    free = shutil.disk_usage(folder).free
    if free < size + spare:
        margin = f" beside {spare >> 20} MiB to spare" if spare else ""
        raise OSError(errno.ENOSPC, f"no room for {size / 1e9:.2f} GB{margin}, {free / 1e9:.2f} GB are free")


class Temporary:
    """A new, empty, locked file (or folder) beside ``target``, which becomes ``target`` or goes. mode: of the file.

    Every method raises OSError where the disk or the folder refuses.
    """

    def __init__(self, target: Path, *, folder: bool = False, mode: int = 0o666) -> None:
        sweep(target)
        self.target = target
        self.descriptor, self.path = _make_folder(target) if folder else _make_file(target, mode)

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        if self.descriptor >= 0:
            os.fsync(self.descriptor)

    def publish(self) -> None:
        """Give it the target's name, and bring that to the disk."""
        if not HAS_LOCKS:  # Windows renames no open file
            self._unlock()
        os.replace(self.path, self.target)
        sync_folder(self.target.parent)

    def close(self) -> None:
        """Take away what was not published."""
        if not HAS_LOCKS:
            self._unlock()
        with contextlib.suppress(OSError):  # published: it has another name now
            _remove(self.path)
        self._unlock()

    def _unlock(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


@contextlib.contextmanager
def new_file(target: Path, size: int) -> Iterator[IO[bytes]]:
    """A file of about ``size`` bytes to write to; it is ``target`` when the block ends well, else nothing is left.

    A file that was there is replaced at that moment, not before. Raises CheckpointError for a place that cannot be
    written to, RunError when the disk is full.
    """
    try:
        check_replaceable(target)
        check_room(target.parent, size)
        temporary = Temporary(target)
        try:
            with os.fdopen(os.dup(temporary.descriptor), "w+b") as file:
                yield file
                file.flush()
                temporary.sync()
            temporary.publish()
        finally:
            temporary.close()
    except OSError as error:
        raise refusal(target, error) from error


def write_file(target: Path, content: bytes) -> None:
    """All of a small file, whole or not at all. Raises as ``new_file``."""
    with new_file(target, len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def new_folder(target: Path, size: int) -> Iterator[Path]:
    """A folder to write about ``size`` bytes into; it is ``target`` when the block ends well, else nothing is left.

    A folder that was there is replaced at that moment: it is given a name of its own, and brought back by the next who
    writes ``target`` if the process is killed between the two. Raises as ``new_file``; whoever writes files into it
    brings them to the disk.
    """
    try:
        bring_back(target)
        check_room(target.parent, size)
        temporary = Temporary(target, folder=True)
        try:
            yield temporary.path
            temporary.sync()
            old = _set_aside(target)
            temporary.publish()
            if old is not None:
                shutil.rmtree(old)
        finally:
            temporary.close()
    except OSError as error:
        raise refusal(target, error) from error


def bring_back(target: Path) -> None:
    """Undo a replacement of the folder ``target`` that was cut between its two renames. Raises OSError."""
    old = _aside(target)
    if old.is_dir() and not os.path.lexists(target):
        os.replace(old, target)
    elif old.is_dir():  # the new one arrived
        shutil.rmtree(old)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced.old")


def _set_aside(target: Path) -> Path | None:
    if not target.is_dir() or not any(target.iterdir()):
        return None
    os.replace(target, _aside(target))
    return _aside(target)


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows has no way to do that
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(target: Path) -> None:
    """Remove temporaries of ``target`` that nobody works on any more."""
    _sweep(target.parent, re.escape(target.name))


def sweep_folder(folder: Path) -> None:
    """Remove temporaries of any target in ``folder`` that nobody works on any more."""
    _sweep(folder, ".+")


def _sweep(folder: Path, names: str) -> None:
    ours = re.compile(rf"\.{names}\.\d+\.[0-9a-f]{{8}}\.tmp")
    for path in [path for path in folder.iterdir() if ours.fullmatch(path.name)]:
        with contextlib.suppress(OSError):  # locked, or gone already
            if not HAS_LOCKS:  # Windows refuses to remove an open file: that serves as the lock
                _remove(path)
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                lock(descriptor, wait=False)
                _remove(path)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def check_replaceable(target: Path) -> None:
    """Raise OSError if what stands at ``target`` must not be replaced by a file."""
    if os.path.lexists(target) and not os.path.isfile(target):
        raise OSError(errno.EEXIST, "something that is not a file is there; it stays as it is")


def _free_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _make_file(target: Path, mode: int) -> tuple[int, Path]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = _free_name(target)
        descriptor = os.open(path, flags, mode)
        if _locked(descriptor):
            return descriptor, path


def _make_folder(target: Path) -> tuple[int, Path]:
    while True:
        path = _free_name(target)
        path.mkdir()
        if not hasattr(os, "O_DIRECTORY"):  # Windows: no way to hold a folder, so it is swept only when it can be
            return -1, path
        with contextlib.suppress(FileNotFoundError):  # swept before it could be opened
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            if _locked(descriptor):
                return descriptor, path


def _locked(descriptor: int) -> bool:
    """Lock it for this process; False, and closed, if another process has swept it before that."""
    with contextlib.suppress(OSError):  # a file system without locks, where nobody sweeps either
        lock(descriptor)
    if os.fstat(descriptor).st_nlink > 0:
        return True
    os.close(descriptor)
    return False
