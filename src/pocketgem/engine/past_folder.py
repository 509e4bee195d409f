"""Kept pasts on disk: one file each, in a folder of one's own, so that they outlive the process.

What is asked for lies in an index of the headers. Files are written by a thread of their own, each under a temporary
name first, and appear only when they are whole; nothing that goes wrong with one hurts a request. A file that is
damaged, or that somebody else could have written, is not believed, and ``notes`` say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import stat
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from pocketgem.checkpoint.durable import Temporary, check_room, sweep_folder
from pocketgem.engine.past_file import About, blocks_of, header_of, owner_of, read_about, read_past
from pocketgem.engine.prefix import Kept, Scope
from pocketgem.engine.prefix_tree import Ids
from pocketgem.engine.reach import Slide
from pocketgem.errors import FormatError, InputError
from pocketgem.model.cache import Cache
from pocketgem.model.past import Rows, Stored, gathered

SUFFIX = ".past"
SPARE = 256 << 20  # bytes left free on the disk: a full one breaks other programs
MOST_FILES = 4096
LEAST_TOKENS = 256  # of a past that is worth a file: fewer are read again in a moment
PENDING = 2  # pasts that wait to be written; they are held in memory meanwhile
NAME = re.compile(r"[0-9a-f]{32}" + re.escape(SUFFIX))


@dataclass(frozen=True, eq=False)
class Entry:
    """A file, by its header."""

    name: str
    about: About
    slide: Slide  # of the model's layers
    used: float

    def reaches(self, ids: Ids) -> int:
        """How many of ``ids`` it can begin, one being left to compute."""
        limit = min(_common(self.about.ids, ids), len(ids) - 1)
        return self.slide.best(self.slide.needs(self.about.ends), limit)


@dataclass(frozen=True, eq=False)
class Job:
    """A past to be written."""

    owner: str
    kept: Kept[Rows]


class PastFolder:
    """Kept pasts of one model in a folder, in at most ``budget`` bytes.

    identity: of the weights, and of all else that the numbers in a past depend on. least: tokens of a past worth a
    file. Raises InputError for a folder that cannot be made, or that others could write to.
    """

    def __init__(
        self, path: Path, budget: int, identity: str, empty: Cache, slide: Slide, *, least: int = LEAST_TOKENS
    ) -> None:
        self.path, self.budget, self.identity, self.least = path, budget, identity, least
        self.empty, self.slide = empty, slide
        self.notes: deque[str] = deque(maxlen=100)
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._jobs: queue.Queue[Job | None] = queue.Queue(PENDING)
        self._writer: threading.Thread | None = None
        self._stamp = _opened(path)
        self._scan()

    @property
    def nbytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(entry.about.size for entry in self._entries.values())

    # ---- finding ---------------------------------------------------------------------------------------------------

    def reach(self, scope: Scope, ids: Ids) -> tuple[int, Entry | None]:
        """How many of ``ids`` the best file can begin, and which it is."""
        owner = owner_of(self.identity, scope)
        with self._lock:
            fitting = [entry for entry in self._entries.values() if entry.about.owner == owner]
        reached = [(entry.reaches(ids), entry) for entry in fitting]
        position, best = max(reached, key=lambda pair: pair[0], default=(0, None))
        return position, best if position else None

    def load(self, entry: Entry) -> Stored | None:
        """What a file holds, once it is read whole and checked; None, with a note, when it cannot be believed."""
        try:
            with self._open(entry.name) as file:
                about = read_about(file, os.fstat(file.fileno()).st_size)
                if about.owner != entry.about.owner or not np.array_equal(about.ids, entry.about.ids):
                    raise FormatError("it is another past than it was")
                found = read_past(file, about, self.empty, self.slide)
            with contextlib.suppress(OSError):
                os.utime(self.path / entry.name)  # for the next process
            with self._lock:
                if entry.name in self._entries:
                    self._entries[entry.name] = replace(entry, used=_now(self.path / entry.name, entry.used))
            return found
        except (OSError, FormatError) as error:
            self._refuse(entry.name, error)
            return None

    def _open(self, name: str) -> IO[bytes]:
        """Raises OSError, or FormatError for what is not a plain file of one's own."""
        self._check_folder()
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(self.path / name, flags), "rb")
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or not _is_ours(about):
            file.close()
            raise FormatError("it is not a plain file that only its owner can write to")
        return file

    def _refuse(self, name: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self.notes.append(f"{self.path / name}: not used: {reason}")
        with self._lock:
            self._entries.pop(name, None)

    def _scan(self) -> None:
        sweep_folder(self.path)
        names = sorted(name for name in os.listdir(self.path) if NAME.fullmatch(name))
        for name in names[:MOST_FILES]:
            try:
                with self._open(name) as file:
                    status = os.fstat(file.fileno())
                    about = read_about(file, status.st_size)
                self._entries[name] = Entry(name, about, self.slide, status.st_mtime)
            except (OSError, FormatError) as error:
                self._refuse(name, error)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def save(self, scope: Scope, kept: Kept[Rows]) -> None:
        """Have a past written soon, unless a file holds as much already. Never waits, never fails."""
        reached, _ = self.reach(scope, np.append(kept.ids, np.int32(-1)))
        if len(kept.ids) < self.least or reached == len(kept.ids):
            return
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="pocketgem-pasts", daemon=True)
            self._writer.start()
        try:
            self._jobs.put_nowait(Job(owner_of(self.identity, scope), kept))
        except queue.Full:
            self.notes.append(f"{self.path}: a past was not written: the disk is slower than the requests")

    def close(self) -> None:
        """Wait until what was to be written is."""
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join()
            self._writer = None

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(job)
            except Exception as error:  # whatever it is, it is no request's trouble
                self.notes.append(f"{self.path}: a past was not written: {error}")

    def _write(self, job: Job) -> None:
        """Raises OSError where the disk refuses."""
        self._check_folder()
        kept = job.kept
        slid = [gathered(kept.slid, first, stop) for first, stop in self.slide.needs(kept.ends)]
        blocks = blocks_of(Stored(gathered(kept.rows, 0, len(kept.ids)), slid))
        head = header_of(job.owner, kept.ids, kept.ends, blocks)
        size = len(head) + sum(map(len, blocks))
        if size > self.budget:
            raise OSError(f"it has {size} bytes, and all may have {self.budget}")
        self._drop_before(job, size)
        check_room(self.path, size, SPARE)
        name = hashlib.sha256(job.owner.encode() + kept.ids.tobytes()).hexdigest()[:32] + SUFFIX
        temporary = Temporary(self.path / name, mode=0o600)
        try:
            with os.fdopen(os.dup(temporary.descriptor), "wb") as file:
                file.write(head)
                for block in blocks:
                    file.write(block)
                file.flush()
                temporary.sync()
            temporary.publish()
        finally:
            temporary.close()
        with self._open(name) as file:
            about = read_about(file, size)
        with self._lock:
            self._entries[name] = Entry(name, about, self.slide, _now(self.path / name, 0.0))

    def _drop_before(self, job: Job, size: int) -> None:
        """Remove what the new file makes needless, then the files of least use until there is room for it."""
        with self._lock:
            entries = sorted(self._entries.values(), key=lambda entry: entry.used)
        needless = [entry for entry in entries if entry.about.owner == job.owner and _is_in(entry.about, job)]
        total = size + sum(entry.about.size for entry in entries)
        for entry in (*needless, *(one for one in entries if one not in needless)):
            if entry in needless or total > self.budget or len(self._entries) >= MOST_FILES:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path / entry.name)
                with self._lock:
                    self._entries.pop(entry.name, None)
                total -= entry.about.size

    def _check_folder(self) -> None:
        """Raise OSError when another folder stands there now."""
        if _stamp(os.lstat(self.path)) != self._stamp:
            raise OSError("the folder was changed for another one")


