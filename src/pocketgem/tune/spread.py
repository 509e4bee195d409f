"""One run by several workers: each takes its share of every batch, and their gradients are added up.

A gradient is weighted by the learned tokens of its share, not by the number of workers, so the sum is the gradient of
the whole batch, and the loss curve is that of one process. Weights and the optimizer's sums are the same in every
worker: worker 0 writes the run's folder, and any number of workers goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pocketgem.errors import InputError, RunError
from pocketgem.model.experts import Experts
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import Linear
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Taken, Trainer
from pocketgem.tune.recipe import Recipe, TrainingPlan
from pocketgem.tune.run import Progressed, Run, fingerprint
from pocketgem.tune.team import Team
from pocketgem.tune.valid import Best


class SpreadTrainer(Trainer):
    """One worker's. ``batch`` is everybody's; ``gradients`` computes a share of it and returns the whole's loss."""

    def __init__(
        self, team: Team, model: Gemma, plan: TrainingPlan, recipe: Recipe, examples: Sequence[Example]
    ) -> None:
        super().__init__(model, plan, recipe, examples)
        self.team = team

    def run(self) -> Iterator[Taken]:
        """See ``Trainer.run``. Raises InputError where the workers would not do the same."""
        self._agree()
        yield from super().run()

    def gradients(self, batch: list[Example]) -> float:
        """See ``Trainer.gradients``: of the whole batch, the same in every worker."""
        share = batch[self.team.rank :: self.team.size]
        with self.team.precision():
            loss = self.share_of_gradients(share, sum(example.learned for example in batch))
        return self._add_up(loss)

    def backward(self, loss: Tensor) -> None:
        """See ``Trainer.backward``: as the team's launcher wants it."""
        self.team.backward(loss)

    @torch.no_grad()
    def _add_up(self, loss: float) -> float:
        """All gradients and the loss in one message: they are small, and one wait is shorter than hundreds."""
        parts = self.parameters
        grads = [part.new_zeros(part.shape) if part.grad is None else part.grad for part in parts]
        last = torch.tensor([loss], device=self.model.device)
        flat = self.team.sum(torch.cat([*(grad.float().reshape(-1) for grad in grads), last]))
        for part, values in zip(parts, torch.split(flat[:-1], [part.numel() for part in parts]), strict=True):
            part.grad = values.view_as(part).to(part.dtype)
        return float(flat[-1])

    def _agree(self) -> None:
        mine = torch.tensor([self.step, int(fingerprint(self.examples)[:12], 16)], dtype=torch.float64)  # 48 bits
        table = mine.new_zeros(self.team.size, len(mine))
        table[self.team.rank] = mine
        everyone = self.team.sum(table.to(self.model.device)).tolist()
        if len({data for _, data in everyone}) > 1:
            raise InputError("the workers have read different examples; give all of them the same file")
        if len({step for step, _ in everyone}) > 1:
            raise InputError("some workers found a state to go on from, others none; --out must be a shared folder")


@dataclass(frozen=True, kw_only=True)
class SpreadRun(Run):
    """A run as one of several workers."""

    team: Team

    def trainer(self) -> Trainer:
        """See ``Run.trainer``."""
        return SpreadTrainer(self.team, self.llm.model, self.plan, self.recipe, self.examples)

    def keep(self, trainer: Trainer, curve: Sequence[str], best: Best) -> None:
        """See ``Run.keep``: by worker 0."""
        if self.team.rank == 0:
            super().keep(trainer, curve, best)

    def finish(self, trainer: Trainer, going: Progressed, load: Mapping[str, Tensor]) -> None:
        """See ``Run.finish``: by worker 0."""
        if self.team.rank == 0:
            super().finish(trainer, going, load)

    def describe(self) -> None:
        """See ``Run.describe``: by worker 0, if it has the whole base; else `adapters add --model` does it."""
        if self.team.rank == 0 and not isinstance(self.llm.model, FSDPModule):
            super().describe()


def spread(run: Run, team: Team, *, shard: bool = False) -> SpreadRun:
    """The run as this worker's part of it. shard: each worker keeps a part of the base (``shard_``).

    Raises InputError where a batch has fewer examples than there are workers.
    """
    if run.recipe.batch < team.size:
        raise InputError(f"{team.size} workers cannot share a batch of {run.recipe.batch}; give --batch {team.size}")
    if shard or team.wants_shards:
        shard_(run.llm.model)
    return SpreadRun(**{field.name: getattr(run, field.name) for field in fields(run)}, team=team)


def shard_(model: Gemma) -> None:
    """Cut the matrices of every layer among the workers (FSDP2); a layer's are brought together while it runs.

    Norms, the head and the adapter stay whole: the first are small, the second is read in many pieces, and the third
    must be the same everywhere. Raises InputError for weights that are no plain matrices, RunError for a second call.
    """
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise RunError("the base is cut into shards already")
    for layer in model.layers:
        parts = [module for module in layer.modules() if isinstance(module, Linear | Experts)]
        plain: list[nn.Module] = [
            module for module in parts if next(module.parameters(recurse=False), None) is not None
        ]
        if not plain:
            raise InputError("only plain weights can be cut into shards; give --dtype bfloat16 or float32")
        fully_shard(plain, reshard_after_forward=True)
    whole = {one for one in model.parameters() if not isinstance(one, DTensor)}
    fully_shard(model, ignored_params=whole)  # it has nothing of its own, but groups of modules need a root
