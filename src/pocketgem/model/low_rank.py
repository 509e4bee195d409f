"""A low-rank change of a matrix, and where in a model such changes can be.

Source: Hu et al. 2021; experts are PEFT's ``target_parameters``; DoRA is Liu et al. 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint import names
from pocketgem.errors import UnsupportedError, WeightsError
from pocketgem.model.experts import Experts
from pocketgem.model.fused import FusedLayer
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Linear
from pocketgem.model.quant import PackedLinear

STACKS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class LowRank:
    """``scale * B @ A`` for a matrix ``[out, in]``; for a stack of experts all have one dimension more, in front.

    A: ``[rank, in]``. B: ``[out, rank]``. magnitude: DoRA's length of each row of the changed matrix, ``[out]``.
    """

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that is changed."""
        return (*self.B.shape[:-1], self.A.shape[-1])

    def whole(self) -> Tensor:
        """The change itself, float32, of ``shape``."""
        return self.scale * (self.B.float() @ self.A.float())

    def of(self, x: Tensor) -> Tensor:
        """What it adds for rows x ``[n, in]``: ``[n, out]``."""
        return F.linear(F.linear(x.to(self.A.dtype), self.A), self.B).to(x.dtype) * self.scale

    def member(self, expert: int) -> LowRank:
        """The change of one matrix of a stack."""
        return LowRank(self.A[expert], self.B[expert], self.scale)


Deltas = Mapping[str, LowRank]  # by the module's name in a Hugging Face checkpoint, without the text prefix


def row_factors(base: nn.Module, delta: LowRank) -> Tensor:
    """DoRA's ``m / |W + BA|``, ``[out]``. Raises UnsupportedError where the base's rows cannot be measured."""
    if not isinstance(base, Linear) or delta.magnitude is None:
        raise UnsupportedError("DoRA needs the base's weights unpacked: load the model with a dtype")
    lengths = torch.linalg.vector_norm(base.weight.float() + delta.whole(), dim=1)
    factors: Tensor = (delta.magnitude.float() / lengths).to(base.weight.dtype)
    return factors


class Changed(nn.Module):
    """A module in the place of another, ``base``, whose products an adapter changes."""

    base: nn.Module


@dataclass(frozen=True)
class Place:
    """A module that holds a matrix or a stack of them: its name in a checkpoint, and where it is in the model."""

    name: str
    path: str
    module: nn.Module

    @property
    def layer(self) -> int | None:
        """The number of the layer it is in."""
        parts = self.path.split(".")
        return int(parts[1]) if parts[0] == "layers" and len(parts) > 2 else None

    @property
    def part(self) -> str:
        """Its name within a fused layer."""
        return self.name.split(".")[-1]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What can be changed of it."""
        module = self.module.base if isinstance(self.module, Changed) else self.module
        if _is_stack(module):
            return {f"{self.name}.{key}": tuple(getattr(module, key).shape) for key in STACKS}
        return {self.name: cast(tuple[int, int], _shape(module))}


def places(model: Gemma) -> Iterator[Place]:
    """Modules that hold a matrix. A fused layer's are its plain parts, whether they are what runs or not."""
    inside: list[str] = []  # of modules that take another's place
    for path, module in list(model.named_modules()):
        if any(path.startswith(one) for one in inside):
            continue
        if isinstance(module, Changed):
            inside.append(f"{path}.")
        if isinstance(module, Changed) or _is_stack(module) or _shape(module) is not None:
            yield Place(names.hf_name(path.replace(".plain.", ".")), path, module)


def targets(model: Gemma) -> dict[str, tuple[int, ...]]:
    """What an adapter may change: module names as a checkpoint has them -> the matrix's shape."""
    return {name: shape for place in places(model) for name, shape in place.shapes.items()}


def check_fits(model: Gemma, deltas: Deltas) -> None:
    """Raise WeightsError unless every change has its place in the model."""
    known = targets(model)
    if strangers := sorted(deltas.keys() - known.keys()):
        hint = "; Gemma 3n's layers over packed weights take none: load with a dtype" if packed(model) else ""
        if any(key.split(".")[-1] in STACKS and ".experts." in key for key in strangers):
            hint = "; experts take none over packed weights or blocks: load with --dtype float32 or bfloat16"
        raise WeightsError(
            f"{len(strangers)} of the adapter's parts have no place in this model, first {strangers[0]}{hint}"
        )
    for name, delta in deltas.items():
        if delta.shape != known[name]:
            raise WeightsError(f"{name}: the adapter changes {list(delta.shape)}, the model has {list(known[name])}")


def packed(model: Gemma) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def fused_layers(model: Gemma) -> dict[int, FusedLayer]:
    """By number."""
    return {index: layer for index, layer in enumerate(model.layers) if isinstance(layer, FusedLayer)}


def _is_stack(module: nn.Module) -> bool:
    """Experts whose stacks are plain: packed ones, and those in blocks, have no such parts."""
    return isinstance(module, Experts) and all(hasattr(module, key) for key in STACKS)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return None if None in sizes else cast(tuple[int, int], sizes)
