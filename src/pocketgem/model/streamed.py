"""A model that holds no matrices: each is read from its file a few rows at a time whenever it is used, as float32.

One pass over a text of hundreds of tokens reads every weight once, so any model can be run this way in little memory,
exactly as its file defines it. It is how a quantised file is compared with its source; it is no way to write text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor, member_of
from pocketgem.checkpoint.stream import CHUNK, read_values
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.model import ops
from pocketgem.model.build import Slot, check_tensors, empty_model, norm_or_number, slots_of
from pocketgem.model.experts import Experts
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Embedding, Linear


class Matrix(Protocol):
    """Anything that answers with rows of a matrix in float32."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """``[stop - start, cols]``"""

    def take(self, ids: Tensor) -> Tensor:
        """``[ids, cols]``"""


class StoredMatrix:
    """A matrix as its file has it."""

    def __init__(self, stored: StoredTensor) -> None:
        self.stored, self.shape = stored, stored.shape

    def rows(self, start: int, stop: int) -> Tensor:
        return read_values(self.stored, start, stop)

    def take(self, ids: Tensor) -> Tensor:
        return torch.cat([self.rows(id, id + 1) for id in ids.tolist()])


Read = Callable[[str, StoredTensor], Matrix]  # a tensor's Hugging Face name and what is stored -> what the model reads


def as_stored(name: str, stored: StoredTensor) -> Matrix:
    """The file's own values."""
    return StoredMatrix(stored)


def build_streamed(checkpoint: Checkpoint, read: Read = as_stored) -> Gemma:
    """The model a checkpoint describes over matrices that ``read`` makes of the stored ones.

    Raises WeightsError naming tensors that are missing, of the wrong shape, or that nothing in the model takes.
    """
    check_tensors(checkpoint)
    model = empty_model(checkpoint.config)
    for slot in slots_of(model):
        _fill(model, slot, checkpoint, read)
    if model.per_layer is not None:
        table = _one(checkpoint.tensors[names.TABLE])
        model.per_layer.table = StreamedRows(read(names.TABLE, table))
    model.has_own_threads = False
    return model.eval()


def _fill(model: Gemma, slot: Slot, checkpoint: Checkpoint, read: Read) -> None:
    tied = slot.name == "lm_head.weight" and checkpoint.config.tied_head
    name = "embed_tokens.weight" if tied else slot.name
    stored = checkpoint.tensors[name]
    if isinstance(slot.module, Embedding):
        model.set_submodule(slot.path, StreamedEmbedding(read(name, _one(stored)), slot.module.scale))
    elif isinstance(slot.module, Linear):
        model.set_submodule(slot.path, StreamedLinear(read(name, _one(stored))))
    elif not isinstance(slot.module, Experts):
        slot.module.register_parameter(slot.key, norm_or_number(slot.module, stored, checkpoint.norm_offset))
    elif slot.key == "gate_up_proj":  # its neighbour's turn fills both
        down = slot.name.replace("gate_up_proj", "down_proj")
        stacks = [(slot.name, part) for part in _parts(stored)], [(down, _one(checkpoint.tensors[down]))]
        model.set_submodule(slot.path, StreamedExperts(*stacks, read))


def _one(stored: TextTensor) -> StoredTensor:
    (part,) = _parts(stored)
    return part


def _parts(stored: TextTensor) -> tuple[StoredTensor, ...]:
    return (stored.gate, stored.up) if isinstance(stored, JoinedTensor) else (stored,)


class StreamedLinear(nn.Module):
    """``[rows, in] -> [rows, out]``, the matrix in pieces."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.matrix)


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """``x @ matrix.T`` with about CHUNK weights in memory at a time."""
    count, cols = matrix.shape
    out = x.new_empty(len(x), count)
    step = max(1, CHUNK // cols)
    for start in range(0, count, step):
        stop = min(start + step, count)
        out[:, start:stop] = ops.linear(x, matrix.rows(start, stop))
    return out


class StreamedEmbedding(nn.Module):
    """Rows of the vocabulary, scaled."""

    dtype = torch.float32

    def __init__(self, matrix: Matrix, scale: float) -> None:
        super().__init__()
        self.matrix, self.scale = matrix, scale

    def forward(self, ids: Tensor) -> Tensor:
        return _looked_up(self.matrix, ids) * self.scale

    def expect(self, ids: Sequence[int]) -> None:
        """As ``StreamedRows.expect``."""


class StreamedRows:
    """The per-layer table: a row source as those of ``memory/rows.py``."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """See ``RowSource``."""
        return _looked_up(self.matrix, ids) * factor

    def expect(self, ids: Sequence[int]) -> None:
        """Nothing is read ahead: one pass over a text does not wait to be shown."""


def _looked_up(matrix: Matrix, ids: Tensor) -> Tensor:
    unique, where = torch.unique(ids, return_inverse=True)
    return matrix.take(unique)[where]


Stack = list[tuple[str, StoredTensor]]  # one tensor [experts, out, in], or two that belong side by side


class StreamedExperts(Experts):
    """All routed experts of one layer; those that a step asks for are read."""

    def __init__(self, gate_up: Stack, down: Stack, read: Read) -> None:
        nn.Module.__init__(self)  # no parameters
        self._gate_up, self._down, self._read = gate_up, down, read

    def run(self, expert: int, x: Tensor) -> Tensor:
        gate, up = torch.cat(self._products(self._gate_up, expert, x), dim=-1).chunk(2, dim=-1)
        (out,) = self._products(self._down, expert, ops.geglu(gate, up))
        return out

    def _products(self, stack: Stack, expert: int, x: Tensor) -> list[Tensor]:
        return [product(x, self._read(name, member_of(stored, expert))) for name, stored in stack]
