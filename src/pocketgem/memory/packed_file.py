"""The file that keeps packed weights: how it is laid out, and when it may be believed.

    head       MAGIC, length of the description (uint64), the description (JSON, padded with spaces to 8 bytes)
    checksums  uint64 for each CHUNK of the body
    zeros      up to a multiple of ALIGNMENT
    body       the packed parts, each at a multiple of ALIGNMENT

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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.errors import CheckpointError

NAME = b"pocketgem packed weights"
MAGIC = NAME + b" 1\r\n\0\0\0\0"  # 32 bytes; the number is the version of what is drawn above
ALIGNMENT = 4096  # bytes; a page of most machines
CHUNK = 1 << 20  # bytes of one checksum; a chunk and its multipliers stay in a core's own cache


def aligned(size: int) -> int:
    """``size`` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def head_of(description: Mapping[str, object]) -> bytes:
    """The first bytes of a file so described; equal descriptions give equal bytes."""
    text = json.dumps(description, separators=(",", ":"), sort_keys=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    return MAGIC + struct.pack("<Q", len(text)) + text


def body_start(head: bytes, body_size: int) -> int:
    """Where the body begins."""
    return aligned(len(head) + 8 * -(-body_size // CHUNK))


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


def open_kept(path: Path, head: bytes, body_size: int) -> MappedFile | None:
    """The file at ``path`` mapped read-only, if it is whole and holds what ``head`` says; else None."""
    start = body_start(head, body_size)
    if not is_ours(path):
        return None
    try:
        mapped = MappedFile(path)
    except CheckpointError:  # gone or cut to nothing between two looks
        return None
    if mapped.size != start + body_size or mapped.buffer[: len(head)] != head:
        return None
    sums = checksums(mapped.data[start:])
    return mapped if mapped.buffer[len(head) : len(head) + len(sums)] == sums else None


def checksums(body: Tensor) -> bytes:
    """One uint64, little-endian, for each CHUNK of ``body`` (uint8 [n], n a multiple of 8, on 8 bytes).

    A chunk's sum is that of its 64-bit words, each times an odd number of its own, modulo 2^64: any change within one
    word is seen for certain, any other with all but certainty, at several times the speed of a CRC.
    """
    words = body.numpy().view(np.uint64)
    step = CHUNK // 8
    odd = np.random.PCG64(0).random_raw(step) | np.uint64(1)  # NumPy promises that this stream never changes

    def one(start: int) -> int:
        chunk = words[start : start + step]
        return int(chunk @ odd[: len(chunk)])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        sums = list(threads.map(one, range(0, len(words), step)))
    return struct.pack(f"<{len(sums)}Q", *sums)
