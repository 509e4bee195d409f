"""Adapters by name, in one folder that several processes use at once.

    objects/IDENTITY/    an adapter's files as they were added, never changed after; IDENTITY is a hash of them all
    names/NAME.json      which object the name stands for, and which ones it stood for before and after
    lock                 held by whoever writes

An object appears whole, then the name is pointed to it; both are renames. So a process that is killed at any moment
leaves every name standing for what it stood for before or what it was to stand for, and at worst an object that nothing
needs, for ``prune``. Readers take no lock. Links inside the folder are never followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketgem.adapters.dialect import TEMPLATE, TOKENS
from pocketgem.adapters.manifest import MANIFEST, Manifest, read_manifest, to_json
from pocketgem.adapters.peft import CONFIG, WEIGHTS
from pocketgem.checkpoint.durable import new_folder, refusal, sweep_folder, sync_folder, write_file
from pocketgem.checkpoint.load import read_json
from pocketgem.checkpoint.lock import lock
from pocketgem.checkpoint.manifest import sha256_of
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.config.fields import Fields
from pocketgem.errors import CheckpointError, FormatError, InputError

KEPT = (TEMPLATE, TOKENS, "README.md", "run.json")  # copied beside weights, config, manifest and capsule
MOST_HISTORY = 1000  # entries of a name; the oldest are forgotten
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # neither a way out of the folder nor the colon of model:adapter
_IDENTITY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What a name stands for. before and after: what else it stood for, nearest first; after: undone by rollbacks."""

    name: str
    identity: str
    folder: Path
    manifest: Manifest
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unneeded:
    """An object that no name and no history needs."""

    identity: str
    nbytes: int


@dataclass(frozen=True)
class _Pointer:
    identity: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def moved(self, identity: str) -> _Pointer:
        """To something new: what was undone stays in the history."""
        if identity == self.identity:
            return self
        before = (self.identity, *self.after, *self.before)
        return _Pointer(identity, tuple(one for one in dict.fromkeys(before) if one != identity)[:MOST_HISTORY])

    @property
    def all(self) -> tuple[str, ...]:
        return (self.identity, *self.before, *self.after)


def default_folder() -> Path:
    """``$POCKETGEM_ADAPTERS``, else the person's data folder. Raises InputError where there is no home."""
    if given := os.environ.get("POCKETGEM_ADAPTERS"):
        return Path(given).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "")
    try:
        return (data if data.is_absolute() else Path.home() / ".local" / "share") / "pocketgem" / "adapters"
    except RuntimeError as error:
        raise InputError(f"no home folder for adapters ({error}); set POCKETGEM_ADAPTERS") from error


