"""What a run that was killed needs to go on as if nothing had happened: weights, the optimizer's sums, the step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor

from pocketgem.checkpoint.durable import write_file
from pocketgem.errors import FormatError, InputError
from pocketgem.tune.loop import Trainer, parts_of
from pocketgem.tune.recipe import Recipe
from pocketgem.tune.valid import Best

STATE = "state.safetensors"
BEST = "best/"
SUMS = ("exp_avg", "exp_avg_sq")


def save_state(folder: Path, trainer: Trainer, data: str, best: Best | None = None) -> None:
    """Write the state beside the adapter, whole or not at all. data: a name of the examples' content."""
    best = best or Best()
    notes = {"step": str(trainer.step), "recipe": _recipe(trainer.recipe), "data": data}
    notes["best"] = json.dumps([best.loss, best.step, best.waited] if best.parts else None)
    held = {f"{BEST}{name}": part for name, part in best.parts.items()}
    write_file(folder / STATE, as_safetensors({**_tensors(trainer), **held}, metadata=notes))


def load_state(folder: Path, trainer: Trainer, data: str, best: Best | None = None) -> None:
    """Bring a trainer to where a run stopped. Raises InputError where that was another run, FormatError for damage."""
    path = folder / STATE
    try:
        with safe_open(path, framework="pt") as file:
            notes, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises its own kinds
        raise FormatError(f"{path}: cannot be read ({error})") from None
    if notes.get("recipe") != _recipe(trainer.recipe) or notes.get("data") != data:
        raise InputError(f"{path}: the run that left it had other options or other examples; use another --out")
    wanted = _tensors(trainer)
    seen = json.loads(notes.get("best", "null"))
    if seen:
        wanted |= {f"{BEST}{name}": part for name, part in parts_of(trainer.deltas)}
    if wanted.keys() - tensors.keys() or any(tensors[key].shape != wanted[key].shape for key in wanted if "." in key):
        raise FormatError(f"{path}: holds another adapter's parts")
    _fill(trainer, tensors, int(notes.get("step", "0")))
    if best is not None and seen:
        best.loss, best.step, best.waited = seen
        best.parts = {name: tensors[f"{BEST}{name}"].to(part.device) for name, part in parts_of(trainer.deltas)}


def _recipe(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    found = {}
    for name, values in parts_of(trainer.deltas):
        found[name] = values.detach().contiguous()
        kept = trainer.optimizer.state.get(values, {})
        found |= {f"{name}.{key}": kept.get(key, torch.zeros_like(values)).contiguous() for key in SUMS}
    return found


@torch.no_grad()
def _fill(trainer: Trainer, tensors: Mapping[str, Tensor], step: int) -> None:
    for name, values in parts_of(trainer.deltas):
        values.copy_(tensors[name])
        kept = {key: tensors[f"{name}.{key}"].to(values.device) for key in SUMS}
        trainer.optimizer.state[values] = {"step": torch.tensor(float(step)), **kept} if step else {}
    trainer.step = step
