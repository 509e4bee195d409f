"""The cells of ``benchmarks.rebase``: what is trained, measured and kept, each once."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import rebase_bases as bases
from benchmarks import rebase_tasks as tasks
from pocketgem.adapters.manifest import MANIFEST, manifest_of, to_json
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.quantize import quantize
from pocketgem.checkpoint.types import StoredType
from pocketgem.llm import LLM
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import Deltas, LowRank, attach_, detach_, merge_
from pocketgem.rebase.capsule import FILE, load_capsule, save_capsule
from pocketgem.rebase.distill import Settings, Target
from pocketgem.rebase.divergence import hidden_of
from pocketgem.rebase.judge import Candidate, Judge, Limits, is_same, verdict
from pocketgem.rebase.prompts import Given, more_prompts
from pocketgem.rebase.record import Wishes, record
from pocketgem.rebase.report import write_report
from pocketgem.rebase.run import Clock, rebase
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Trainer
from pocketgem.tune.recipe import Recipe, plan_training

OLD = "gemma-3-270m"
ADAPTERS = ("call", "fields", "date")
UPDATES = ("trained", "requantised", "merged")
FAR = "far"  # beside these: see ``rebase_bases.py``
RECIPE = Recipe(rank=8, alpha=16, steps=32, batch=4, learning_rate=1e-3, seed=1)
LEARNED, HELD = 400, 64  # examples
PROMPTS, SEEDS = 128, 8  # of a capsule; how many of these are given where the base makes the rest
TRAIN_SEED, HELD_SEED, PROMPT_SEED = 1, 2, 3
ANY = Limits(kept=-1e9, match=0.0, same=1e9)  # so that what the gate would refuse is there to be scored
SETTINGS = Settings(steps=36, batch=4)
CAPSULE = Wishes(top=32, samples=1, max_tokens=24)


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
    found += [Cell(f"capsule-{task}", (f"tune-{task}-old",), partial(_capsule, task=task)) for task in ADAPTERS]
    found.append(Cell("capsule-call-made", ("tune-call-old",), partial(_capsule, task="call", made=True)))
    found.append(Cell("base-far", ("base-trained",), _far))
    pairs = [(task, update) for update in (*UPDATES, FAR) for task in ADAPTERS]
    for task, update in pairs:
        needs = (f"base-{update}", *(f"capsule-{one}" for one in ADAPTERS))
        found.append(Cell(f"case-{task}-{update}", needs, partial(_case, task=task, update=update)))
        one = partial(_tune, task=task, update=update)
        found.append(Cell(f"tune-{task}-{update}", (f"base-{update}",), one))
    for task in ("fields", "date"):
        one = partial(_variant, task=task, update="trained", target="delta")
        found.append(Cell(f"delta-{task}-trained", ("base-trained", f"capsule-{task}"), one))
    made = partial(_variant, task="call", update="trained", capsule="capsule-call-made")
    found.append(Cell("made-call-trained", ("base-trained", "capsule-call-made"), made))
    return found


# ---- bases -----------------------------------------------------------------------------------------------------------


def _trained(lab: Lab) -> dict[str, Any]:
    facts = bases.write_trained(OLD, lab.made / "trained")
    return {**facts, "drift": bases.drift_of(OLD, lab.base("trained"))}


def _far(lab: Lab) -> dict[str, Any]:
    facts = bases.write_far(OLD, lab.base("trained"), lab.made / FAR)
    return {**facts, "drift": bases.drift_of(OLD, lab.base(FAR))}


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
    pieces = hidden_of(model, examples).split([one.learned for one in examples])
    return [
        (model.logits(piece), torch.tensor(one.ids[one.answer :])) for piece, one in zip(pieces, examples, strict=True)
    ]


# ---- capsules and cases ----------------------------------------------------------------------------------------------


def _capsule(lab: Lab, task: str, *, made: bool = False) -> dict[str, Any]:
    """Record the old pair, on prompts of the task's without answers, or on prompts that the base makes from a few."""
    llm, folder = lab.load("old"), lab.adapter(f"tune-{task}-old")
    adapter, clock = open_adapter(folder), Clock()
    seen = frozenset(one.prompt for one in tasks.examples(task, TRAIN_SEED, LEARNED))
    texts = [one.prompt for one in tasks.examples(task, PROMPT_SEED, PROMPTS, but=seen | held_prompts(task))]
    given = [Given(text, llm.tokenize) for text in texts[: SEEDS if made else PROMPTS]]
    prompts = [one.ids for one in given]
    if made:
        prompts += more_prompts(llm, given, PROMPTS - SEEDS, 1, _quiet)
    clock.lap("prompts")
    capsule = record(llm, adapter, prompts, CAPSULE, _quiet)
    clock.lap("record")
    where = lab.made / "call-made.safetensors" if made else folder / FILE
    nbytes = save_capsule(where, capsule)
    if not made:
        manifest = manifest_of(llm.model, llm.checkpoint, adapter, llm.tokenizer, capsule=FILE)
        (folder / MANIFEST).write_bytes(to_json(manifest))
    clock.lap("manifest")
    shown = [llm.detokenize(ids) for ids in prompts[-6:]]
    answers = {"answers": len(capsule.answers), "rows": len(capsule.tops.ids), "prompts": len(prompts)}
    return {**answers, "bytes": nbytes, "spent": clock.seconds, "last_prompts": shown}


