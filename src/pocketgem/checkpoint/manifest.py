"""Checksums that travel with an export, in the form that ``sha256sum -c`` reads too.

A folder has them in ``pocketgem.sha256``, a single file in ``NAME.sha256`` beside it. Files of the hub's cache need
none: large ones are named by their own checksum there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketgem.checkpoint.durable import write_file
from pocketgem.checkpoint.types import Progress
from pocketgem.errors import CheckpointError, FormatError

MANIFEST = "pocketgem.sha256"
MAX_MANIFEST = 1 << 20  # bytes
State = Literal["good", "changed", "missing", "unlisted"]
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?!\.{1,2}$)([^/\\\x00-\x1f]{1,255})")  # a plain name: no way out of the folder


@dataclass(frozen=True)
class Checked:
    """One file, and whether it holds what its checksum says."""

    name: str
    state: State

    @property
    def good(self) -> bool:
        return self.state == "good"


def sidecar(file: Path) -> Path:
    """Where the checksum of a single file stands."""
    return file.with_name(f"{file.name}.sha256")


def manifest_text(files: Iterable[Path], progress: Progress | None = None) -> str:
    """A line for each file: its checksum and its name. Raises OSError."""
    files = list(files)
    add = _adding(sum(file.stat().st_size for file in files), progress)
    return "".join(f"{sha256_of(file, add)}  {file.name}\n" for file in files)


def listed_names(folder: Path) -> set[str]:
    """The files an export put into ``folder``, by its own list; none where there is no list."""
    return {*_listed(folder / MANIFEST)} if (folder / MANIFEST).is_file() else set()


def write_sidecar(file: Path, progress: Progress | None = None) -> Path:
    """Checksum a finished file into its sidecar. Raises CheckpointError or RunError."""
    try:
        text = manifest_text([file], progress)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    write_file(sidecar(file), text.encode())
    return sidecar(file)


def sha256_of(file: Path, add: Callable[[int], None] = lambda count: None) -> str:
    """Hexadecimal. ``add`` hears how many bytes were read. Raises OSError."""
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    with file.open("rb", buffering=0) as source:
        while count := source.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            add(count)
    return digest.hexdigest()


def holds_its_name(blob: Path) -> bool:
    """Whether a file of the hub's cache is what its name says; true for a name that is no checksum. Raises OSError.

    Large files are named by their SHA-256, small ones as git names them: SHA-1 over a heading and the content.
    """
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_of(blob) == blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
    return True


def verify(path: Path, progress: Progress | None = None) -> list[Checked]:
    """Check a folder, a file, or a file of the hub's cache against its checksums.

    Weights in a folder that its manifest does not list count as wrong: they are not part of what was exported. Raises
    CheckpointError where there are no checksums, FormatError where they cannot be read.
    """
    if path.is_dir():
        listed = _listed(path / MANIFEST)
        extra = sorted(file.name for file in path.glob("*.safetensors") if file.name not in listed)
        return [*_checked(path, listed, progress), *(Checked(name, "unlisted") for name in extra)]
    if (blob := _blob_sum(path)) is not None:
        return _checked(path.parent, {path.name: blob}, progress)
    listed = _listed(sidecar(path))
    if path.name not in listed:
        raise FormatError(f"{sidecar(path)}: does not list {path.name}")
    return _checked(path.parent, {path.name: listed[path.name]}, progress)


def _checked(folder: Path, listed: dict[str, str], progress: Progress | None) -> list[Checked]:
    there = {name: folder / name for name in listed if (folder / name).is_file()}
    add = _adding(sum(file.stat().st_size for file in there.values()), progress)

    def state(name: str) -> State:
        if name not in there:
            return "missing"
        return "good" if sha256_of(there[name], add) == listed[name] else "changed"

    try:
        return [Checked(name, state(name)) for name in listed]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error


def _blob_sum(path: Path) -> str | None:
    """In the hub's cache a large file is a link to one that is named by its checksum."""
    name = Path(os.path.realpath(path)).name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _listed(manifest: Path) -> dict[str, str]:
    try:
        if manifest.stat().st_size > MAX_MANIFEST:
            raise FormatError(f"{manifest}: more than {MAX_MANIFEST} bytes is no list of checksums")
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CheckpointError(
            f"{manifest}: not there, so nothing can be checked; exports of pocketgem have it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{manifest}: cannot be read ({error})") from error
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise FormatError(f"{manifest}: every line must be a SHA-256 and a plain file name")
    return {match[2]: match[1] for match in found if match}


def _adding(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return add
