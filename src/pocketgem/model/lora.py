"""Low-rank changes of a model's matrices, put on and taken off from outside.

    attach_(model, deltas)   the named modules give base(x) + scale * B (A x)
    detach_(model)           the very modules that were there before
    merge_(model, deltas)    the same change written into plain weights, once

Forward does not know of them. A layer of packed weights that runs in one fused call is taken apart for the time that
an adapter is on it: its matrices stay packed, the calls become more. Source: Hu et al. 2021; experts are PEFT's
``target_parameters``; DoRA is Liu et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint import names
from pocketgem.errors import UnsupportedError, WeightsError
from pocketgem.model import ops
from pocketgem.model.experts import Experts
from pocketgem.model.fused import FusedLayer
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Linear
from pocketgem.model.quant import PackedLinear


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


Deltas = Mapping[str, LowRank]  # by the module's name in a Hugging Face checkpoint, without the text prefix


class LoRALinear(nn.Module):
    """A linear of any kind and what an adapter adds to it."""

    def __init__(self, base: nn.Module, delta: LowRank) -> None:
        super().__init__()
        self.base, self.delta = base, delta

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.delta.of(x)
        return out


class DoRALinear(LoRALinear):
    """The changed matrix has rows of learned length: ``m / |W + BA| * (W x + BA x)``. The base's rows must be plain."""

    def __init__(self, base: nn.Module, delta: LowRank) -> None:
        super().__init__(base, delta)
        if not isinstance(base, Linear) or delta.magnitude is None:
            raise UnsupportedError("DoRA needs the base's weights unpacked: load the model with a dtype")
        lengths = torch.linalg.vector_norm(base.weight.float() + delta.whole(), dim=1)
        self.factor = (delta.magnitude.float() / lengths).to(base.weight.dtype)  # [out]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * self.factor
        return out


class LoRAExperts(Experts):
    """Plain routed experts and what an adapter adds to each; a stack that it leaves alone has no delta."""

    def __init__(self, base: Experts, gate_up: LowRank | None, down: LowRank | None) -> None:
        nn.Module.__init__(self)
        self.base, self.deltas = base, (gate_up, down)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on its rows ``[n, hidden]``."""
        gate_up, down = self.deltas
        inner = ops.linear(x, self.base.gate_up_proj[expert]) + _member(gate_up, expert, x)
        gate, up = inner.chunk(2, dim=-1)
        activated = ops.geglu(gate, up)
        return ops.linear(activated, self.base.down_proj[expert]) + _member(down, expert, activated)


def _member(delta: LowRank | None, expert: int, x: Tensor) -> Tensor | float:
    return 0.0 if delta is None else LowRank(delta.A[expert], delta.B[expert], delta.scale).of(x)


# ---- the three verbs -------------------------------------------------------------------------------------------------

_ATTACHED = "_before_adapter"  # on the model: what was replaced, by path


def targets(model: Gemma) -> dict[str, tuple[int, ...]]:
    """What an adapter may change: module names as a checkpoint has them -> the matrix's shape."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in _plain_modules(model):
        if isinstance(module, Experts):
            found |= {f"{names.hf_name(path)}.{key}": tuple(getattr(module, key).shape) for key in STACKS}
        elif (shape := _shape(module)) is not None:
            found[names.hf_name(path)] = shape
    return found


STACKS = ("gate_up_proj", "down_proj")


def attach_(model: Gemma, deltas: Deltas) -> None:
    """Put an adapter on. Raises WeightsError where it does not fit, and then nothing was changed."""
    if getattr(model, _ATTACHED, None) is not None:
        raise WeightsError("an adapter is attached already; detach it first")
    _check(model, deltas)
    before: dict[str, Any] = {"cache_dtype": model.cache_dtype}
    replaced: dict[str, nn.Module] = {}
    _take_apart(model, replaced)
    for path, module in list(_plain_modules(model)):
        if (changed := _changed(names.hf_name(path), module, deltas)) is not None:
            replaced.setdefault(path, module)
            model.set_submodule(path, changed)
    setattr(model, _ATTACHED, {**before, "modules": replaced})


