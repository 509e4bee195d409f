"""A checkpoint's routed experts as parts of the packed file, and the modules that read them under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocketgem import kernels
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import InputError
from pocketgem.kernels.compute import Compute
from pocketgem.memory.expert_slots import slots_for
from pocketgem.memory.experts import ExpertStore, Layer
from pocketgem.memory.packed import PackedWeights
from pocketgem.model.quant import BudgetedExperts

Stacks = Mapping[str, Sequence[StoredTensor]]  # matrices that are packed, by name


class ExpertStacks:
    """Gate, up and down of every layer. Checked here, before anything is packed: the rest may take minutes."""

    def __init__(self, checkpoint: Checkpoint, blocks: Stacks, budget: int) -> None:
        """Raises InputError for a model without experts in blocks, and for a budget too small for one row."""
        self.where, self.budget = checkpoint.where, budget
        if checkpoint.config.experts is None:
            raise InputError(f"{self.where}: this model has no routed experts that a budget could be for")
        self.config, self.experts = checkpoint.config, checkpoint.config.experts
        self.blocks = blocks
        if missing := sorted(self.names - blocks.keys()):
            raise InputError(f"{self.where}: {missing[0]} is not quantised, and a budget for experts needs that")
        slots_for(budget, self._sizes(), self.experts.num_experts, self.experts.top_k, self.where)

    @property
    def names(self) -> frozenset[str]:
        """Of the parts."""
        return frozenset(name for layer in self.config.layers for name in _names(layer.index))

    def open(self, compute: Compute, packs: PackedWeights) -> dict[str, BudgetedExperts]:
        """The modules by their place in the model, all over one store."""
        if packs.mapped is None:
            raise InputError(f"{self.where}: a budget for experts needs a packed file, and none was kept")
        layers = [_layer(packs, layer.index) for layer in self.config.layers]
        store = ExpertStore(packs.mapped, layers, self.experts.num_experts, self.experts.top_k, self.budget)
        return {
            f"layers.{layer.index}.routed.experts": self._module(compute, store, index)
            for index, layer in enumerate(self.config.layers)
        }

    def _module(self, compute: Compute, store: ExpertStore, index: int) -> BudgetedExperts:
        first = [self.blocks[name][0] for name in _names(self.config.layers[index].index)]
        types = [matrix.type.value for matrix in first]
        width, hidden = first[0].shape
        return BudgetedExperts(compute, compute.expert_shape(types, width, hidden, store.experts), store, index)

    def _sizes(self) -> list[list[int]]:
        return [[_packed_bytes(self.blocks[name][0]) for name in _names(layer.index)] for layer in self.config.layers]


def _names(index: int) -> tuple[str, str, str]:
    experts = f"layers.{index}.experts"
    return f"{experts}.gate_up_proj.gate", f"{experts}.gate_up_proj.up", f"{experts}.down_proj"


def _layer(packs: PackedWeights, index: int) -> Layer:
    gate, up, down = (packs.place(name) for name in _names(index))
    return gate, up, down


def _packed_bytes(matrix: StoredTensor) -> int:
    rows, cols = matrix.shape
    size: int = kernels.native.packed_bytes(matrix.type.value, rows, cols)  # type: ignore[union-attr]
    return size
