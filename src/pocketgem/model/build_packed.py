"""A checkpoint becomes a model whose matrices stay packed: the kernels' own layout, read from memory or a cache file.

Nothing is rounded on the way. Activations are float32, keys and values bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor, member_of
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import Progress, StoredType
from pocketgem.kernels import HEAD_DIM_STEP
from pocketgem.kernels.compute import Compute, Weight
from pocketgem.memory.packed import PackedWeights, packed_weights
from pocketgem.memory.packed_source import forget
from pocketgem.memory.place import HOT_EMBEDDINGS, Place
from pocketgem.memory.rows import row_source
from pocketgem.model.build import Slot, check_tensors, empty_model, norm_or_number, slots_of, table_of
from pocketgem.model.expert_stacks import ExpertStacks
from pocketgem.model.experts import Experts
from pocketgem.model.fused import fuse
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Embedding, Linear
from pocketgem.model.quant import BudgetedExperts, PackedEmbedding, PackedExperts, PackedHead, PackedLinear
from pocketgem.model.stacked import stack

# A head of eight bits is exact enough that the rounding of its activations shows. Coarser ones round more themselves,
# and for many sequences the finer product would take a fifth of the time of a step.
FINE_HEAD = StoredType.Q8_0
PLAIN = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels read as it is


def can_pack(checkpoint: Checkpoint) -> bool:
    """Whether packing pays: the checkpoint has matrices of block types."""
    stored = (part for tensor in checkpoint.tensors.values() for part in _parts(tensor))
    return any(part.type.block_size > 1 and len(part.shape) > 1 for part in stored)


def build_packed(
    checkpoint: Checkpoint,
    compute: Compute,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    ple: Place = Place.AUTO,
    expert_memory: int | None = None,
) -> tuple[Gemma, tuple[MappedFile, ...]]:
    """Build the model a checkpoint describes over packed weights.

    cache: where packed weights are kept between runs; None: nowhere. ple: where rows of the per-layer table come from.
    expert_memory: bytes for routed experts, the others are read from ``cache`` when they are wanted; None: all are in
    memory. Returns the model and the files it goes on reading.
    Raises WeightsError naming tensors that are missing, of the wrong shape, or that nothing in the model takes,
    InputError for a budget that cannot be kept, RunError where it needs a cache and there can be none.
    """
    check_tensors(checkpoint)
    model = empty_model(checkpoint.config)
    slots = slots_of(model)
    matrices = {hf: checkpoint.tensors[hf] for slot in slots if (hf := _source(slot, checkpoint)) is not None}
    blocks = {name: members for hf, tensor in matrices.items() for name, members in _blocks(hf, tensor)}
    stacks = None if expert_memory is None else ExpertStacks(checkpoint, blocks, expert_memory)
    packs = packed_weights(
        blocks,
        source=Path(checkpoint.where),
        pool=compute.pool,
        cache=cache,
        progress=progress,
        loose=() if stacks is None else stacks.names,
    )
    bench = _Bench(checkpoint, compute, blocks, packs)
    if stacks is not None:
        bench.budgeted = stacks.open(compute, packs)
    for slot in slots:
        bench.fill(model, slot)
    if model.per_layer is not None:
        model.per_layer.table = row_source(table_of(checkpoint), ple, compute, progress=progress)
    model.eval()
    model.has_own_threads = True
    if all(layer.head_dim % HEAD_DIM_STEP == 0 for layer in checkpoint.config.layers):
        fuse(model, compute)
        stack(model, compute)
    bench.forget_pages()
    return model, bench.files()


def _source(slot: Slot, checkpoint: Checkpoint) -> str | None:
    """The matrix a slot takes; None for norms and other small parameters."""
    if not isinstance(slot.module, Linear | Embedding | Experts):
        return None
    tied = slot.name == "lm_head.weight" and checkpoint.config.tied_head
    return "embed_tokens.weight" if tied else slot.name


class _Bench:
    """Puts packed modules where plain ones were."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        compute: Compute,
        blocks: Mapping[str, Sequence[StoredTensor]],
        packs: PackedWeights,
    ) -> None:
        self.checkpoint, self.compute, self.blocks, self.packs = checkpoint, compute, blocks, packs
        self.budgeted: Mapping[str, BudgetedExperts] = {}  # by the slot's path

    def fill(self, model: Gemma, slot: Slot) -> None:
        source = _source(slot, self.checkpoint)
        if source is None:
            stored = self.checkpoint.tensors[slot.name]
            slot.module.register_parameter(slot.key, norm_or_number(slot.module, stored, self.checkpoint.norm_offset))
        elif isinstance(slot.module, Embedding):
            table = cast(StoredTensor, self.checkpoint.tensors[source])
            rows = row_source(table, Place.DISK, self.compute, hot_bytes=HOT_EMBEDDINGS)
            model.set_submodule(slot.path, PackedEmbedding(rows, slot.module.scale))
        elif isinstance(slot.module, Linear):
            fine = slot.path == "lm_head" and _parts(self.checkpoint.tensors[source])[0].type is FINE_HEAD
            kind = PackedHead if fine else PackedLinear
            model.set_submodule(slot.path, kind(self.compute, self.weights(source)[0]))
        elif slot.path in self.budgeted:
            if slot.key == "gate_up_proj":
                model.set_submodule(slot.path, self.budgeted[slot.path])
        elif slot.key == "gate_up_proj":  # its neighbour's turn fills both
            down = slot.name.replace("gate_up_proj", "down_proj")
            parts = (self.weights(name) for name in (f"{slot.name}.gate", f"{slot.name}.up", down))
            model.set_submodule(slot.path, PackedExperts(self.compute, *parts))

    def weights(self, name: str) -> list[Weight]:
        """The matrices of that name: one, or an expert stack's."""
        if name not in self.blocks:
            return [self._plain(part) for part in _matrices(name, self.checkpoint)]
        parts, data = self.blocks[name], self.packs.bytes(name)
        (rows, cols), type, size = parts[0].shape, parts[0].type.value, data.numel() // len(parts)
        return [self.compute.packed(type, rows, cols, data[i * size : (i + 1) * size]) for i in range(len(parts))]

    def _plain(self, stored: StoredTensor) -> Weight:
        return self.compute.plain(stored.dense(stored.dtype if stored.dtype in PLAIN else torch.float32))

    def forget_pages(self) -> None:
        """Small tensors were read through mappings, and many of their neighbours came with each: these can go."""
        for file in self.files():
            if file is not self.packs.mapped:
                forget(file, 0, file.size)

    def files(self) -> tuple[MappedFile, ...]:
        """What the model goes on reading: the checkpoint, for its rows and plain matrices, and the packed weights."""
        stored = (part.source for tensor in self.checkpoint.tensors.values() for part in _parts(tensor))
        mapped = (*stored, *(() if self.packs.mapped is None else (self.packs.mapped,)))
        return tuple({file.path: file for file in mapped}.values())


