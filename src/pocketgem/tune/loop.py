"""The loop: batches in a fixed order, AdamW on the low-rank parts, a state on disk from which a killed run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.errors import RunError
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import LowRank, attach_, detach_
from pocketgem.tune.data import Example
from pocketgem.tune.loss import loss_of
from pocketgem.tune.recipe import Recipe, TrainingPlan


@dataclass(frozen=True)
class Taken:
    """One step that was taken. ``loss``: of its batch, before it."""

    step: int
    loss: float
    rate: float
    tokens: int


class Trainer:
    """Trains one adapter on one model. ``deltas`` are what is trained; ``close`` takes them off the model."""

    def __init__(self, model: Gemma, plan: TrainingPlan, recipe: Recipe, examples: Sequence[Example]) -> None:
        self.model, self.recipe, self.examples = model, recipe, examples
        self.deltas = _new(plan, recipe, model.device)
        self.step = 0
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        attach_(model, self.deltas)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    @property
    def parameters(self) -> list[Tensor]:
        return [part for delta in self.deltas.values() for part in (delta.A, delta.B)]

    def run(self) -> Iterator[Taken]:
        """The steps that are left, each when it was taken. Raises RunError when the loss is no number any more."""
        while self.step < self.recipe.steps:
            yield self._take(self.batch(self.step))

    def batch(self, step: int) -> list[Example]:
        """The examples of a step: every epoch has an order of its own that follows from the seed."""
        start, count = step * self.recipe.batch, len(self.examples)
        return [self.examples[self._order(at // count)[at % count]] for at in range(start, start + self.recipe.batch)]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + epoch) % (1 << 63))
        order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
        return order

    def _take(self, batch: list[Example]) -> Taken:
        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        value = self.gradients(batch)
        if not math.isfinite(value):
            raise RunError(f"step {self.step}: the loss is {value}; a smaller learning rate may help")
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return Taken(self.step, value, rate, sum(len(example.ids) for example in batch))

    def gradients(self, batch: list[Example]) -> float:
        """Add the gradients of the batch's mean loss to the parts, and return that loss."""
        loss = loss_of(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def check_gradients(self) -> None:
        """Raise RunError unless every trained part is reached by the loss of the first batch. Nothing is changed."""
        loss_of(self.model, self.batch(0)).backward()  # type: ignore[no-untyped-call]
        idle = [name for name, delta in self.deltas.items() if delta.B.grad is None or not bool(delta.B.grad.any())]
        self.optimizer.zero_grad(set_to_none=True)
        if idle:
            raise RunError(f"{len(idle)} of {len(self.deltas)} trained matrices get no gradient, first {idle[0]}")

    def close(self) -> None:
        detach_(self.model)


def _new(plan: TrainingPlan, recipe: Recipe, device: torch.device) -> dict[str, LowRank]:
    """A as a fresh linear's weights, B zero: the first step begins at the base. Source: PEFT, which does the same."""
    generator, deltas = torch.Generator().manual_seed(recipe.seed), {}
    for name, (out, inside) in plan.shapes.items():
        bound = 1 / math.sqrt(inside)  # Kaiming's for a = sqrt(5)
        a = (torch.rand(recipe.rank, inside, generator=generator) * 2 - 1) * bound
        b = torch.zeros(out, recipe.rank)
        deltas[name] = LowRank(a.to(device).requires_grad_(), b.to(device).requires_grad_(), recipe.scale)
    return deltas
