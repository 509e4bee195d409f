"""The best of a run by examples that it does not learn from, and when to stop looking for a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pocketgem.errors import InputError
from pocketgem.model.lora import LowRank
from pocketgem.tune.data import Example
from pocketgem.tune.loop import parts_of


@dataclass
class Best:
    """loss: the lowest validation loss; step: where it was; waited: validations since then; parts: what it was with."""

    loss: float = float("inf")
    step: int = 0
    waited: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)

    def see(self, loss: float, step: int, deltas: Mapping[str, LowRank]) -> None:
        if loss < self.loss:
            parts = {name: part.detach().clone() for name, part in parts_of(deltas)}
            self.loss, self.step, self.waited, self.parts = loss, step, 0, parts
        else:
            self.waited += 1

    def of(self, deltas: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
        """The best parts in the shape of ``deltas``; these themselves where none were seen."""
        if not self.parts:
            return deltas
        return {name: self._of(name, delta) for name, delta in deltas.items()}

    def _of(self, name: str, delta: LowRank) -> LowRank:
        lengths = None if delta.magnitude is None else self.parts[f"{name}.magnitude"]
        return replace(delta, A=self.parts[f"{name}.A"], B=self.parts[f"{name}.B"], magnitude=lengths)


def held_back(total: int, share: float, seed: int, most: int | None = None) -> frozenset[int]:
    """Which of ``total`` examples are not learned from: one at the least, ``most`` at most."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    return frozenset(order[: max(1, round(share * total))][:most])


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(to learn from, to validate on), by chance that follows from the seed. Raises InputError for nothing to learn."""
    held = held_back(len(examples), share, seed)
    if len(held) == len(examples):
        raise InputError(f"{len(examples)} examples leave none to learn from when {share:g} of them are for validation")
    return [one for at, one in enumerate(examples) if at not in held], [examples[at] for at in sorted(held)]
