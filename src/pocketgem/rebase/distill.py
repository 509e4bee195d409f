"""Distilling a capsule into an adapter on a new base, from the old adapter's own weights on.

The loss is the mean KL from a target to base + adapter over the answers' rows. Two targets (``Target``):

    COPY     the old pair's distributions as they are
    DELTA    the new base's, changed by what the adapter changed of the old one: log q = log new + log tuned - log old,
             over the capsule's ids and the rest, made to sum to one. What the update taught the base stays.

Source of the first: Hinton et al. 2015; from synthetic prompts, for LoRA: Wang et al. 2024 (Trans-LoRA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from pocketgem.errors import PromptError, RunError
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import DoRALinear, LowRank, attach_, detach_
from pocketgem.model.low_rank import places
from pocketgem.rebase.capsule import Answer, Capsule
from pocketgem.rebase.divergence import HEAD_ROWS, bucketed, divergence, hidden_of, numbers_of, rows_of

SLOWER = 0.25  # of the learning rate, after a look that was not better


class Target(StrEnum):
    """See above."""

    COPY = "copy"
    DELTA = "delta"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One distillation. Raises PromptError for a number out of range.

    every: steps between two looks at the watch's part; after one that is not better the best weights go on in smaller
    steps. patience: such looks in a row before it ends. enough, near: share of the effect that is kept there, and nat
    a token that are left, from which on nothing is gained by going on; both are asked for, since a hundredth of a large
    effect can still turn answers.
    """

    target: Target = Target.COPY
    steps: int = 60
    batch: int = 8
    learning_rate: float = 5e-4
    warmup: int = 3
    clip: float = 1.0
    every: int = 6
    patience: int = 3
    enough: float = 0.99
    near: float = 0.005
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise PromptError(f"{name} is {str(value)[:40]!r}, expected {low} to {high}")

    def rate(self, step: int) -> float:
        """Of step ``step`` (from 0): a short rise, then half a cosine down to a tenth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


_RANGES = (
    ("steps", 1, 10**6), ("batch", 1, 4096), ("learning_rate", 1e-9, 1.0), ("warmup", 0, 10**6), ("clip", 1e-6, 1e6),
    ("every", 1, 10**6), ("patience", 1, 10**6), ("enough", 0.0, 1.0), ("near", 0.0, 1e6),
    ("seed", 0, 2**31),
)  # fmt: skip


@dataclass
class Curve:
    """How it went. losses: of each step's batch. watched: (steps taken, mean KL on the watch's part)."""

    losses: list[float] = field(default_factory=list)
    watched: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0  # the step whose weights were kept


Watch = Callable[[int, int, float], None]  # steps done, steps in all, the KL last watched


def distill(
    model: Gemma, capsule: Capsule, old: Mapping[str, LowRank], settings: Settings, watch: Watch
) -> tuple[dict[str, LowRank], Curve]:
    """New deltas for ``model``, which wears no adapter before and after. Raises RunError when the loss is no number."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    aims = _aims(model, capsule, settings.target)
    deltas = {name: replace(one, A=_trained(one.A, model), B=_trained(one.B, model)) for name, one in old.items()}
    with torch.no_grad():  # lengths of DoRA's rows are taken once
        attach_(model, deltas)
    try:
        work = _Work(model, capsule, deltas, aims, settings)
        return work.run(watch), work.curve
    finally:
        detach_(model)


def _trained(part: Tensor, model: Gemma) -> Tensor:
    return part.detach().to(model.device, torch.float32, copy=True).requires_grad_()


def _aims(model: Gemma, capsule: Capsule, target: Target) -> Tensor:
    """The target's log-probabilities for every row of the capsule, ``[rows, k + 1]``."""
    tops = capsule.tops
    if target is Target.COPY:
        return tops.tuned.log_softmax(-1)  # float16 left sums a little off one
    parts = capsule.part("learn") + capsule.part("watch")
    new = rows_of(model, parts, tops.ids)
    aims = tops.tuned.log_softmax(-1)
    aims[new.numbers] = (new.logs + tops.tuned[new.numbers] - tops.base[new.numbers]).log_softmax(-1)
    return aims


