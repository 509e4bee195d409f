"""One kept past as a file: how it is laid out, and when it may be believed.

    MAGIC      16 bytes
    length     of the header, uint64
    header     JSON: who made it (weights, config, kernels), for whom (adapter, a hash of the salt), the ids, and of
               every block its size and checksum
    checksum   of all before it, 16 bytes
    blocks     keys and values of each full layer, then those of the sliding layers, one stretch of tokens after the
               other: together all that the positions see which a prompt may go on from

Who reads one knows what it must hold: sizes follow from the ids and from an empty cache of the model, and a file that
says anything else is not believed. It is read whole and checked before any of it is used.

The checksums are for damage. Against malice stands the folder (``past_folder.py``), which nobody else can write to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pocketgem.engine.prefix import Scope
from pocketgem.engine.prefix_tree import Ids
from pocketgem.engine.reach import Slide
from pocketgem.errors import FormatError
from pocketgem.model.cache import Cache, LayerStore
from pocketgem.model.past import Rows, Stored

MAGIC = b"pocketgem past 2"
START = len(MAGIC) + 8
Stores = Sequence[tuple[int, LayerStore]]
SUM = 16  # bytes of a checksum
MAX_HEADER = 16 << 20  # a million tokens take 6 MB


@dataclass(frozen=True, eq=False)
class About:
    """What the header says. ``ends``: positions to go on from, ascending; the last is the number of ids."""

    owner: str  # hash of the identity and the scope
    ids: Ids
    ends: tuple[int, ...]
    blocks: tuple[tuple[int, bytes], ...]  # size and checksum
    start: int  # of the first block

    @property
    def size(self) -> int:
        """Of the whole file."""
        return self.start + sum(size for size, _ in self.blocks)


def owner_of(identity: str, scope: Scope) -> str:
    """What tells pasts of other weights, adapters and salts apart; a salt cannot be read from it."""
    return hashlib.sha256(json.dumps([identity, scope.adapter, scope.salt]).encode()).hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


def header_of(owner: str, ids: Ids, ends: Sequence[int], blocks: Sequence[memoryview]) -> bytes:
    """All that stands before the blocks."""
    text = json.dumps(
        {
            "owner": owner,
            "ids": base64.b64encode(ids.astype("<i4").tobytes()).decode(),
            "ends": list(ends),
            "blocks": [[len(block), _sum(block).hex()] for block in blocks],
        }
    ).encode()
    head = MAGIC + struct.pack("<Q", len(text)) + text
    return head + _sum(head)


def blocks_of(past: Stored) -> list[memoryview]:
    """The bytes of a past, in order. Nothing is copied where it lies in memory."""
    pieces = (past.all, *past.all_slid)
    pairs = [piece.layers[index] for piece in pieces for index in sorted(piece.layers)]
    return [_bytes(tensor) for pair in pairs for tensor in pair]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data if len(flat) else memoryview(b"")


def _sum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=SUM).digest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_about(file: IO[bytes], size: int) -> About:
    """The header of a file of ``size`` bytes. Raises FormatError for one that is damaged or no such file."""
    first = file.read(START)
    if len(first) < START or not first.startswith(MAGIC):
        raise FormatError("it is not a kept past of this version")
    (length,) = struct.unpack("<Q", first[len(MAGIC) :])
    if length > min(MAX_HEADER, size):
        raise FormatError("its header is longer than the file")
    text, checksum = file.read(length), file.read(SUM)
    if len(text) != length or checksum != _sum(first + text):
        raise FormatError("its header is damaged")
    try:
        about = _about(json.loads(text), START + length + SUM)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"its header makes no sense ({type(error).__name__})") from error
    if about.size != size:
        raise FormatError(f"it has {size} bytes and should have {about.size}")
    return about


def _about(data: dict[str, object], start: int) -> About:
    owner, text, ends, blocks = data["owner"], data["ids"], data["ends"], data["blocks"]
    if not (isinstance(owner, str) and isinstance(text, str) and isinstance(ends, list) and isinstance(blocks, list)):
        raise TypeError
    ids = np.frombuffer(base64.b64decode(text, validate=True), "<i4").astype(np.int32)
    whole = all(type(end) is int for end in ends) and sorted({*ends}) == ends
    if not whole or not ends or ends[0] < 1 or ends[-1] != len(ids):
        raise ValueError
    sizes = tuple((_size(size), bytes.fromhex(checksum)) for size, checksum in blocks)
    return About(owner, ids, tuple(ends), sizes, start)


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def read_past(file: IO[bytes], about: About, empty: Cache, slide: Slide) -> Stored:
    """The blocks of a file whose header was just read, for a model whose empty cache is ``empty``.

    Raises FormatError for damage, and for blocks that are not this model's.
    """
    blocks, stores = iter(about.blocks), sorted(empty.stores.items())
    full = [(index, store) for index, store in stores if store.room.window is None]
    sliding = [(index, store) for index, store in stores if store.room.window is not None]
    rows = _rows(file, full, 0, len(about.ids), blocks)
    slid = [_rows(file, sliding, first, stop, blocks) for first, stop in slide.needs(about.ends)]
    if next(blocks, None) is not None or file.read(1):
        raise FormatError("it holds more than this model would keep")
    return Stored(rows, slid)


def _rows(file: IO[bytes], stores: Stores, first: int, stop: int, blocks: Iterator[tuple[int, bytes]]) -> Rows:
    count = stop - first
    layers = {
        index: (_tensor(file, store, count, blocks), _tensor(file, store, count, blocks)) for index, store in stores
    }
    return Rows(first, count, layers)


def _tensor(file: IO[bytes], store: LayerStore, count: int, blocks: Iterator[tuple[int, bytes]]) -> Tensor:
    tensor = torch.empty((count, *store.row), dtype=store.dtype)
    size, checksum = next(blocks, (-1, b""))
    if size != tensor.nbytes:
        raise FormatError("it is of a model with other layers")
    data = _bytes(tensor)
    if size and (file.readinto(data) != size or _sum(data) != checksum):  # type: ignore[attr-defined]
        raise FormatError("a block of it is damaged")
    return tensor.to(store.device)
