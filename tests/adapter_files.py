"""Adapters made up for tests: random changes of a twin, saved, and the twin's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pocketgem.adapters.adapter import Adapter, identity_of
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.save import label_of, save_adapter
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import LowRank, targets

Choose = Callable[[str], bool]


def in_layers(name: str) -> bool:
    return name.startswith("layers.")


def made_up(
    model: Gemma, *, rank: int = 3, scale: float = 0.5, choose: Choose = in_layers, dora: bool = False, seed: int = 3
) -> Adapter:
    """A change of every matrix that is chosen, stacks of experts included unless lengths are wanted."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, shape in targets(model).items():
        if choose(name) and not (dora and len(shape) > 2):
            a = torch.randn(*shape[:-2], rank, shape[-1], generator=generator) * shape[-1] ** -0.5
            b = torch.randn(*shape[:-1], rank, generator=generator) * 0.3
            lengths = torch.rand(shape[0], generator=generator) + 0.5 if dora else None
            deltas[name] = LowRank(a, b, scale, lengths)
    return Adapter("made up", identity_of(deltas), deltas, "twin", "dora" if dora else "lora")


def saved(adapter: Adapter, folder: Path) -> Adapter:
    """Through PEFT's format and back."""
    save_adapter(folder, adapter.deltas, label_of(adapter))
    return open_adapter(folder, experts_in(adapter))


def experts_in(adapter: Adapter) -> int | None:
    return next((delta.A.shape[0] for delta in adapter.deltas.values() if delta.A.ndim == 3), None)


def same(one: Adapter, other: Adapter) -> bool:
    """To the bit: names, A, B, lengths, scales."""
    return one.identity == other.identity and one.deltas.keys() == other.deltas.keys()
