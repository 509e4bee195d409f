"""A model in working clothes: modules that train in the places of those that serve, for as long as a training lasts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pocketgem.errors import UnsupportedError
from pocketgem.model import ops
from pocketgem.model.experts import Experts
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Ask, Attention, RMSNorm
from pocketgem.model.lora import Deltas, LoRAExperts, LoRALinear, LowRank, attach_, detach_
from pocketgem.tune.dora import TrainedDoRA
from pocketgem.tune.frozen import Norm, changed


class TrainedLinear(nn.Module):
    """A linear and the change that is trained."""

    def __init__(self, base: nn.Module, delta: LowRank, drop: Drop | None) -> None:
        super().__init__()
        self.base, self.delta, self.drop = base, delta, drop

    def forward(self, x: Tensor) -> Tensor:
        if self.drop is None or not torch.is_grad_enabled():
            return changed(self.base, self.delta, x)
        out: Tensor = self.base(x) + self.delta.of(self.drop(x))
        return out


class Drop:
    """Zeroes a share of what a change sees, the same one when a layer is computed again for the way back."""

    def __init__(self, share: float, place: int, seed: Seed) -> None:
        self.share, self.place, self.seed = share, place, seed

    def __call__(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed.step * 1_000_003 + self.place) * 31 + self.seed.start)
        kept = torch.rand(x.shape, generator=generator).ge_(self.share).div_(1 - self.share)
        return x * kept.to(x.device, x.dtype)


class Seed:
    """What a step's chances follow from."""

    def __init__(self, start: int) -> None:
        self.start, self.step = start % (1 << 31), 0


class FrozenNorm(nn.Module):
    """A norm whose weight is not trained."""

    def __init__(self, base: RMSNorm) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return cast(Tensor, self.base(x))
        out: Tensor = Norm.apply(x, self.base.weight, self.base.eps)  # type: ignore[no-untyped-call]
        return out


class TrainedExperts(Experts):
    """Routed experts whose stacks have changes that are trained. The router's choice is not."""

    def __init__(self, base: Experts, gate_up: LowRank | None, down: LowRank | None) -> None:
        nn.Module.__init__(self)
        self.base, self.deltas = base, (gate_up, down)
        self.parts: tuple[list[LowRank] | None, ...] = ()

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        self.parts = tuple(None if delta is None else _members(delta) for delta in self.deltas)
        return super().forward(x, weights, indices)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on its rows ``[n, hidden]``."""
        gate_up, down = (0.0 if part is None else part[expert] for part in self.parts)
        inner = ops.linear(x, self.base.gate_up_proj[expert]) + (gate_up.of(x) if isinstance(gate_up, LowRank) else 0.0)
        gate, up = inner.chunk(2, dim=-1)
        active = ops.geglu(gate, up)
        out = ops.linear(active, self.base.down_proj[expert])
        return out + down.of(active) if isinstance(down, LowRank) else out


def _members(delta: LowRank) -> list[LowRank]:
    """All at once: a stack indexed expert by expert would have a gradient as large as the stack for each."""
    return [LowRank(a, b, delta.scale) for a, b in zip(delta.A.unbind(), delta.B.unbind(), strict=True)]


class Forgetful(nn.Module):
    """A decoder layer that keeps its input only, and is computed again for the way back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @property
    def self_attn(self) -> Attention:
        return cast(Attention, self.block.self_attn)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return cast(Any, self.block).enter(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, normed: Tensor, vector: Tensor | None, ask: Ask) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, self.block(x, normed, vector, ask))
        return cast(Tensor, checkpoint(self.block, x, normed, vector, ask, use_reentrant=False))


class Dressed:
    """Put ``deltas`` on a model so that they are trained; ``undress`` gives the very modules of before back.

    dropout: share of what a change sees that is zeroed. forgetful: layers keep their inputs only.
    """

    def __init__(
        self, model: Gemma, deltas: Deltas, *, dropout: float = 0.0, seed: int = 0, forgetful: bool = False
    ) -> None:
        self.model, self.seed, self.dropout = model, Seed(seed), dropout
        lengths = {name: delta.magnitude for name, delta in deltas.items()}
        attach_(model, {name: LowRank(delta.A, delta.B, delta.scale) for name, delta in deltas.items()})
        magnitudes = {id(deltas[name].A): length for name, length in lengths.items()}
        self.before: dict[str, nn.Module] = {}
        for place, (path, module) in enumerate(list(model.named_modules())):
            if (other := self._clothes(place, module, magnitudes)) is not None:
                self._put(path, other)
        for index, layer in enumerate(list(model.layers) if forgetful else []):
            self._put(f"layers.{index}", Forgetful(layer))

    def _put(self, path: str, module: nn.Module) -> None:
        self.before[path] = self.model.get_submodule(path)
        self.model.set_submodule(path, module)

    def undress(self) -> None:
        for path, module in reversed(list(self.before.items())):
            self.model.set_submodule(path, module)
        self.before.clear()
        detach_(self.model)

    def _clothes(self, place: int, module: nn.Module, magnitudes: dict[int, Tensor | None]) -> nn.Module | None:
        if isinstance(module, LoRALinear):
            drop = Drop(self.dropout, place, self.seed) if self.dropout else None
            magnitude = magnitudes[id(module.delta.A)]
            if magnitude is None:
                return TrainedLinear(module.base, module.delta, drop)
            if drop is not None:
                raise UnsupportedError("dropout with DoRA is not trained by this version; leave one of them out")
            return TrainedDoRA(module.base, module.delta, magnitude)
        if isinstance(module, LoRAExperts):
            return TrainedExperts(module.base, *module.deltas)
        return FrozenNorm(module) if isinstance(module, RMSNorm) else None