class _Work:
    """The loop: batches in an order that follows from the seed, AdamW, the best weights kept."""

    def __init__(
        self, model: Gemma, capsule: Capsule, deltas: dict[str, LowRank], aims: Tensor, settings: Settings
    ) -> None:
        self.model, self.deltas, self.aims, self.settings = model, deltas, aims, settings
        self.ids = capsule.tops.ids
        self.learned, self.watched = capsule.part("learn"), capsule.part("watch")
        self.parameters = [part for one in deltas.values() for part in (one.A, one.B)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.goal = min(self._alone() * (1 - settings.enough), settings.near)
        self.curve = Curve()
        self.slower = 1.0  # of the learning rate

    def run(self, watch: Watch) -> dict[str, LowRank]:
        best, kept, last = math.inf, self._copy(), 0
        for step in range(self.settings.steps + 1):
            if step % self.settings.every == 0 or step == self.settings.steps:
                now = self._look()
                self.curve.watched.append((step, now))
                watch(step, self.settings.steps, now)
                if now < best:
                    best, kept, last, self.curve.best = now, self._copy(), len(self.curve.watched), step
                else:
                    self._step_back(kept)
                if now <= self.goal or len(self.curve.watched) - last >= self.settings.patience:
                    break
            if step < self.settings.steps:
                self.curve.losses.append(self._take(step))
        return kept

    @torch.no_grad()
    def _step_back(self, best: Mapping[str, LowRank]) -> None:
        """Go on from the best weights in smaller steps: near its goal a usual step leads away from it."""
        self.slower *= SLOWER
        for name, one in self.deltas.items():
            one.A.copy_(best[name].A)
            one.B.copy_(best[name].B)

    @torch.no_grad()
    def _copy(self) -> dict[str, LowRank]:
        """What is trained, as it is now."""
        modules = {name: place.module for place in places(self.model) for name in place.shapes}
        return {
            name: replace(
                one,
                A=one.A.detach().cpu().clone(),
                B=one.B.detach().cpu().clone(),
                magnitude=lengths_of(modules[name], one),
            )
            for name, one in self.deltas.items()
        }

    def _alone(self) -> float:
        """The watch's KL without any adapter."""
        detach_(self.model)
        try:
            return self._look()
        finally:
            with torch.no_grad():
                attach_(self.model, self.deltas)

    def _look(self) -> float:
        rows = rows_of(self.model, self.watched, self.ids)
        return float(divergence(self.aims[rows.numbers], rows.logs).mean())

    def _batch(self, step: int) -> list[Answer]:
        start, count = step * self.settings.batch, len(self.learned)
        return [self.learned[self._order(at // count)[at % count]] for at in range(start, start + self.settings.batch)]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.learned), generator=generator).tolist()
        return order

    def _take(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(step) * self.slower
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self.model, self._batch(step), self.ids, self.aims)
        if not math.isfinite(loss):
            raise RunError(f"step {step}: the loss is {loss}; a smaller learning rate may help")
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        return loss


def lengths_of(module: nn.Module, delta: LowRank) -> Tensor | None:
    """DoRA's factors are not trained, so the lengths they stand for follow the rows, ``[out]``; None for LoRA."""
    if not isinstance(module, DoRALinear):
        return None
    rows = module.weight.float() + delta.whole()
    lengths: Tensor = module.factor.float() * torch.linalg.vector_norm(rows, dim=1)
    return lengths.cpu()


def backward(model: Gemma, batch: Sequence[Answer], ids: Tensor, aims: Tensor) -> float:
    """Add the gradients of the batch's mean KL to the trained parts; returns it.

    The head's rows go there and back a few at a time, and only their gradient stays: a vocabulary's logits are most of
    the memory of a small model's training.
    """
    hidden, numbers = hidden_of(model, batch), numbers_of(batch)
    leaf, total = hidden.detach().requires_grad_(), 0.0
    for start in range(0, len(numbers), HEAD_ROWS):
        where = numbers[start : start + HEAD_ROWS]
        found = bucketed(model.logits(leaf[start : start + HEAD_ROWS]), ids[where].to(leaf.device))
        loss = divergence(aims[where].to(leaf.device), found).sum() / len(numbers)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total
