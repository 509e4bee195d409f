"""One of several workers, as a process of its own: it trains on twins and writes what it saw. Imports no oracle."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.model.build import build_model
from pocketgem.model.gemma import Gemma
from pocketgem.tune.data import Example
from pocketgem.tune.recipe import Recipe, plan_training
from pocketgem.tune.spread import SpreadTrainer, shard_
from pocketgem.tune.team import Meeting, Team, joined

RECIPE = Recipe(rank=4, alpha=8, steps=10, batch=5, learning_rate=5e-3, clip=0.5)


def load(folder: Path) -> Gemma:
    return build_model(open_checkpoint(resolve(folder)), torch.float32)


def work(rank: int, size: int, folders: dict[str, Path], examples: list[Example], out: Path) -> None:
    """Of every twin, whole and in shards: the loss curve, what was trained, how much of the layers lies here."""
    torch.set_num_threads(1)
    said = {}
    with joined(Meeting(out / "meeting", rank, size)) as team:
        assert team is not None
        for name, folder in folders.items():
            for shard in (False, True):
                said[f"{name} {shard}"] = trained(team, load(folder), examples, shard)
    (out / f"{rank}.json").write_text(json.dumps(said))


def trained(team: Team, model: Gemma, examples: list[Example], shard: bool) -> dict[str, object]:
    if shard:
        shard_(model)
    trainer = SpreadTrainer(team, model, plan_training(model, RECIPE), RECIPE, examples)
    trainer.check_gradients()
    losses = [taken.loss for taken in trainer.run()]
    here = sum(getattr(one, "_local_tensor", one).numel() for one in model.layers.parameters())
    return {"losses": losses, "here": here, "parts": [float(part.double().sum()) for part in trainer.parameters]}