def _opened(path: Path) -> tuple[int, int]:
    """Make the folder, or see that it is one's own; returns what tells it from any other."""
    try:
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
        about = os.lstat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot keep pasts there ({error.strerror})") from error
    if not stat.S_ISDIR(about.st_mode):
        raise InputError(f"{path}: is not a folder, or a link to one; give the folder itself")
    if not _is_ours(about):
        raise InputError(f"{path}: others own it or can write to it; give a folder of your own (chmod 700)")
    return _stamp(about)


def _stamp(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def _is_ours(about: os.stat_result) -> bool:
    """Owned by this user, and writable by nobody else. Windows knows neither: there a person's folders are private."""
    return not hasattr(os, "getuid") or (about.st_uid == os.getuid() and not about.st_mode & 0o022)


def _now(path: Path, otherwise: float) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return otherwise


def _common(a: Ids, b: Ids) -> int:
    count = min(len(a), len(b))
    differs = np.flatnonzero(a[:count] != b[:count])
    return int(differs[0]) if len(differs) else count


def _is_in(old: About, job: Job) -> bool:
    """Whether a conversation went on: all positions of the old file but the last lie in what both begin with."""
    needed = old.ends[-2] if len(old.ends) > 1 else old.ends[-1]
    return _common(old.ids, job.kept.ids) >= needed
