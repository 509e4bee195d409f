"""The file that keeps packed weights: how it is laid out, and when it may be believed.

    head       MAGIC, length of the description (uint64), the description (JSON, padded with spaces to 8 bytes)
    checksums  uint64 for each piece of the body: a tensor with the zeros after it, cut every CHUNK bytes
    zeros      up to a multiple of ALIGNMENT
    body       the packed parts, each at a multiple of ALIGNMENT

A piece never holds bytes of two tensors, so one of them can be checked by itself.

Nothing in such a file is ever parsed. Who asks for it knows what it must hold: the head must be that very text and the
file that long, then the body is believed if its checksums are those in the file. The description is for people and for
telling two caches apart. It is in JSON so that it can be read with a pager; a reader of ours only compares it.

The checksum is for damage, not for malice. Against that stands the owner: a file that somebody else put into a folder
open to all is neither believed nor replaced.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.errors import CheckpointError
from pocketgem.memory.packed_place import aligned

NAME = b"pocketgem packed weights"
MAGIC = NAME + b" 2\r\n\0\0\0\0"  # 32 bytes; the number is the version of what is drawn above
CHUNK = 1 << 20  # bytes of one checksum; a chunk and its multipliers stay in a core's own cache
FEW = 4  # pieces; not worth starting threads for


def head_of(description: Mapping[str, object]) -> bytes:
    """The first bytes of a file so described; equal descriptions give equal bytes."""
    text = json.dumps(description, separators=(",", ":"), sort_keys=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    return MAGIC + struct.pack("<Q", len(text)) + text


def body_start(head: bytes, pieces: int) -> int:
    """Where the body begins."""
    return aligned(len(head) + 8 * pieces)


def is_ours(path: Path) -> bool:
    """Whether a file of this kind, any version or state, stands at ``path``: one that may be believed or replaced."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(NAME)) == NAME and _owner(path) in {0, _me(), _owner(path.parent)}
    except OSError:
        return False


def _owner(path: Path) -> int:
    return path.stat().st_uid  # 0 on Windows, where a folder's rights are inherited by what is put into it


def _me() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


@dataclass(frozen=True)
class Body:
    """How the body is cut. ``starts``: of every tensor, ascending; each reaches to the next, the last to ``size``."""

    starts: tuple[int, ...]
    size: int

    @cached_property
    def pieces(self) -> list[tuple[int, int]]:
        """Begin and end of every piece."""
        return [piece for begin, end in pairwise((*self.starts, self.size)) for piece in cut(begin, end)]


def cut(begin: int, end: int) -> list[tuple[int, int]]:
    """The pieces of one tensor."""
    return [(start, min(start + CHUNK, end)) for start in range(begin, end, CHUNK)]


@dataclass(frozen=True)
class Kept:
    """A file that holds what it was asked for: its mapping, where the body begins, and the checksums in it."""

    mapped: MappedFile
    start: int
    sums: Mapping[int, int] = field(repr=False)  # by the begin of a piece

    @property
    def body(self) -> Tensor:
        return self.mapped.data[self.start :]


def open_kept(path: Path, head: bytes, body: Body, later: Callable[[int], bool] = lambda begin: False) -> Kept | None:
    """The file at ``path`` mapped read-only, if it is whole and holds what ``head`` says; else None.

    ``later`` tells of the begin of a piece whether its reader checks it, when it is read.
    """
    if not is_ours(path):
        return None
    try:
        mapped = MappedFile(path)
    except CheckpointError:  # gone or cut to nothing between two looks
        return None
    start = body_start(head, len(body.pieces))
    if mapped.size != start + body.size or mapped.buffer[: len(head)] != head:
        return None
    sums = struct.unpack_from(f"<{len(body.pieces)}Q", mapped.buffer, len(head))
    known = {begin: sum for (begin, _), sum in zip(body.pieces, sums, strict=True)}
    now = [piece for piece in body.pieces if not later(piece[0])]
    if checksums(mapped.data[start:], now) != [known[begin] for begin, _ in now]:
        return None
    return Kept(mapped, start, known)


def checksums(body: Tensor, pieces: Sequence[tuple[int, int]]) -> list[int]:
    """One uint64 for each piece of ``body`` (uint8 [n], on 8 bytes; pieces of at most CHUNK bytes, multiples of 8).

    A piece's sum is that of its 64-bit words, each times an odd number of its own, modulo 2^64: any change within one
    word is seen for certain, any other with all but certainty, at several times the speed of a CRC.
    """
    words, odd = body.numpy().view(np.uint64), _multipliers()

    def one(piece: tuple[int, int]) -> int:
        begin, end = piece[0] // 8, piece[1] // 8
        return int(words[begin:end] @ odd[: end - begin])

    if len(pieces) < FEW:
        return [one(piece) for piece in pieces]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(one, pieces))


@cache
def _multipliers() -> np.ndarray:
    return np.random.PCG64(0).random_raw(CHUNK // 8) | np.uint64(1)  # NumPy promises that this stream never changes
