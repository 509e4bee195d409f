"""The loop: batches in a fixed order, AdamW on the low-rank parts, a state on disk from which a killed run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.checkpoint import names
from pocketgem.errors import RunError, WeightsError
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import LowRank
from pocketgem.tune.batches import Batches
from pocketgem.tune.data import Example
from pocketgem.tune.dora import row_squares
from pocketgem.tune.dressed import Dressed
from pocketgem.tune.loss import summed_loss
from pocketgem.tune.recipe import Recipe, TrainingPlan


@dataclass(frozen=True)
class Taken:
    """One step that was taken. ``loss``: of its batch, before it."""

    step: int
    loss: float
    rate: float
    tokens: int
    valid: float | None = None  # of the examples that are not learned from, after it, where they were asked


class Trainer:
    """Trains one adapter on one model. ``deltas`` are what is trained; ``close`` takes them off the model."""

    def __init__(self, model: Gemma, plan: TrainingPlan, recipe: Recipe, examples: Sequence[Example]) -> None:
        self.model, self.recipe, self.examples = model, recipe, examples
        self.deltas = _new(plan, recipe, model)
        self.step = 0
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.batches = Batches(examples, recipe.batch, recipe.tokens, recipe.seed)
        self.dressed = Dressed(model, self.deltas, dropout=recipe.dropout, seed=recipe.seed, forgetful=recipe.forgetful)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    @torch.no_grad()
    def begin_at(self, known: Mapping[str, LowRank]) -> None:
        """Begin with an adapter's values. Raises WeightsError for one of other matrices, ranks or kind."""
        for name in known.keys() | self.deltas.keys():
            old, new = known.get(name), self.deltas.get(name)
            if old is None or new is None or old.A.shape != new.A.shape or old.B.shape != new.B.shape:
                raise WeightsError(f"{name}: the adapter to begin at is another there; give its --modules and --rank")
            if (old.magnitude is None) != (new.magnitude is None):
                raise WeightsError(f"{name}: of the adapter to begin at and the plan one is DoRA; give its kind")
            new.A.copy_(old.A)
            new.B.copy_(old.B * (old.scale / new.scale))
            if old.magnitude is not None and new.magnitude is not None:
                new.magnitude.copy_(old.magnitude)

    @property
    def parameters(self) -> list[Tensor]:
        return [part for _, part in parts_of(self.deltas)]

    def run(self) -> Iterator[Taken]:
        """The steps that are left, each when it was taken. Raises RunError when the loss is no number any more."""
        while self.step < self.recipe.steps:
            yield self._take(self.batch(self.step))

    def batch(self, step: int) -> list[Example]:
        """The examples of a step."""
        return self.batches.of(step)

    def _take(self, batch: list[Example]) -> Taken:
        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value := self.gradients(batch)):
            raise RunError(f"step {self.step}: the loss is {value}; a smaller learning rate may help")
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return Taken(self.step, value, rate, sum(len(example.ids) for example in batch))

    def gradients(self, batch: list[Example]) -> float:
        """Add the gradient of the batch's mean loss to the parts; returns that loss."""
        return self.share_of_gradients(batch, sum(example.learned for example in batch))

    def share_of_gradients(self, share: list[Example], learned: int) -> float:
        """What some examples of a batch with ``learned`` learned ids add to its gradient and loss, a few at a time."""
        self.dressed.seed.step = self.step
        total, size = 0.0, max(1, math.ceil(len(share) / self.recipe.accumulate))
        for start in range(0, len(share), size):
            loss = summed_loss(self.model, share[start : start + size]) / learned
            self.backward(loss)
            total += float(loss.detach())
        return total

    def backward(self, loss: Tensor) -> None:
        """The way back from a loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def check_gradients(self) -> None:
        """Raise RunError unless every trained part is reached by the loss of the first batch. Nothing is changed.

        Of a stack, some expert's must be: a batch seldom asks all of them.
        """
        self.gradients(self.batch(0))
        idle = [name for name, delta in self.deltas.items() if delta.B.grad is None or not bool(delta.B.grad.any())]
        self.optimizer.zero_grad(set_to_none=True)
        if idle:
            raise RunError(f"{len(idle)} of {len(self.deltas)} trained matrices get no gradient, first {idle[0]}")

    def close(self) -> None:
        self.dressed.undress()


def parts_of(deltas: Mapping[str, LowRank]) -> Iterator[tuple[str, Tensor]]:
    """What is trained, by a name for the state."""
    for name, delta in deltas.items():
        yield f"{name}.A", delta.A
        yield f"{name}.B", delta.B
        if delta.magnitude is not None:
            yield f"{name}.magnitude", delta.magnitude


def _new(plan: TrainingPlan, recipe: Recipe, model: Gemma) -> dict[str, LowRank]:
    """A as a fresh linear's weights, B zero: the first step begins at the base. Source: PEFT, which does the same."""
    generator, deltas, device = torch.Generator().manual_seed(recipe.seed), {}, model.device
    for name, (*stacked, out, inside) in plan.shapes.items():
        bound = 1 / math.sqrt(inside)  # Kaiming's for a = sqrt(5)
        a = (torch.rand(*stacked, recipe.rank, inside, generator=generator) * 2 - 1) * bound
        b = torch.zeros(*stacked, out, recipe.rank)
        lengths = _lengths(model, name).to(device).requires_grad_() if recipe.dora and not stacked else None
        deltas[name] = LowRank(a.to(device).requires_grad_(), b.to(device).requires_grad_(), recipe.scale, lengths)
    return deltas


def _lengths(model: Gemma, name: str) -> Tensor:
    """Of the rows of a module that is called ``name`` in a checkpoint."""
    for path, module in model.named_modules():
        if names.hf_name(path) == name:
            return row_squares(module).sqrt()
    raise WeightsError(f"{name}: no such matrix")
