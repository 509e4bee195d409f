"""Packed weights of a model: from the file that keeps them if there is one, else packed now and kept for next time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pocketgem import kernels
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import Progress
from pocketgem.errors import RunError, WeightsError
from pocketgem.memory.packed_draft import Draft
from pocketgem.memory.packed_file import aligned, body_start, checksums, head_of, open_kept
from pocketgem.memory.packed_source import files_of, forget, identity

LAYOUT_VERSION = 1  # of native/packed.h, where the compiled kernels do not say: must rise when packed bytes change


class Packer(Protocol):
    """What is needed of the compiled kernels (which may have ``layout_version: int`` too)."""

    def packed_bytes(self, type: str, rows: int, cols: int, /) -> int: ...

    def pack(
        self, pool: object, type: str, source: int, source_bytes: int, rows: int, cols: int, target: int, size: int, /
    ) -> None: ...


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Parts by name. ``kept`` is the file they lie in, ``note`` why they lie in memory instead: one of them is None."""

    kept: Path | None
    note: str | None
    mapped: MappedFile | None = field(repr=False)  # of ``kept``: ask it ``check_unchanged`` before reading
    _parts: Mapping[str, Tensor] = field(repr=False)

    def bytes(self, name: str) -> Tensor:
        """uint8 [tensors of the part * packed bytes of each], on 64 bytes; read-only where ``kept`` is set."""
        return self._parts[name]


def packed_weights(
    parts: Mapping[str, Sequence[StoredTensor]],
    *,
    source: Path,
    pool: object,
    cache: Path | None,
    progress: Progress | None = None,
    packer: Packer | None = None,
) -> PackedWeights:
    """Pack ``parts``, or find them packed in ``cache``. A part is one tensor [rows, cols], or like ones in a row.

    A cache that is stale, damaged or of another version is written anew; where it cannot be written (or is None), the
    weights are packed into memory and ``note`` says why. ``progress`` counts packed bytes. ``packer`` is for tests.
    Raises WeightsError for unlike tensors in one part, CheckpointError if ``source`` changed since it was opened,
    RunError without compiled kernels.
    """
    plan = _Plan(parts, packer or _native(source), pool, progress)
    if cache is None:
        return PackedWeights(None, "there is no place to keep packed weights", None, plan.pack_into_memory())
    try:
        return _kept(plan, head_of(plan.describe()), cache)
    except OSError as error:
        note = f"packed weights are not kept in {cache}: {error.strerror or error}"
    # Not within `except`: there the error still holds the draft, which is as large as what comes now.
    return PackedWeights(None, note, None, plan.pack_into_memory())


def _kept(plan: _Plan, head: bytes, cache: Path) -> PackedWeights:
    """Raises OSError if there can be no such file."""
    mapped = open_kept(cache, head, plan.size)
    if mapped is None:
        plan.pack_into_file(cache, head)
        mapped = open_kept(cache, head, plan.size)
    if mapped is None:
        raise OSError("another program changed the file just now")
    return PackedWeights(cache, None, mapped, plan.cut(mapped.data[body_start(head, plan.size) :]))


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


class _Plan:
    """Which part comes where. The largest comes first: one tensor of the source is in memory beside what is packed."""

    def __init__(
        self, parts: Mapping[str, Sequence[StoredTensor]], packer: Packer, pool: object, progress: Progress | None
    ) -> None:
        self._packer, self._pool, self._progress = packer, pool, progress
        each = {name: self._packed_bytes(name, tensors) for name, tensors in parts.items()}
        self._parts: dict[str, _Part] = {}
        self.size = 0  # bytes of the body
        for name in sorted(parts, key=lambda name: -each[name]):
            self._parts[name] = part = _Part(parts[name], self.size, each[name])
            self.size = aligned(part.start + part.size)

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
        start = body_start(head, self.size)
        with Draft(target, start + self.size) as draft:
            body = draft.data[start:]
            self._pack(lambda part: body[part.start : part.start + part.size])
            first = head + checksums(body)
            draft.data[: len(first)] = torch.frombuffer(bytearray(first), dtype=torch.uint8)
            draft.publish()

    def pack_into_memory(self) -> dict[str, Tensor]:
        return self._pack(lambda part: torch.zeros(part.size, dtype=torch.uint8))

    def cut(self, body: Tensor) -> dict[str, Tensor]:
        """``body`` (uint8 [size]) as the parts in it."""
        return {name: body[part.start : part.start + part.size] for name, part in self._parts.items()}

    def _pack(self, place: Callable[[_Part], Tensor]) -> dict[str, Tensor]:
        """Pack every part to where ``place`` says (uint8 [part.size]), asked only when that part's turn has come."""
        placed, done, total = {}, 0, sum(part.size for part in self._parts.values())
        for name, part in self._parts.items():
            placed[name] = place(part)
            for tensor, target in zip(part.tensors, placed[name].view(-1, part.each), strict=True):
                self._pack_one(tensor, target)
                done += part.each
                if self._progress is not None:
                    self._progress(done, total)
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
