"""The header of a GGUF file: typed keys and a description of each tensor. Versions 2 and 3.

``parse_header`` is pure and trusts nothing: every count and length is compared with the bytes that are left before
anything is allocated for it, and Python's integers do not wrap. Rules that the format leaves open, and ours:

- text must be UTF-8, names of keys and tensors printable and unique; a bool is 0 or 1, no dimension is zero;
- tensors follow one another in the order of their descriptions, without gap or overlap, and end where the file ends;
  padding is zero. llama.cpp demands the order too, and a damaged count, shape, type or offset cannot pass unseen;
- an array of arrays is refused: no key of a Gemma file needs one.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketgem.checkpoint.metadata import metadata_int, show
from pocketgem.checkpoint.types import GGML_NOT_RUN, GGML_TYPES, Buffer, StoredType, tensor_bytes
from pocketgem.errors import FormatError, UnsupportedError

# The largest Gemma header (262144 tokens, 514906 merges) is about 20 MB and has 1.3 million array entries.
MAX_HEADER = 100_000_000  # bytes; also the cap of the safetensors reference
MAX_ENTRIES = 1 << 22  # array entries in one file, at most about 60 bytes of Python object each
MAX_COUNT = 1 << 16  # keys, and tensors, in one file
MAX_KEY, MAX_NAME, MAX_DIMS = 65535, 64, 4  # from the format's description
MAX_ALIGNMENT = 1 << 16

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9  # value types with rules of their own; the others are numbers:
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header. ``shape`` is in torch order; its bytes are ``start`` to ``end`` of the file."""

    name: str
    shape: tuple[int, ...]
    type: StoredType
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself; ``metadata`` values are int, float, bool, str or a list of one of these."""

    version: int
    alignment: int
    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]


def parse_header(buffer: Buffer, size: int, where: str = "GGUF header") -> Header:
    """The header in the first bytes of ``buffer``, checked against a file of ``size`` bytes named ``where``.

    Raises FormatError for bytes that are not valid GGUF, UnsupportedError for what is valid but not read here.
    """
    cursor = _Cursor(buffer, min(len(buffer), size), where)
    version = _version(cursor)
    tensor_count = cursor.count("tensors", MAX_COUNT, least=25)  # a name of one byte and no dimensions
    key_count = cursor.count("keys", MAX_COUNT, least=14)  # a key of one byte and a value of one
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(metadata, where)
    described = [_describe(cursor) for _ in range(tensor_count)]
    base = _aligned(cursor.position, alignment)  # where the first tensor starts
    tensors = _lay_out(described, base, alignment, size, where)
    for end in (cursor.position, *(tensor.end for tensor in tensors)):
        if any(buffer[end : min(_aligned(end, alignment), size)]):  # most tensors fill their last line: nothing is read
            raise FormatError(f"{where}: the bytes after byte {end} are padding and must be zero")
    return Header(version, alignment, metadata, tensors)


def raw_values(buffer: Buffer, size: int, where: str = "GGUF header") -> dict[str, bytes]:
    """Every key's value as it lies in the file, its type before it, for a writer that passes them on unchanged.

    Raises FormatError or UnsupportedError as ``parse_header``, of which this does the first part.
    """
    cursor = _Cursor(buffer, min(len(buffer), size), where)
    _version(cursor)
    cursor.count("tensors", MAX_COUNT, least=25)
    values = {}
    for _ in range(cursor.count("keys", MAX_COUNT, least=14)):
        key = cursor.text("a key", MAX_KEY)
        start = cursor.position
        _value(cursor, cursor.u32(key), key)
        values[key] = bytes(cursor.buffer[start : cursor.position])
    return values


class _Cursor:
    """A position that never passes the end of what it was given."""

    def __init__(self, buffer: Buffer, end: int, where: str) -> None:
        self.buffer, self.where = buffer, where
        self.position, self.end = 0, min(end, MAX_HEADER)
        self.limit = "the file" if end <= MAX_HEADER else f"the {MAX_HEADER}-byte limit for headers"
        self.entries = 0  # array entries so far

    def take(self, count: int, what: str) -> int:
        """Step over ``count`` bytes; where they start."""
        start = self.position
        if count > self.end - start:
            raise FormatError(f"{self.where}: {what} needs {count} bytes, {self.end - start} are left of {self.limit}")
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.buffer, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.buffer, self.take(8, what))[0])

    def count(self, what: str, most: int, least: int) -> int:
        """A u64 that promises so many things of at least ``least`` bytes each."""
        number = self.u64(f"the number of {what}")
        if number > most:
            raise FormatError(f"{self.where}: {number} {what}, more than the limit of {most}")
        if number * least > self.end - self.position:
            raise FormatError(f"{self.where}: {number} {what} do not fit in what is left of {self.limit}")
        return number

    def text(self, what: str, most: int = MAX_HEADER) -> str:
        length = self.u64(what)
        if length > most:
            raise FormatError(f"{self.where}: {what} is {length} bytes long, more than the limit of {most}")
        start = self.take(length, what)
        try:
            return str(self.buffer[start : self.position], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: {what} is not valid UTF-8") from error


def _version(cursor: _Cursor) -> int:
    start = cursor.take(4, "the magic")
    if bytes(cursor.buffer[start : start + 4]) != b"GGUF":
        raise FormatError(f"{cursor.where}: not a GGUF file (the first four bytes are not GGUF)")
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(f"{cursor.where}: a big-endian GGUF file; convert it with gguf-convert-endian")
    raise UnsupportedError(f"{cursor.where}: GGUF version {version}; only versions 2 and 3 are read")


def _metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY)
        if not key.isprintable() or not key or key in metadata:
            problem = "is there twice" if key in metadata else "is not a printable name"
            raise FormatError(f"{cursor.where}: key {show(key)} {problem}")
        what = f"key {show(key)}"
        metadata[key] = _value(cursor, cursor.u32(what), what)
    return metadata


def _value(cursor: _Cursor, kind: int, what: str) -> object:
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    return _numbers(cursor, kind, 1, what)[0]


def _array(cursor: _Cursor, what: str) -> list[object]:
    kind = cursor.u32(what)
    if kind == _ARRAY:
        raise UnsupportedError(f"{cursor.where}: {what} is an array of arrays, which is not read")
    count = cursor.u64(what)
    cursor.entries += count
    if cursor.entries > MAX_ENTRIES:
        raise FormatError(f"{cursor.where}: {what} brings the array entries to more than {MAX_ENTRIES}")
    return _strings(cursor, count, what) if kind == _STRING else _numbers(cursor, kind, count, what)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> list[object]:
    if kind == _BOOL:
        start = cursor.take(count, what)
        values = bytes(cursor.buffer[start : cursor.position])
        if values.strip(b"\0\1"):
            raise FormatError(f"{cursor.where}: {what} holds a bool that is neither 0 nor 1")
        return list(map(bool, values))
    if kind not in _NUMBERS:
        raise FormatError(f"{cursor.where}: {what} has the unknown value type {kind}")
    code = _NUMBERS[kind]
    start = cursor.take(count * struct.calcsize(f"<{code}"), what)
    return list(struct.unpack_from(f"<{count}{code}", cursor.buffer, start))


def _strings(cursor: _Cursor, count: int, what: str) -> list[object]:
    """A vocabulary is a quarter of a million of these: ``cursor.text``, with the calls written out."""
    buffer, position, end, length_at = cursor.buffer, cursor.position, cursor.end, _U64.unpack_from
    strings: list[object] = []
    try:
        for _ in range(count):
            start = position + 8
            position = start + length_at(buffer, position)[0]
            if position > end:
                raise FormatError(f"{cursor.where}: {what}, string {len(strings)}, runs past {cursor.limit}")
            strings.append(buffer[start:position].decode())
    except struct.error as error:  # the length itself lies past the end
        raise FormatError(f"{cursor.where}: {what} runs past {cursor.limit}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{cursor.where}: {what}, string {len(strings)}, is not valid UTF-8") from error
    cursor.position = position
    return strings


def _alignment(metadata: Mapping[str, object], where: str) -> int:
    alignment = metadata_int(metadata, "general.alignment", 32, where=where, high=1 << 64)
    if alignment & (alignment - 1) or not 8 <= alignment <= MAX_ALIGNMENT:
        raise FormatError(f"{where}: general.alignment is {alignment}; it must be a power of two, 8 to {MAX_ALIGNMENT}")
    return alignment


def _describe(cursor: _Cursor) -> tuple[str, tuple[int, ...], StoredType, int]:
    """Name, shape, type and offset of one tensor; the offset is not checked yet."""
    name = cursor.text("a tensor name", MAX_NAME)
    what = f"tensor {show(name)}"
    dims = cursor.u32(what)
    if not name.isprintable() or not name or dims > MAX_DIMS:
        problem = f"has {dims} dimensions" if dims > MAX_DIMS else "is not a printable name"
        raise FormatError(f"{cursor.where}: {what} {problem}")
    shape = tuple(cursor.u64(what) for _ in range(dims))[::-1]  # the file has the packed dimension first
    kind, offset = cursor.u32(what), cursor.u64(what)
    stored = _stored_type(kind, what, cursor.where)
    if 0 in shape or (shape[-1] if shape else 1) % stored.block_size:
        raise FormatError(f"{cursor.where}: {what} has shape {list(shape)}, impossible for {stored}")
    return name, shape, stored, offset


def _stored_type(kind: int, what: str, where: str) -> StoredType:
    if kind in GGML_NOT_RUN:
        raise UnsupportedError(f"{where}: {what} is stored as {GGML_NOT_RUN[kind]}; use a Q4_K_M or Q8_0 file")
    if kind not in GGML_TYPES:
        raise FormatError(f"{where}: {what} has the unknown type {kind}")
    return GGML_TYPES[kind]


def _lay_out(
    described: Sequence[tuple[str, tuple[int, ...], StoredType, int]], base: int, alignment: int, size: int, where: str
) -> tuple[TensorInfo, ...]:  # fmt: skip
    """Give each tensor its bytes: exactly one after the other, from byte ``base`` to the end of the file."""
    end = base
    tensors: dict[str, TensorInfo] = {}
    for name, shape, stored, offset in described:
        start, end = end, end + tensor_bytes(shape, stored)
        if name in tensors:
            raise FormatError(f"{where}: tensor {show(name)} is there twice")
        if base + offset != start:
            raise FormatError(f"{where}: tensor {show(name)} starts at byte {base + offset}, it should be {start}")
        if end > size:
            raise FormatError(f"{where}: tensor {show(name)} ends at byte {end}, the file at {size}; is it complete?")
        tensors[name] = TensorInfo(name, shape, stored, start, end)
        end = _aligned(end, alignment)  # the padding of the last tensor may be missing
    if size > end:
        raise FormatError(f"{where}: the file has {size - end} bytes after the last tensor")
    return tuple(tensors.values())


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
