"""Low-rank changes of a model's matrices, put on and taken off from outside, one adapter for all rows.

    attach_(model, deltas)   the named modules give base(x) + scale * B (A x)
    detach_(model)           the very modules that were there before
    merge_(model, deltas)    the same change written into plain weights, once

Forward does not know of them. Several adapters side by side are ``model/mix.py``'s, which also carries the one that is
attached over packed weights, inside the fused calls; this file's modules are those that gradients flow through.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pocketgem.errors import WeightsError
from pocketgem.model import ops
from pocketgem.model.experts import Experts
from pocketgem.model.gemma import Gemma
from pocketgem.model.low_rank import (
    STACKS,
    Changed,
    Deltas,
    LowRank,
    check_fits,
    packed,
    places,
    row_factors,
    targets,
)
from pocketgem.model.mix import Mix, mix_of

__all__ = ["STACKS", "Deltas", "DoRALinear", "LoRAExperts", "LoRALinear", "LowRank", "attach_", "detach_", "merge_",
           "targets"]  # fmt: skip


class LoRALinear(Changed):
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
        self.factor = row_factors(base, delta)  # [out]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * self.factor
        return out


class LoRAExperts(Changed, Experts):
    """Plain routed experts and what an adapter adds to each; a stack that it leaves alone has no delta."""

    def __init__(self, base: Experts, gate_up: LowRank | None, down: LowRank | None) -> None:
        nn.Module.__init__(self)
        self.base: Experts = base
        self.deltas = (gate_up, down)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on its rows ``[n, hidden]``."""
        gate_up, down = self.deltas
        inner = ops.linear(x, self.base.gate_up_proj[expert]) + _member(gate_up, expert, x)
        gate, up = inner.chunk(2, dim=-1)
        activated = ops.geglu(gate, up)
        return ops.linear(activated, self.base.down_proj[expert]) + _member(down, expert, activated)


def _member(delta: LowRank | None, expert: int, x: Tensor) -> Tensor | float:
    return 0.0 if delta is None else delta.member(expert).of(x)


# ---- the three verbs -------------------------------------------------------------------------------------------------

_ATTACHED = "_before_adapter"  # on the model: what was replaced, by path, or the adapter's number in the mix


def attach_(model: Gemma, deltas: Deltas) -> None:
    """Put an adapter on. Raises WeightsError where it does not fit, and then nothing was changed."""
    if getattr(model, _ATTACHED, None) is not None or mix_of(model) is not None:
        raise WeightsError("an adapter is attached already; detach it first")
    if packed(model):
        mix = Mix(model)
        number = mix.put(deltas)
        mix.usual = number
        setattr(model, _ATTACHED, number)
        return
    check_fits(model, deltas)
    replaced: dict[str, nn.Module] = {}
    for place in list(places(model)):
        if (changed := _changed(place.name, place.module, deltas)) is not None:
            replaced[place.path] = place.module
            model.set_submodule(place.path, changed)
    setattr(model, _ATTACHED, replaced)


def detach_(model: Gemma) -> None:
    """Take it off: the modules of before are back. Nothing happens where there is none."""
    before = getattr(model, _ATTACHED, None)
    if before is None:
        return
    setattr(model, _ATTACHED, None)
    mix = mix_of(model)
    if mix is not None:
        mix.drop(before)
        mix.close()
        return
    for path, module in before.items():
        model.set_submodule(path, module)


@torch.no_grad()
def merge_(model: Gemma, deltas: Deltas) -> None:
    """Write the change into plain weights, rounded once to their type. Raises WeightsError, also for packed weights."""
    check_fits(model, deltas)
    for place in places(model):
        for name in place.shapes:
            if (delta := deltas.get(name)) is None:
                continue
            key = name.removeprefix(f"{place.name}.") if isinstance(place.module, Experts) else "weight"
            weight = getattr(place.module, key, None)
            if weight is None:
                raise WeightsError(f"{name}: a packed matrix cannot be merged into; load the model with a dtype")
            place.module.register_parameter(key, _merged(weight, delta))


def _merged(weight: Tensor, delta: LowRank) -> nn.Parameter:
    whole = weight.float() + delta.whole()
    if delta.magnitude is not None:
        whole *= (delta.magnitude.float() / torch.linalg.vector_norm(whole, dim=1))[:, None]
    return nn.Parameter(whole.to(weight.dtype), requires_grad=False)


def _changed(name: str, module: nn.Module, deltas: Deltas) -> nn.Module | None:
    if isinstance(module, Experts):
        gate_up, down = (deltas.get(f"{name}.{key}") for key in STACKS)
        return None if gate_up is None and down is None else LoRAExperts(module, gate_up, down)
    delta = deltas.get(name)
    if delta is None:
        return None
    return LoRALinear(module, delta) if delta.magnitude is None else DoRALinear(module, delta)
