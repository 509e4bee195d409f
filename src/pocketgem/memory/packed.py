"""Packed weights of a model: from the file that keeps them if there is one, else packed now and kept for next time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pocketgem import kernels
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import Progress
from pocketgem.errors import RunError, WeightsError
from pocketgem.memory.packed_draft import Draft
from pocketgem.memory.packed_file import Body, Kept, body_start, checksums, cut, head_of, open_kept
from pocketgem.memory.packed_place import aligned
from pocketgem.memory.packed_source import files_of, forget, identity

LAYOUT_VERSION = 1  # of native/packed.h, where the compiled kernels do not say: must rise when packed bytes change


class Packer(Protocol):
    """What is needed of the compiled kernels (which may have ``layout_version: int`` too)."""

    def packed_bytes(self, type: str, rows: int, cols: int, /) -> int: ...

    def pack(
        self, pool: object, type: str, source: int, source_bytes: int, rows: int, cols: int, target: int, size: int, /
    ) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a part lies in the file that keeps it: tensor i at ``start + i * each``, ``each`` bytes."""

    start: int
    each: int
    sums: tuple[tuple[int, ...], ...] = field(repr=False)  # checksums of every tensor's pieces
    end: int  # of the last tensor's last piece, which holds the zeros after it

    def of(self, index: int) -> tuple[int, int]:
        """Begin and end of what a tensor's checksums cover."""
        start = self.start + index * self.each
        return start, self.end if index + 1 == len(self.sums) else start + self.each


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Parts by name. ``kept`` is the file they lie in, ``note`` why they lie in memory instead: one of them is None."""

    kept: Path | None
    note: str | None
    mapped: MappedFile | None = field(repr=False)  # of ``kept``: ask it ``check_unchanged`` before reading
    _parts: Mapping[str, Tensor] = field(repr=False)
    _places: Mapping[str, Place] = field(repr=False, default_factory=dict)

    def bytes(self, name: str) -> Tensor:
        """uint8 [tensors of the part * packed bytes of each], on 64 bytes; read-only where ``kept`` is set."""
        return self._parts[name]

    def place(self, name: str) -> Place:
        """Where a part lies in ``mapped``, for who reads it by itself."""
        return self._places[name]


def packed_weights(
    parts: Mapping[str, Sequence[StoredTensor]],
    *,
    source: Path,
    pool: object,
    cache: Path | None,
    progress: Progress | None = None,
    packer: Packer | None = None,
    loose: Collection[str] = (),
) -> PackedWeights:
    """Pack ``parts``, or find them packed in ``cache``. A part is one tensor [rows, cols], or like ones in a row.

    A cache that is stale, damaged or of another version is written anew; where it cannot be written (or is None), the
    weights are packed into memory and ``note`` says why. ``progress`` counts packed bytes. ``packer`` is for tests.
    ``loose`` parts are read from the file by who asked, who also checks them then: they are not looked at here, and
    there must be a file. Raises WeightsError for unlike tensors in one part, CheckpointError if ``source`` changed
    since it was opened, RunError without compiled kernels or without a file where there must be one.
    """
    plan = _Plan(parts, packer or _native(source), pool, progress, loose)
    note = "there is no place to keep packed weights"
    if cache is not None:
        try:
            return _kept(plan, head_of(plan.describe()), cache)
        except OSError as error:
            note = f"packed weights are not kept in {cache}: {error.strerror or error}"
    if loose:
        raise RunError(f"{source}: a budget for experts needs a file to read them from, but {note}")
    # Not within `except`: there the error still holds the draft, which is as large as what comes now.
    return PackedWeights(None, note, None, plan.pack_into_memory())


def _kept(plan: _Plan, head: bytes, cache: Path) -> PackedWeights:
    """Raises OSError if there can be no such file."""
    kept = open_kept(cache, head, plan.body, plan.is_loose)
    if kept is None:
        plan.pack_into_file(cache, head)
        kept = open_kept(cache, head, plan.body, plan.is_loose)
    if kept is None:
        raise OSError("another program changed the file just now")
    return PackedWeights(cache, None, kept.mapped, plan.cut(kept.body), plan.places(kept))


def _native(source: Path) -> Packer:
    if kernels.native is None:
        raise RunError(f"{source}: weights are packed by compiled kernels, and there are none: {kernels.status.reason}")
    return kernels.native


@dataclass(frozen=True)
class _Part:
    """Equal tensors whose packed bytes begin at ``start`` of the body, ``each`` bytes apart."""

    tensors: Sequence[StoredTensor]
    start: int
    each: int

    @property
    def size(self) -> int:
        return self.each * len(self.tensors)

    @property
    def starts(self) -> range:
        return range(self.start, self.start + self.size, self.each)

    @property
    def end(self) -> int:
        """Of the zeros after it."""
        return aligned(self.start + self.size)

    def piece_lists(self) -> list[list[tuple[int, int]]]:
        """The pieces of every tensor; the last holds the zeros, too."""
        return [cut(begin, end) for begin, end in pairwise((*self.starts, self.end))]


class _Plan:
    """Which part comes where. The largest comes first: one tensor of the source is in memory beside what is packed."""

    def __init__(
        self,
        parts: Mapping[str, Sequence[StoredTensor]],
        packer: Packer,
        pool: object,
        progress: Progress | None,
        loose: Collection[str],
    ) -> None:
        self._packer, self._pool, self._progress = packer, pool, progress
        each = {name: self._packed_bytes(name, tensors) for name, tensors in parts.items()}
        self._parts: dict[str, _Part] = {}
        size = 0
        for name in sorted(parts, key=lambda name: -each[name]):
            self._parts[name] = part = _Part(parts[name], size, each[name])
            size = part.end
        self.body = Body(tuple(start for part in self._parts.values() for start in part.starts), size)
        skipped = (part for name, part in self._parts.items() if name in loose)
        self._loose = frozenset(begin for part in skipped for pieces in part.piece_lists() for begin, _ in pieces)

    def is_loose(self, begin: int) -> bool:
        """Whether a piece that begins there is of a loose part."""
        return begin in self._loose

    def describe(self) -> dict[str, object]:
        """All that the packed bytes depend on. Raises OSError if a file of the source is not there any more."""
        return {
            "layout": getattr(self._packer, "layout_version", LAYOUT_VERSION),
            **identity(self._tensors()),
            "parts": [
                [name, part.tensors[0].type, *part.tensors[0].shape, len(part.tensors), part.start, part.each]
                for name, part in self._parts.items()
            ],
        }

    def pack_into_file(self, target: Path, head: bytes) -> None:
        """Raises OSError if there can be no such file."""
        start = body_start(head, len(self.body.pieces))
        with Draft(target, start + self.body.size) as draft:
            body, sums = draft.data[start:], list[int]()

            def finish(part: _Part) -> None:  # while its bytes are in memory: later they would be read again
                sums.extend(checksums(body, [piece for pieces in part.piece_lists() for piece in pieces]))
                draft.settle(start + part.start, start + part.end)

            self._pack(lambda part: body[part.start : part.start + part.size], finish)
            first = head + struct.pack(f"<{len(sums)}Q", *sums)
            draft.data[: len(first)] = torch.frombuffer(bytearray(first), dtype=torch.uint8)
            draft.publish()

    def pack_into_memory(self) -> dict[str, Tensor]:
        return self._pack(lambda part: torch.zeros(part.size, dtype=torch.uint8))

    def cut(self, body: Tensor) -> dict[str, Tensor]:
        """``body`` (uint8 [size]) as the parts in it."""
        return {name: body[part.start : part.start + part.size] for name, part in self._parts.items()}

    def places(self, kept: Kept) -> dict[str, Place]:
        """Where each part is in the file."""
        return {name: _place(part, kept) for name, part in self._parts.items()}

    def _pack(
        self, place: Callable[[_Part], Tensor], finish: Callable[[_Part], None] = lambda part: None
    ) -> dict[str, Tensor]:
        """Pack every part to where ``place`` says (uint8 [part.size]), asked only when that part's turn has come."""
        placed, done, total = {}, 0, sum(part.size for part in self._parts.values())
        for name, part in self._parts.items():
            placed[name] = place(part)
            for tensor, target in zip(part.tensors, placed[name].view(-1, part.each), strict=True):
                self._pack_one(tensor, target)
                done += part.each
                if self._progress is not None:
                    self._progress(done, total)
            finish(part)
        for file in files_of(self._tensors()):  # a write that met the last reads is seen only now
            file.check_unchanged()
        return placed

    def _pack_one(self, tensor: StoredTensor, target: Tensor) -> None:
        tensor.source.check_unchanged()
        data, (rows, cols) = tensor.data, tensor.shape
        self._packer.pack(
            self._pool, tensor.type.value, data.data_ptr(), data.numel(), rows, cols, target.data_ptr(), target.numel()
        )
        forget(tensor.source, tensor.start, tensor.end)

    def _tensors(self) -> list[Sequence[StoredTensor]]:
        return [part.tensors for part in self._parts.values()]

    def _packed_bytes(self, name: str, tensors: Sequence[StoredTensor]) -> int:
        shapes = {(tensor.type, tensor.shape) for tensor in tensors}
        if len(shapes) != 1 or len(tensors[0].shape) != 2 or tensors[0].numel == 0:
            raise WeightsError(f"{name}: only matrices of one type and shape can be packed as one")
        rows, cols = tensors[0].shape
        return self._packer.packed_bytes(tensors[0].type.value, rows, cols)


def _place(part: _Part, kept: Kept) -> Place:
    sums = tuple(tuple(kept.sums[begin] for begin, _ in pieces) for pieces in part.piece_lists())
    return Place(kept.start + part.start, part.each, sums, kept.start + part.end)
