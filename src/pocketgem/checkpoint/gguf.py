"""A GGUF file, or a set of them that one model was split into: open it, and look at tensors by name.

What the header must satisfy is in ``header.py``. A split set is ``x-00001-of-0000N.gguf`` and so on; every part repeats
``split.count`` and numbers itself in ``split.no`` (from 0), and the first carries the metadata of the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgem.checkpoint.header import MAX_COUNT, Header, parse_header
from pocketgem.checkpoint.metadata import (
    metadata_bool,
    metadata_float,
    metadata_int,
    metadata_list,
    metadata_str,
    show,
)
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.errors import CheckpointError, FormatError

__all__ = [
    "GGUFFile",
    "Header",
    "first_part",
    "metadata_bool",
    "metadata_float",
    "metadata_int",
    "metadata_list",
    "metadata_str",
    "parse_header",
    "split_paths",
]

_PART = re.compile(r"(.+)-[0-9]{5}-of-((?!00000)[0-9]{5})\.gguf", flags=re.DOTALL)


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """An open GGUF file or split set. Nothing of the tensors has been read; they keep the mapping alive."""

    path: Path
    architecture: str
    metadata: Mapping[str, object]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Open one file, or the whole split set that ``path`` is a part of.

        Raises CheckpointError when a file is missing or not regular, FormatError when its bytes are not valid GGUF
        or the parts do not belong together, UnsupportedError for versions and tensor types that are not run.
        """
        path = Path(path)
        shard = _Shard.open(path)
        count = metadata_int(shard.header.metadata, "split.count", 1, high=MAX_COUNT, where=str(path))
        shards = [shard] if count < 2 else _open_set(path, count)
        metadata = shards[0].header.metadata
        architecture = metadata_str(metadata, "general.architecture", where=str(path))
        return cls(path, architecture, metadata, _merge(shards))


@dataclass(frozen=True)
class _Shard:
    file: MappedFile
    header: Header

    @classmethod
    def open(cls, path: Path) -> _Shard:
        file = MappedFile(path)
        return cls(file, parse_header(file.buffer, file.size, where=str(path)))

    def tensors(self) -> Iterator[StoredTensor]:
        for info in self.header.tensors:
            yield StoredTensor(info.name, info.shape, info.type, self.file, info.start, info.end)


def split_paths(path: Path) -> list[Path]:
    """All parts of the split set that a name like ``x-00002-of-00003.gguf`` belongs to; otherwise the path alone."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    return [path.with_name(f"{match[1]}-{i + 1:05d}-of-{match[2]}.gguf") for i in range(int(match[2]))]


def first_part(path: Path) -> Path:
    """The name of the part with the metadata; the path itself if it is not one of several parts."""
    return path.with_name(_PART.sub(r"\1-00001-of-\2.gguf", path.name))


def _open_set(path: Path, count: int) -> list[_Shard]:
    paths = split_paths(path)
    if len(paths) != count:
        raise FormatError(f"{path}: part of a set of {count}, so its name must end in -00001-of-{count:05d}.gguf")
    for part in paths:
        if not os.path.exists(part):
            raise CheckpointError(f"{part}: missing; the model is split into {count} files and all are needed")
    shards = [_Shard.open(part) for part in paths]
    for index, shard in enumerate(shards):
        _check_member(shard, shards[0], index, count)
    _check_total(shards)
    return shards


def _check_member(shard: _Shard, first: _Shard, index: int, count: int) -> None:
    metadata, where = shard.header.metadata, str(shard.file.path)
    if metadata_int(metadata, "split.count", where=where) != count:
        raise FormatError(f"{where}: split.count is {metadata['split.count']}, but the first part says {count}")
    if metadata_int(metadata, "split.no", where=where) != index:
        raise FormatError(f"{where}: says it is part {metadata['split.no']} (from 0), but its name says {index}")
    for key in ("general.architecture", "general.name", "split.tensors.count"):
        theirs, ours = metadata.get(key), first.header.metadata.get(key)
        if theirs is not None and theirs != ours:
            raise FormatError(f"{where}: {key} is {show(theirs)}, but the first part says {show(ours)}: not one model")


def _check_total(shards: Sequence[_Shard]) -> None:
    where, first = str(shards[0].file.path), shards[0].header.metadata
    found = sum(len(shard.header.tensors) for shard in shards)
    total = metadata_int(first, "split.tensors.count", where=where, high=MAX_COUNT * len(shards))
    if found != total:
        raise FormatError(f"{where}: the set must hold {total} tensors, but its {len(shards)} files hold {found}")


def _merge(shards: Sequence[_Shard]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in shard.tensors():
            if tensor.name in tensors:
                raise FormatError(f"{shard.file.path}: tensor {tensor.name!r} is also in another part of the set")
            tensors[tensor.name] = tensor
    return tensors