def detach_(model: Gemma) -> None:
    """Take it off: the modules of before are back. Nothing happens where there is none."""
    before = getattr(model, _ATTACHED, None)
    if before is None:
        return
    # what was replaced last goes back first: a fused layer covers the parts that were changed in it
    for path, module in reversed(list(before["modules"].items())):
        model.set_submodule(path, module)
    model.cache_dtype = before["cache_dtype"]
    setattr(model, _ATTACHED, None)


@torch.no_grad()
def merge_(model: Gemma, deltas: Deltas) -> None:
    """Write the change into plain weights, rounded once to their type. Raises WeightsError, also for packed weights."""
    _check(model, deltas)
    for path, module in _plain_modules(model):
        name = names.hf_name(path)
        keys = STACKS if isinstance(module, Experts) else ("weight",)
        for key in keys:
            delta = deltas.get(f"{name}.{key}" if isinstance(module, Experts) else name)
            if delta is not None:
                weight = getattr(module, key, None)
                if weight is None:
                    raise WeightsError(f"{name}: a packed matrix cannot be merged into; load the model with a dtype")
                module.register_parameter(key, _merged(weight, delta))


def _merged(weight: Tensor, delta: LowRank) -> nn.Parameter:
    whole = weight.float() + delta.whole()
    if delta.magnitude is not None:
        whole *= (delta.magnitude.float() / torch.linalg.vector_norm(whole, dim=1))[:, None]
    return nn.Parameter(whole.to(weight.dtype), requires_grad=False)


def _check(model: Gemma, deltas: Deltas) -> None:
    known = targets(model)
    if strangers := sorted(deltas.keys() - known.keys()):
        hint = (
            "; over packed weights experts and Gemma 3n's layers take none: load with a dtype" if _packed(model) else ""
        )
        raise WeightsError(
            f"{len(strangers)} of the adapter's parts have no place in this model, first {strangers[0]}{hint}"
        )
    for name, delta in deltas.items():
        if delta.shape != known[name]:
            raise WeightsError(f"{name}: the adapter changes {list(delta.shape)}, the model has {list(known[name])}")


def _packed(model: Gemma) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _changed(name: str, module: nn.Module, deltas: Deltas) -> nn.Module | None:
    if isinstance(module, Experts):
        gate_up, down = (deltas.get(f"{name}.{key}") for key in STACKS)
        return None if gate_up is None and down is None else LoRAExperts(module, gate_up, down)
    delta = deltas.get(name)
    if delta is None:
        return None
    return LoRALinear(module, delta) if delta.magnitude is None else DoRALinear(module, delta)


def _plain_modules(model: Gemma) -> list[tuple[str, nn.Module]]:
    """Modules that hold a matrix, at their paths in an unfused model."""
    found = []
    for path, module in model.named_modules():
        plain = path.replace(".plain.", ".")
        if ".plain." in path or not _in_fused(model, path):
            found.append((plain, module))
    return [(path, module) for path, module in found if isinstance(module, Experts) or _shape(module) is not None]


def _in_fused(model: Gemma, path: str) -> bool:
    """Whether a path leads through a fused layer, other than to its plain parts."""
    parts = path.split(".")
    return len(parts) > 2 and parts[0] == "layers" and isinstance(model.layers[int(parts[1])], FusedLayer)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return None if None in sizes or isinstance(module, LoRALinear) else cast(tuple[int, int], sizes)


def _take_apart(model: Gemma, replaced: dict[str, nn.Module]) -> None:
    """Fused layers make room for their plain parts, whose caches are of the activations' type."""
    for index, layer in enumerate(model.layers):
        if isinstance(layer, FusedLayer):
            replaced[f"layers.{index}"] = layer
            model.layers[index] = layer.plain
            model.cache_dtype = None
