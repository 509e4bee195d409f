"""What there is to place: every text tensor of a checkpoint, or of a layout as it would be stored. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pocketgem import kernels
from pocketgem.checkpoint import names
from pocketgem.checkpoint.formats import stored_as
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor
from pocketgem.checkpoint.types import StoredType, tensor_bytes
from pocketgem.config import ModelConfig, decoder_shapes
from pocketgem.config.counts import group_of
from pocketgem.memory.packed_place import WORTH_KEEPING
from pocketgem.memory.towers import TowerBytes, towers_as, towers_of


@dataclass(frozen=True)
class Holding:
    """One tensor in a file: a vector, a matrix, or a stack of matrices ``[members, rows, cols]``."""

    name: str  # Hugging Face's, without the prefix
    shape: tuple[int, ...]
    type: StoredType

    @property
    def group(self) -> str:
        """``embedding``, ``head``, ``per_layer_table``, ``core`` or ``experts``."""
        return group_of(self.name)

    @property
    def stored(self) -> int:
        return tensor_bytes(self.shape, self.type)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) > 1

    @property
    def in_blocks(self) -> bool:
        return self.is_matrix and self.type.packed

    @cached_property
    def matrices(self) -> tuple[int, int, int]:
        """(number, rows, columns) of the matrices that kernels multiply with: gate and up of a stack each by itself."""
        *members, rows, cols = self.shape
        halves = 2 if self.name.endswith(".gate_up_proj") else 1
        return math.prod(members) * halves, rows // halves, cols

    @property
    def packed_each(self) -> int:
        """Bytes of one of its matrices in the kernels' layout. Only where there are compiled kernels."""
        _, rows, cols = self.matrices
        assert kernels.native is not None  # callers look first
        size: int = kernels.native.packed_bytes(self.type.value, rows, cols)
        return size

    @property
    def packed(self) -> int:
        """Bytes of all its matrices in the kernels' layout."""
        return self.matrices[0] * self.packed_each


@dataclass(frozen=True)
class Holdings:
    """All text tensors of one model. ``others``: bytes of towers and whatever else lies in the files; ``towers``: those
    that can run."""

    model: str
    config: ModelConfig
    tensors: Mapping[str, Holding]
    others: int = 0
    towers: tuple[TowerBytes, ...] = ()
    header: int = 0  # bytes before the first tensor: names and vocabulary
    file: Path | None = None  # the first file; None for a layout without one
    listed_merges: int | None = None  # of the vocabulary, where its file lists them

    @property
    def can_pack(self) -> bool:
        return any(tensor.in_blocks for tensor in self.tensors.values())

    @property
    def worth_keeping(self) -> bool:
        """Whether packing takes long enough that its result is kept."""
        return sum(tensor.stored for name, tensor in self.tensors.items() if name != names.TABLE) > WORTH_KEEPING

    @cached_property
    def used(self) -> tuple[Holding, ...]:
        """What the model has a place for: files may carry keys that no layer reads, and a copy of a tied head."""
        shapes = decoder_shapes(self.config)
        return tuple(tensor for name, tensor in self.tensors.items() if name in shapes)

    def group(self, name: str) -> list[Holding]:
        """The tensors of a group that are used."""
        return [tensor for tensor in self.used if tensor.group == name]

    def stored(self, name: str) -> int:
        """Bytes of a group in the file, used or not."""
        return sum(tensor.stored for tensor in self.tensors.values() if tensor.group == name)


def holdings_of(checkpoint: Checkpoint, model: str) -> Holdings:
    """What a checkpoint holds, from its headers."""
    tensors: dict[str, Holding] = {}
    for name, tensor in checkpoint.tensors.items():
        type = tensor.gate.type if isinstance(tensor, JoinedTensor) else tensor.type
        tensors[name] = Holding(name, tensor.shape, type)
    merges = checkpoint.metadata.get("tokenizer.ggml.merges")
    return Holdings(
        model=model,
        config=checkpoint.config,
        tensors=tensors,
        others=sum(tensor.nbytes for tensor in checkpoint.others.values()),
        towers=towers_of(checkpoint.config, checkpoint.others),
        header=_header(checkpoint) if checkpoint.metadata else 0,
        file=Path(checkpoint.where),
        listed_merges=len(merges) if isinstance(merges, list) else None,
    )


def _header(checkpoint: Checkpoint) -> int:
    parts = (t.gate if isinstance(t, JoinedTensor) else t for t in checkpoint.tensors.values())
    return min((tensor.start for tensor in parts), default=0)


def holdings_as(config: ModelConfig, type: StoredType, model: str) -> Holdings:
    """What a file of one type would hold."""
    shapes = decoder_shapes(config)
    tensors = {
        name: Holding(name, shape, stored_as(names.gguf_name(name), shape, type)) for name, shape in shapes.items()
    }
    towers = towers_as(config)
    return Holdings(model, config, tensors, sum(tower.stored for tower in towers), towers)
