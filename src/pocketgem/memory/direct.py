"""Ranges of one large file, read by several threads past the page cache where the system lets us.

Who manages its own memory wants no second copy in the page cache, which would take the place of something else. A
mapping is worse still under a limit: each page that is missing stops the thread that touched it.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.errors import CheckpointError
from pocketgem.memory.packed_place import ALIGNMENT

THREADS = 4  # reads at once: what a solid-state disk needs to show its speed, and a virtual one too


class DirectFile:
    """Aligned ranges of the file behind a mapping."""

    def __init__(self, mapped: MappedFile) -> None:
        self._mapped = mapped
        self._descriptor = _open_direct(mapped)
        if self._descriptor is not None:
            weakref.finalize(self, os.close, self._descriptor)

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._descriptor is not None

    def read(self, target: memoryview, start: int) -> None:
        """Fill ``target`` with the bytes from ``start`` on, all multiples of ALIGNMENT. Raises CheckpointError."""
        if self._descriptor is not None:
            try:
                return _read_whole(self._descriptor, target, start, self._mapped)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise CheckpointError(f"{self._mapped.path}: cannot be read ({error.strerror})") from error
                self._descriptor = None  # a file system that wants larger pieces; its finalizer closes it
        self._mapped.read_into(target, start)


def _open_direct(mapped: MappedFile) -> int | None:
    """None where the system or the file system reads through its cache only."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None or not hasattr(os, "preadv"):
        return None
    try:
        descriptor = os.open(mapped.path, os.O_RDONLY | flag)
    except OSError:
        return None
    if mapped.is_at(descriptor):
        return descriptor
    os.close(descriptor)  # the name stands for another file by now; the mapping keeps the old one
    return None


def _read_whole(descriptor: int, target: memoryview, start: int, mapped: MappedFile) -> None:
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], start + done)
        if got == 0 or got % ALIGNMENT:
            raise CheckpointError(f"{mapped.path}: the file was cut short while in use; load the model again")
        done += got


Check = Callable[[memoryview], None]  # raises CheckpointError for bytes that are not what they should be


class Readers:
    """Threads that read while somebody computes. One caller at a time."""

    def __init__(self, file: DirectFile, threads: int = THREADS) -> None:
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._done: SimpleQueue[Done] = SimpleQueue()
        arguments = (file, self._jobs, self._done)
        self._threads = [
            threading.Thread(target=_work, args=arguments, name=f"reader-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _dismiss, self._jobs, self._threads)

    def ask(self, tag: int, target: memoryview, start: int, check: Check | None = None) -> None:
        """Have a range read, then checked by the thread that read it; ``tag`` comes back from ``next``."""
        self._jobs.put(_Read(tag, target, start, check))

    def next(self) -> Done:
        """The tag of a range that was read, or of one that could not and why. Waits for one."""
        return self._done.get()

    def has_next(self) -> bool:
        """Whether ``next`` would answer at once."""
        return not self._done.empty()

    def drain(self) -> None:
        """Wait until nothing is being read, and forget what was: also after an interrupt that lost count of it."""
        pause = _Pause(threading.Semaphore(0), threading.Event())
        try:
            for _ in self._threads:
                self._jobs.put(pause)
            for _ in self._threads:  # each thread stops once, after all that was asked before
                pause.stopped.acquire()
        finally:
            pause.go_on.set()
        while self.has_next():
            self._done.get()


@dataclass(frozen=True, slots=True)
class _Read:
    tag: int
    target: memoryview
    start: int
    check: Check | None


@dataclass(frozen=True, slots=True)
class _Pause:
    stopped: threading.Semaphore
    go_on: threading.Event


Job = _Read | _Pause | None  # None: the end
Done = tuple[int, Exception | None]


def _work(file: DirectFile, jobs: SimpleQueue[Job], done: SimpleQueue[Done]) -> None:
    while (job := jobs.get()) is not None:
        if isinstance(job, _Pause):
            job.stopped.release()
            job.go_on.wait()
        else:
            done.put((job.tag, _read(file, job)))
        del job  # it holds the caller's memory


def _read(file: DirectFile, job: _Read) -> Exception | None:
    try:
        file.read(job.target, job.start)
        if job.check is not None:
            job.check(job.target)
    except Exception as problem:  # it is the asker's to raise
        return problem
    return None


def _dismiss(jobs: SimpleQueue[Job], threads: Sequence[threading.Thread]) -> None:
    """End the threads, and see them go: one that wakes while the interpreter leaves takes the process down with it."""
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        if thread is not threading.current_thread():  # a collection may run in any thread, also in one of these
            thread.join()