def held_prompts(task: str) -> frozenset[str]:
    learned = frozenset(one.prompt for one in tasks.examples(task, TRAIN_SEED, LEARNED))
    return frozenset(one.prompt for one in tasks.examples(task, HELD_SEED, HELD, but=learned))


def _case(lab: Lab, task: str, update: str) -> dict[str, Any]:
    """One adapter, one update: everything that could take the old adapter's place, scored and before the gate."""
    facts, llm = _rebased(lab, task, update, SETTINGS, None)
    judge = Judge.of(llm, load_capsule(lab.adapter(f"tune-{task}-old") / FILE))
    examples, old = held(llm, task), open_adapter(lab.adapter(f"tune-{task}-old")).deltas
    wrong = open_adapter(lab.adapter(f"tune-{ADAPTERS[ADAPTERS.index(task) - 1]}-old")).deltas
    facts["candidates"] |= {
        "copy": _copied(llm, old, update, examples),
        "half": _candidate(llm.model, judge, _halved(old), examples),
        "weak": _candidate(
            llm.model, judge, {name: replace(one, B=one.B * 0.3) for name, one in old.items()}, examples
        ),
        "wrong": _candidate(llm.model, judge, wrong, examples),
    }
    return facts


def _variant(lab: Lab, task: str, update: str, target: str = "copy", capsule: str | None = None) -> dict[str, Any]:
    """The same distillation with another target, or from other prompts."""
    where = None if capsule is None else lab.made / "call-made.safetensors"
    return _rebased(lab, task, update, replace(SETTINGS, target=Target(target)), where)[0]


def _rebased(lab: Lab, task: str, update: str, settings: Settings, capsule: Path | None) -> tuple[dict[str, Any], LLM]:
    """Distil whether or not the old weights pass, so that both are known, and score both on held-out examples.

    ``rebase`` is the better one by the gate's marks.
    """
    llm, folder = lab.load(update), lab.adapter(f"tune-{task}-old")
    name = f"{task}-{update}-{settings.target}{'' if capsule is None else '-made'}"
    out = lab.made / "rebased" / name
    shutil.rmtree(out, ignore_errors=True)  # of a run that was killed
    outcome = rebase(llm, folder, out, capsule, ANY, settings, reuse=False, watch=_shown)
    way = outcome.way  # the better one: under limits that nothing fails
    for one in ("bare", "reuse", "distilled"):
        marks = getattr(outcome, one).marks
        setattr(outcome, one, Candidate(marks, verdict(marks, Limits(), outcome.consistency)))
    outcome.same = is_same(outcome.reuse, Limits(), outcome.consistency)
    taken = outcome.reuse if way == "reuse" else outcome.distilled
    assert taken is not None
    outcome.limits, outcome.way = Limits(), way if taken.verdict.accepted else None
    write_report(out, outcome)
    examples = held(llm, task)
    found = {
        "reuse": _scored_as(llm.model, open_adapter(folder).deltas, examples, outcome.reuse),
        "rebase": _scored_as(llm.model, open_adapter(out / "adapter").deltas, examples, taken),
    }
    return {"outcome": outcome.facts(), "candidates": found}, llm


def _candidate(model: Gemma, judge: Judge, deltas: Deltas, examples: Sequence[Example]) -> dict[str, Any]:
    """Scores on the held-out examples, and what the gate sees."""
    marks = judge.measure(deltas)
    return _scored_as(model, deltas, examples, Candidate(marks, judge.verdict(marks, Limits())))


def _scored_as(model: Gemma, deltas: Deltas, examples: Sequence[Example], judged: Candidate) -> dict[str, Any]:
    """The same for what was before the gate already."""
    attach_(model, deltas)
    try:
        score = scored(model, examples)
    finally:
        detach_(model)
    said = judged.verdict
    return {"score": score, "marks": asdict(judged.marks), "accepted": said.accepted, "reasons": said.reasons}


def _halved(deltas: Deltas) -> dict[str, LowRank]:
    """Without the changes of every second layer."""
    return {name: one for name, one in deltas.items() if int(name.split(".")[1]) % 2}


def _copied(llm: LLM, deltas: Deltas, update: str, examples: Sequence[Example]) -> dict[str, Any]:
    """The old change written into the new weights, in the type they are kept in: a plain copy. The model is spent."""
    model = copy.deepcopy(llm.model)
    merge_(model, deltas)
    if update == "requantised":
        for name in deltas:
            weight = model.get_submodule(name).weight
            blocks = quantize(weight.data.reshape(-1, StoredType.Q4_0.block_size), StoredType.Q4_0)
            weight.data.copy_(dequantize(blocks, StoredType.Q4_0).view_as(weight))
    return {"score": scored(model, examples)}


def _quiet(stage: str, done: int, total: int) -> None:
    pass


def _shown(stage: str, done: int, total: int) -> None:
    print(stage, done, total, flush=True)
