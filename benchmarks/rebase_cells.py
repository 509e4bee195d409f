"""The cells of ``benchmarks.rebase``: what is trained, measured and kept, each once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import rebase_bases as bases
from benchmarks import rebase_tasks as tasks
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.llm import LLM
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import attach_, detach_
from pocketgem.model.whole import WholeStep
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Trainer
from pocketgem.tune.recipe import Recipe, plan_training

OLD = "gemma-3-270m"
ADAPTERS = ("call", "fields", "date")
UPDATES = ("trained", "requantised", "merged")
RECIPE = Recipe(rank=8, alpha=16, steps=32, batch=8, learning_rate=1e-3, seed=1)
LEARNED, HELD = 400, 64  # examples
TRAIN_SEED, HELD_SEED, PROMPT_SEED = 1, 2, 3


@dataclass(frozen=True)
class Cell:
    name: str
    needs: tuple[str, ...]
    run: Callable[[Lab], dict[str, Any]]


class Lab:
    """The folder where cells and what they made lie."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cells, self.made = folder, folder / "cells", folder / "made"
        self.cells.mkdir(parents=True, exist_ok=True)
        self.made.mkdir(exist_ok=True)

    def done(self, name: str) -> bool:
        return (self.cells / f"{name}.json").exists()

    def facts(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cells / f"{name}.json").read_text())
        return found

    def keep(self, name: str, facts: Mapping[str, Any]) -> None:
        part = self.cells / f"{name}.part"
        part.write_text(json.dumps(facts, indent=1))
        part.rename(self.cells / f"{name}.json")

    def base(self, update: str) -> str:
        """What loads the old base or one of the new ones."""
        if update == "old":
            return OLD
        return str(self.made / ("requantised.gguf" if update == "requantised" else update))

    def adapter(self, name: str) -> Path:
        return self.made / "adapters" / name

    def load(self, update: str) -> LLM:
        return LLM.load(self.base(update), dtype=torch.float32, kept=0)


def cells() -> list[Cell]:
    """All, in an order in which they can be run."""
    found = [Cell(f"tune-{task}-old", (), partial(_tune, task=task, update="old")) for task in (*ADAPTERS, "shout")]
    found += [Cell("base-trained", (), _trained), Cell("base-requantised", (), _requantised)]
    found.append(Cell("base-merged", ("tune-shout-old",), _merged))
    for update in UPDATES:
        for task in ADAPTERS:
            one = partial(_tune, task=task, update=update)
            found.append(Cell(f"tune-{task}-{update}", (f"base-{update}",), one))
    return found


# ---- bases -----------------------------------------------------------------------------------------------------------


def _trained(lab: Lab) -> dict[str, Any]:
    facts = bases.write_trained(OLD, lab.made / "trained")
    return {**facts, "drift": bases.drift_of(OLD, lab.base("trained"))}


def _requantised(lab: Lab) -> dict[str, Any]:
    facts = bases.write_requantised(OLD, lab.made / "requantised.gguf")
    return {**facts, "drift": bases.drift_of(OLD, lab.base("requantised"))}


def _merged(lab: Lab) -> dict[str, Any]:
    facts = bases.write_merged(OLD, lab.made / "merged", lab.adapter("tune-shout-old"))
    return {**facts, "drift": bases.drift_of(OLD, lab.base("merged"))}


# ---- adapters from examples ------------------------------------------------------------------------------------------


def _tune(lab: Lab, task: str, update: str) -> dict[str, Any]:
    """Train on the task's examples, as ``pocketgem tune`` does, and score what came out."""
    llm = lab.load(update)
    plan = plan_training(llm.model, RECIPE)
    trainer = Trainer(llm.model, plan, RECIPE, encoded(llm, tasks.examples(task, TRAIN_SEED, LEARNED)))
    losses = []
    for taken in trainer.run():
        losses.append(taken.loss)
        if taken.step % 8 == 0:
            print(f"{task} on {update}: step {taken.step}, loss {taken.loss:.3f}", flush=True)
    score = scored(llm.model, held(llm, task))
    trainer.close()
    bare = scored(llm.model, held(llm, task))
    label = Label(lab.base(update), RECIPE.rank, RECIPE.alpha)
    lab.adapter("").mkdir(exist_ok=True)
    save_adapter(lab.adapter(f"tune-{task}-{update}"), trainer.deltas, label)
    return {"losses": losses, "score": score, "bare": bare}


def encoded(llm: LLM, made: Sequence[tasks.Made]) -> list[Example]:
    """Examples as ``tune/data.py`` makes them from prompt and completion."""
    end, found = llm.tokenizer.eos_id, []
    assert end is not None
    for one in made:
        prompt, answer = llm.tokenize(one.prompt), llm.tokenize(one.answer, add_bos=False)
        found.append(Example((*prompt, *answer, end), len(prompt)))
    return found


def held(llm: LLM, task: str) -> list[Example]:
    """Examples that nothing learns from: none of their prompts is among those that are."""
    learned = frozenset(one.prompt for one in tasks.examples(task, TRAIN_SEED, LEARNED))
    return encoded(llm, tasks.examples(task, HELD_SEED, HELD, but=learned))


# ---- scores ----------------------------------------------------------------------------------------------------------


def scored(model: Gemma, examples: Sequence[Example], batch: int = 16) -> dict[str, float]:
    """Of the right answers: natural-log loss a token, and the share that greedy decoding would give exactly.

    Greedy decoding gives an answer exactly when every id of it is the most probable one after those before it, so one
    pass over each answer tells.
    """
    loss, count, exact = 0.0, 0, 0
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            for scores, wanted in _answers(model, examples[start : start + batch]):
                loss += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
                count += len(wanted)
                exact += bool((scores.argmax(-1) == wanted).all())
    return {"nll": loss / count, "exact": exact / len(examples)}


def _answers(model: Gemma, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
    """Logits ``[ids, vocab]`` of each answer's rows, and its ids."""
    ids = torch.tensor([id for one in examples for id in one.ids])
    hidden = model(model.embed(ids), WholeStep.of([len(one.ids) for one in examples], model.device))
    found, start = [], 0
    for one in examples:
        rows = hidden[start + one.answer - 1 : start + len(one.ids) - 1]
        found.append((model.logits(rows), torch.tensor(one.ids[one.answer :])))
        start += len(one.ids)
    return found


def scored_with(model: Gemma, folder: Path, examples: Sequence[Example]) -> dict[str, float]:
    """The same with an adapter put on for it."""
    attach_(model, open_adapter(folder).deltas)
    try:
        return scored(model, examples)
    finally:
        detach_(model)