# ---- stacks of experts come apart ------------------------------------------------------------------------------------


def _parts(tensor: TextTensor) -> tuple[StoredTensor, ...]:
    return (tensor.gate, tensor.up) if isinstance(tensor, JoinedTensor) else (tensor,)


def _blocks(name: str, tensor: TextTensor) -> Iterator[tuple[str, list[StoredTensor]]]:
    """The matrices of a tensor that are stored in blocks, under the names ``_Bench.weights`` asks for."""
    for part, matrices in _named(name, tensor):
        if matrices[0].type.block_size > 1:
            yield part, matrices


def _named(name: str, tensor: TextTensor) -> Iterator[tuple[str, list[StoredTensor]]]:
    if isinstance(tensor, JoinedTensor):
        yield f"{name}.gate", _members(tensor.gate)
        yield f"{name}.up", _members(tensor.up)
    elif name.endswith(".gate_up_proj"):
        halves = [_halves(member) for member in _members(tensor)]
        yield f"{name}.gate", [gate for gate, _ in halves]
        yield f"{name}.up", [up for _, up in halves]
    else:
        yield name, _members(tensor) if len(tensor.shape) == 3 else [tensor]


def _matrices(name: str, checkpoint: Checkpoint) -> list[StoredTensor]:
    whole = name.removesuffix(".gate").removesuffix(".up")
    return dict(_named(whole, checkpoint.tensors[whole]))[name]


def _members(stack: StoredTensor) -> list[StoredTensor]:
    """The matrices of ``[members, rows, cols]``; they lie one after another."""
    return [member_of(stack, index) for index in range(stack.shape[0])]


def _halves(matrix: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    rows, cols = matrix.shape
    pair = replace(matrix, shape=(2, rows // 2, cols))
    return member_of(pair, 0), member_of(pair, 1)