class Registry:
    """See above. The folder is made by the first who writes. Methods that write raise RunError for a full disk and
    CheckpointError for a place that cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ---- reading -----------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All, by name. Raises FormatError for a file that is damaged."""
        return [self._entry(name) for name in self.names()]

    def find(self, name: str) -> Entry:
        """Raises InputError that lists what there is."""
        self._check_known(name)
        return self._entry(name)

    def _check_known(self, name: str) -> None:
        if name not in (names := self.names()):
            raise InputError(f"{name[:100]}: no such adapter is registered; there are {', '.join(names) or 'none'}")

    def folder_of(self, name: str) -> Path:
        """Where the files of a name are, without reading them. Raises as ``find``."""
        self._check_known(name)
        return self._object(self._pointer(name).identity)

    def names(self) -> list[str]:
        """In order. What the names stand for is not read."""
        folder = self.folder / "names"
        _check_own(folder)
        found = (path for path in folder.glob("*.json") if not path.is_symlink()) if folder.is_dir() else ()
        return sorted(path.stem for path in found if NAME.fullmatch(path.stem))

    def history(self, name: str) -> list[Entry]:
        """Everything a name has stood for that is still there: now, before, after."""
        entry = self.find(name)
        others = [*entry.before, *entry.after]
        return [entry, *(self._at(entry, one) for one in others if self._object(one).is_dir())]

    def _at(self, entry: Entry, identity: str) -> Entry:
        folder = self._object(identity)
        return replace(entry, identity=identity, folder=folder, manifest=read_manifest(folder))

    def _entry(self, name: str) -> Entry:
        for attempt in range(2):
            pointer = self._pointer(name)
            folder = self._object(pointer.identity)
            try:
                return Entry(name, pointer.identity, folder, read_manifest(folder), pointer.before, pointer.after)
            except FormatError:
                if attempt or folder.is_dir():  # else the name was moved and its old object pruned between two reads
                    raise
        raise AssertionError  # the loop returns or raises

    def _pointer(self, name: str) -> _Pointer:
        path = self._name_file(name)
        fields = Fields(read_json(path), str(path))
        before, after = (_identities(fields, key) for key in ("before", "after"))
        return _Pointer(_identities(fields, "identity")[0], before, after)

    def _name_file(self, name: str) -> Path:
        return self.folder / "names" / f"{name}.json"

    def _object(self, identity: str) -> Path:
        return self.folder / "objects" / identity

    # ---- writing -----------------------------------------------------------------------------------------------------

    def add(self, name: str, folder: Path, manifest: Manifest) -> Entry:
        """Copy an adapter's files; ``name`` stands for them now, and what it stood for is kept as history."""
        files = {**_files(folder, manifest), MANIFEST: to_json(manifest)}
        identity = _identity(files)
        with self._writing(_checked_name(name)):
            if not self._is_whole(identity):
                self._store(identity, files)
            self._move(name, identity)
        return self._entry(name)

    def point(self, name: str, identity: str) -> Entry:
        """Let a name stand for an object that is here already. identity: its first eight digits will do.

        Raises InputError for an object that is not here.
        """
        with self._writing(_checked_name(name)):
            found = [one for one in self._objects() if one.startswith(identity)] if len(identity) >= 8 else []
            if len(found) != 1:
                raise InputError(f"{identity[:64]}: {len(found)} objects of the registry begin so; give one's digits")
            self._move(name, found[0])
        return self._entry(name)

    def rollback(self, name: str) -> Entry:
        """Let a name stand for what it stood for before. Raises InputError where there is nothing."""
        with self._writing(name):
            entry = self.find(name)
            there = [one for one in entry.before if self._object(one).is_dir()]
            if not there:
                raise InputError(f"{name}: has no earlier adapter to go back to")
            rest = tuple(one for one in entry.before if one != there[0])
            self._write(name, _Pointer(there[0], rest, (entry.identity, *entry.after)))
        return self._entry(name)

    def remove(self, name: str) -> Entry:
        """Forget a name and its history. Its objects stay until ``prune``. Raises InputError."""
        with self._writing(name):
            entry = self.find(name)
            self._name_file(name).unlink()
            sync_folder(self.folder / "names")
        return entry

    def prune(self, *, keep: int | None = None, remove: bool = False) -> list[Unneeded]:
        """Objects that no name needs, nor the nearest ``keep`` entries of its history on either side (None: all).

        They are only listed unless ``remove``; then what is kept no longer is forgotten by the names first.
        """
        if not self.folder.is_dir():
            return []
        with self._writing():
            pointers = {name: self._pointer(name) for name in self.names()}
            short = {name: _shortened(pointer, keep) for name, pointer in pointers.items()}
            needed = {one for pointer in short.values() for one in pointer.all}
            found = [Unneeded(one, _bytes(self._object(one))) for one in self._objects() if one not in needed]
            if remove:
                for name in short:
                    if short[name] != pointers[name]:
                        self._write(name, short[name])
                for one in found:
                    self._discard(one.identity)
                self._sweep()
        return found

    # ---- parts of it -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, name: str = "") -> Iterator[None]:
        """One process at a time; what the system refuses is said of the name's file."""
        try:
            for folder in (self.folder, self.folder / "objects", self.folder / "names"):
                folder.mkdir(parents=True, exist_ok=True)
                if folder != self.folder:
                    _check_own(folder)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            descriptor = os.open(self.folder / "lock", flags, 0o666)
            try:
                lock(descriptor)  # without locks renames still keep every file whole, but one's history may be lost
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise refusal(self.folder / name, error) from error

    def _move(self, name: str, identity: str) -> None:
        known = name in self.names()
        self._write(name, self._pointer(name).moved(identity) if known else _Pointer(identity))

    def _write(self, name: str, pointer: _Pointer) -> None:
        content = {"identity": [pointer.identity], "before": pointer.before, "after": pointer.after}
        write_file(self._name_file(name), json.dumps({**content, "since": round(time.time())}).encode())

    def _store(self, identity: str, files: Mapping[str, Path | bytes]) -> None:
        self._discard(identity)
        size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in files.values())
        with new_folder(self._object(identity), size) as made:
            for name, source in files.items():
                if isinstance(source, bytes):
                    write_synced(made / name, source)
                else:
                    _copy(source, made / name)
            if _identity({path.name: path for path in made.iterdir()}) != identity:
                raise CheckpointError(f"{identity[:8]}: the adapter's files changed while they were copied; try again")

    def _is_whole(self, identity: str) -> bool:
        """Whether an object is there and holds what its name says."""
        folder = self._object(identity)
        if folder.is_symlink() or not folder.is_dir():
            return False
        return _identity({path.name: path for path in folder.iterdir() if path.is_file()}) == identity

    def _objects(self) -> list[str]:
        found = (self.folder / "objects").iterdir()
        return sorted(path.name for path in found if _IDENTITY.fullmatch(path.name) and not path.is_symlink())

    def _discard(self, identity: str) -> None:
        """First it loses its name, so that no half of it is ever found under it."""
        folder = self._object(identity)
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            gone = folder.with_name(f".{identity}.{os.getpid()}.gone")
            os.replace(folder, gone)
            sync_folder(folder.parent)
            shutil.rmtree(gone)

    def _sweep(self) -> None:
        """What killed processes left."""
        for folder in (self.folder / "objects", self.folder / "names"):
            sweep_folder(folder)
            for path in folder.glob(".*.gone"):
                path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} is no name for an adapter: letters, digits, dots, dashes and underscores, 64 at most"
        )
    return name


