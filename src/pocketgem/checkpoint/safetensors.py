"""safetensors: a length, a JSON header that gives each tensor its bytes, then the bytes. Or a folder of such files.

The header is checked here and again by the ``safetensors`` library, which is the reference but lets some things pass.
On top of its rules: no name or field twice, nothing but spaces after the closing brace, a header of at most 16 MiB, no
empty tensor (so two tensors never share an offset), and the tensors cover the data exactly, which also leaves no room
for a second file hidden in front, in a gap or behind. The bytes are mapped here, read-only: the library maps them for
torch as private and writable, and Linux refuses that for a file larger than memory.

File names in ``model.safetensors.index.json`` are somebody else's text: only plain names inside the folder are opened.

Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pocketgem.checkpoint.metadata import show
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import Buffer, StoredType, tensor_bytes
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError

# JSON can cost twenty times its size in Python objects. A real header has about 120 bytes a tensor, a few thousand
# tensors; the reference's own cap is 100 MB.
MAX_HEADER = 16 << 20
MAX_COUNT = 1 << 16  # tensors in one file
MAX_DIMS = 8  # a product of a million dimensions would take minutes
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FIELDS = {"dtype", "shape", "data_offsets"}
_RUN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}  # the same words in StoredType


@dataclass(frozen=True)
class Entry:
    """One tensor of a header. Its bytes are ``start`` to ``end`` of the file; ``dtype`` may be one we do not run."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile(Mapping[str, StoredTensor]):
    """One open file. Listing it is always possible; reading a tensor of another dtype raises UnsupportedError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError when the file cannot be opened, FormatError when it is not valid safetensors."""
        self._file = MappedFile(path)
        self.path = self._file.path
        self.entries = parse_header(self._file.buffer, self._file.size, str(self.path))
        _ask_library(self.path, self.entries)

    def __getitem__(self, name: str) -> StoredTensor:
        entry = self.entries[name]
        if entry.dtype not in _RUN:
            raise UnsupportedError(f"{self.path}: tensor {show(name)} is stored as {entry.dtype}, which is not run")
        return StoredTensor(name, entry.shape, StoredType(entry.dtype), self._file, entry.start, entry.end)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class _Folder(Mapping[str, StoredTensor]):
    """Several files as one mapping: ``homes`` says which file holds a tensor."""

    def __init__(self, homes: Mapping[str, SafetensorsFile]) -> None:
        self._homes = homes

    def __getitem__(self, name: str) -> StoredTensor:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def open_safetensors(path: str | os.PathLike[str]) -> Mapping[str, StoredTensor]:
    """Open one file, or a folder with an index, with ``model.safetensors``, or with any ``*.safetensors``.

    Raises CheckpointError when a file is missing, FormatError when a file is not valid or the shards and the index
    disagree.
    """
    path = Path(path)
    if not os.path.isdir(path):  # unlike Path.is_dir, never raises
        return SafetensorsFile(path)
    files = safetensors_files(path)
    if not files:
        raise CheckpointError(f"{path}: the folder holds no *.safetensors file")
    homes = _homes([SafetensorsFile(file) for file in files])
    if os.path.exists(path / INDEX):
        _check_index(path / INDEX, homes)
    return _Folder(homes)


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder, sorted; empty if there are none. Raises CheckpointError if the index is bad."""
    if os.path.exists(folder / INDEX):
        names = sorted(set(_weight_map(folder / INDEX).values()))
    elif os.path.exists(folder / SINGLE):
        names = [SINGLE]
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    for name in names:
        if not os.path.exists(folder / name):
            raise CheckpointError(f"{folder / name}: missing; {INDEX} names it, so the model is incomplete")
    return tuple(folder / name for name in names)


def _homes(files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    homes: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file:
            if name in homes:
                raise FormatError(f"{file.path}: tensor {show(name)} is also in {homes[name].path.name}")
            homes[name] = file
    return homes


def _check_index(index: Path, homes: Mapping[str, SafetensorsFile]) -> None:
    """The index and the files must tell the same story, or files of two models were mixed."""
    listed = _weight_map(index)
    found = {name: file.path.name for name, file in homes.items()}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            where, there = listed.get(name, "no file"), found.get(name, "no file")
            raise FormatError(f"{index}: puts tensor {show(name)} in {where}, but it is in {there}")


def _weight_map(index: Path) -> dict[str, str]:
    file = MappedFile(index)
    if file.size > MAX_HEADER:
        raise FormatError(f"{index}: {file.size} bytes, more than the limit of {MAX_HEADER}")
    content = _json(file.buffer[:], str(index))
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{index}: has no weight_map")
    for name in weight_map.values():
        # Letters, digits, dot, dash, underscore: no way out of the folder on any system.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,200}\.safetensors", name, flags=re.ASCII):
            raise FormatError(f"{index}: {show(name)} is not a plain file name ending in .safetensors")
    return cast(dict[str, str], weight_map)


# --- the header


def parse_header(buffer: Buffer, size: int, where: str = "safetensors header") -> dict[str, Entry]:
    """The tensors of a file of ``size`` bytes that starts with ``buffer``, in the order of their bytes.

    Pure; allocates nothing that the header has no bytes for. Raises FormatError.
    """
    if min(size, len(buffer)) < 8:
        raise FormatError(f"{where}: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack_from("<Q", buffer)
    base = 8 + length  # where the data starts
    if length > MAX_HEADER or base > min(size, len(buffer)):
        raise FormatError(f"{where}: not safetensors (its first number, {length}, is not a possible header length)")
    raw = bytes(buffer[8:base]).rstrip(b" ")
    if raw[:1] != b"{" or raw[-1:] != b"}":
        raise FormatError(f"{where}: the header is not one JSON object padded with spaces")
    content = _json(raw, where)
    _check_notes(content.pop("__metadata__", {}), where)
    if len(content) > MAX_COUNT:
        raise FormatError(f"{where}: {len(content)} tensors, more than the limit of {MAX_COUNT}")
    entries = [(name, _entry(name, value, base, where)) for name, value in content.items()]
    entries.sort(key=lambda pair: pair[1].start)
    _check_tiling(entries, base, size, where)
    return dict(entries)


def _json(raw: bytes, where: str) -> dict[str, object]:
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, a name twice, a number too long
        raise FormatError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise FormatError(f"{where}: the JSON is not an object")
    return content


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content: dict[str, object] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{show(name)} is there twice")
        content[name] = value
    return content


def _check_notes(notes: object, where: str) -> None:
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise FormatError(f"{where}: __metadata__ must map text to text")


def _entry(name: str, value: object, base: int, where: str) -> Entry:
    where = f"{where}: tensor {show(name)}"
    if not name or not isinstance(value, dict) or value.keys() != _FIELDS or not isinstance(value["dtype"], str):
        raise FormatError(f"{where} must have a name and exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], _numbers(value["shape"], where), _numbers(value["data_offsets"], where)
    if 0 in shape or len(shape) > MAX_DIMS or len(offsets) != 2 or offsets[0] >= offsets[1]:
        raise FormatError(f"{where} is empty, has over {MAX_DIMS} dimensions, or does not end after it starts")
    if dtype in _RUN and offsets[1] - offsets[0] != tensor_bytes(shape, StoredType(dtype)):
        raise FormatError(f"{where}: {dtype} of shape {show(shape)} does not take {offsets[1] - offsets[0]} bytes")
    return Entry(dtype, shape, base + offsets[0], base + offsets[1])


def _numbers(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < 1 << 63 for number in value):
        raise FormatError(f"{where}: shape and data_offsets must be lists of whole numbers")
    return tuple(value)


def _check_tiling(entries: list[tuple[str, Entry]], base: int, size: int, where: str) -> None:
    end = base
    for name, entry in entries:
        if entry.start != end:
            raise FormatError(f"{where}: tensor {show(name)} starts at byte {entry.start}, it should be {end}")
        end = entry.end
    if end != size:
        raise FormatError(f"{where}: the tensors end at byte {end}, the file at {size}; is it complete?")


def _ask_library(path: Path, entries: Mapping[str, Entry]) -> None:
    """The reference implementation must accept the file too, and see the same tensors."""
    from safetensors import SafetensorError, safe_open  # here: GGUF needs the names in this file, not the library

    try:
        with safe_open(path, framework="numpy") as reference:
            names = reference.keys()
            shapes = {name: tuple(reference.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: refused by the safetensors library ({error})") from error
    if shapes != {name: entry.shape for name, entry in entries.items()}:
        raise FormatError(f"{path}: the safetensors library reads the header differently")
