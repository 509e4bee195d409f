"""A source's tensors under GGUF's names, read a few rows at a time, so that memory does not grow with the model.

Rows are read from the file, not through its mapping: pages of a mapping count as this process's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.checkpoint import names
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.export import rope_divisors
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType

CHUNK = 1 << 19  # weights read at a time

Place = tuple[str, int, int]  # a stored tensor: its file, where its bytes start and end
Change = Callable[[Tensor, int], Tensor]  # float32 rows ``[n, width]`` from a row of the tensor on -> what they become
Changes = Mapping[Place, Change]


def place(part: StoredTensor) -> Place:
    """What a change is looked up by: the same whichever name the tensor has in the new file."""
    return str(part.source.path), part.start, part.end


@dataclass(frozen=True)
class SourceTensor:
    """A tensor as the new file will name and shape it: one stored tensor, a stack of equal ones, or given values.

    ``offset`` is added to what is stored: a safetensors norm of Gemma 3 lacks its one.
    """

    name: str
    shape: tuple[int, ...]
    type: StoredType
    stored: tuple[StoredTensor, ...]
    offset: float = 0.0
    values: Tensor | None = None

    @property
    def width(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def pieces(self) -> Iterator[tuple[StoredTensor, int, int]]:
        """(part, first row, last row + 1) of about CHUNK weights each, in order."""
        step = max(1, CHUNK // self.width)
        for part in self.stored:
            rows = part.numel // self.width
            for start in range(0, rows, step):
                yield part, start, min(start + step, rows)


def read_rows(part: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows of the leading dims taken as one, as they lie in the file: uint8 [stop - start, bytes a row].

    Raises CheckpointError if the file was changed or cut since it was opened.
    """
    part.source.check_unchanged()
    size = part.nbytes // (part.numel // (part.shape[-1] if part.shape else 1))
    raw = torch.empty(stop - start, size, dtype=torch.uint8)
    part.source.read_into(raw.view(-1).numpy().data, part.start + start * size)
    return raw


def read_values(part: StoredTensor, start: int, stop: int) -> Tensor:
    """The same rows as float32 [stop - start, width]."""
    return dequantize(read_rows(part, start, stop).view(-1, part.type.type_size), part.type).view(stop - start, -1)


def source_tensors(checkpoint: Checkpoint) -> list[SourceTensor]:
    """All tensors of a GGUF file; of a folder those of the text model, in the form GGUF has them."""
    if checkpoint.location.kind == "gguf":
        tensors = GGUFFile.open(checkpoint.location.files[0]).tensors
        return [SourceTensor(name, one.shape, one.type, (one,)) for name, one in tensors.items()]
    return [*_converted(checkpoint), *_given(checkpoint)]


def _converted(checkpoint: Checkpoint) -> Iterator[SourceTensor]:
    stacks: dict[str, dict[int, StoredTensor]] = {}
    for hf, stored in checkpoint.tensors.items():
        if isinstance(stored, JoinedTensor) or (hf == "lm_head.weight" and checkpoint.config.tied_head):
            continue  # only GGUF joins; a tied head is stored twice at times
        name, index = names.gguf_name(hf), names.stack_index(hf)
        if index is None:
            offset = checkpoint.norm_offset if "norm" in hf else 0.0
            yield SourceTensor(name, stored.shape, stored.type, (stored,), offset)
        else:
            stacks.setdefault(name, {})[index] = stored
    for name, members in stacks.items():
        parts = tuple(members[index] for index in sorted(members))
        yield SourceTensor(name, (len(parts), *parts[0].shape), parts[0].type, parts)


def _given(checkpoint: Checkpoint) -> Iterator[SourceTensor]:
    for name, values, type in rope_divisors(checkpoint.config):
        yield SourceTensor(name, tuple(values.shape), type, (), values=values)