def _check_own(folder: Path) -> None:
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: is a link; a registry keeps its files itself")


def _identities(fields: Fields, key: str) -> tuple[str, ...]:
    value = fields.raw(key, [])
    fits = isinstance(value, list) and len(value) <= 2 * MOST_HISTORY and (value or key != "identity")
    if not fits or not all(isinstance(one, str) and _IDENTITY.fullmatch(one) for one in value):
        raise FormatError(f"{fields.where}: {key} is not a list of an object's 64 hex digits each")
    return tuple(value)


def _files(folder: Path, manifest: Manifest) -> dict[str, Path | bytes]:
    """Regular files to be copied. Raises CheckpointError for one that must be there and is not."""
    wanted = (CONFIG, WEIGHTS, *KEPT, *([manifest.capsule] if manifest.capsule else []))
    for name in (CONFIG, WEIGHTS, *([manifest.capsule] if manifest.capsule else [])):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}")
    return {name: folder / name for name in dict.fromkeys(wanted) if (folder / name).is_file()}


def _identity(files: Mapping[str, Path | bytes] | Mapping[str, Path]) -> str:
    """A hash of names and contents. Raises OSError."""
    digest = hashlib.sha256()
    for name, source in sorted(files.items()):
        content = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_of(source)
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())


def _shortened(pointer: _Pointer, keep: int | None) -> _Pointer:
    return pointer if keep is None else replace(pointer, before=pointer.before[:keep], after=pointer.after[:keep])


def _bytes(folder: Path) -> int:
    """Of the files in an object's folder; links count nothing."""
    return sum(path.lstat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def total(found: Sequence[Unneeded]) -> int:
    """Bytes."""
    return sum(one.nbytes for one in found)
