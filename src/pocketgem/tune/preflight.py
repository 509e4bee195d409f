"""What is looked at before the first step: what was prepared is what will be used, and it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketgem.errors import PromptError, RunError
from pocketgem.model.cache import Step
from pocketgem.sizes import gib
from pocketgem.tune.data import ASSISTANT, Example
from pocketgem.tune.loss import loss_of
from pocketgem.tune.memory import available, needed
from pocketgem.tune.run import Run

SHOWN = 96  # ids of the example that is read with a cache
STEPPED = 12  # of them one by one
CLOSE = {torch.float32: 2e-3, torch.float64: 2e-3}
COARSE = 0.08  # nat; 8-bit floats' sums in another order


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is well, and what was found."""

    name: str
    ok: bool
    found: str


def preflight(run: Run, data: Path) -> list[Check]:
    """All checks but that of gradients, which the trainer makes. Raises PromptError where a step would not fit."""
    return [_lengths(run), _template(run, data), _cache(run), _memory(run)]


def _lengths(run: Run) -> Check:
    sizes = sorted(len(one.ids) for one in run.examples)
    learned = sum(one.learned for one in run.examples)
    said = f"{len(sizes)} examples of {sizes[0]} to {sizes[-1]} tokens (half at most {sizes[len(sizes) // 2]})"
    held = f"; {len(run.valid)} to validate on" if run.valid else ""
    return Check("examples", True, f"{said}, {learned} tokens learned, no answer empty{held}")


def _template(run: Run, data: Path) -> Check:
    """The first conversation's prompt, as a server would be sent it. Completions have no template."""
    with data.open(encoding="utf-8") as file:
        entry: Mapping[str, object] = json.loads(next(line for line in file if line.strip()))
    messages = entry.get("messages")
    if not isinstance(messages, list):
        return Check("template", True, "completions: texts as they are")
    last = next(at for at in reversed(range(len(messages))) if messages[at].get("role") in ASSISTANT)
    before = [{name: value for name, value in one.items() if name not in ("raw", "weight")} for one in messages[:last]]
    served = tuple(run.llm.chat_prompt(before, tools=entry.get("tools")))  # type: ignore[arg-type]
    same = any(one.ids[: len(served)] == served for one in (*run.examples, *run.valid))
    return Check("template", same, f"{len(served)} ids of the first conversation are {'' if same else 'not '}serving's")


@torch.no_grad()
def _cache(run: Run) -> Check:
    """One example read as answers are written, with a cache, against the pass that training makes."""
    one = min(run.examples, key=lambda example: len(example.ids))
    ids = one.ids[:SHOWN]
    example = Example(ids, min(one.spans[0][0], len(ids) - 1))
    whole, stepped = float(loss_of(run.llm.model, [example])), _with_cache(run, example)
    close = abs(whole - stepped) < CLOSE.get(run.llm.model.dtype, COARSE) * max(1.0, abs(whole))
    return Check("loss with a cache", close, f"{stepped:.4f} nat, without {whole:.4f}")


def _with_cache(run: Run, example: Example) -> float:
    model, ids = run.llm.model, list(example.ids)
    cache, scores, at = model.new_cache(), [], 0
    for count in (max(1, len(ids) - STEPPED), *[1] * min(STEPPED, len(ids) - 1)):
        step = Step.packed([cache], [count], logits=[count])
        scores.append(model.logits(model(model.embed(torch.tensor(ids[at : at + count])), step)).log_softmax(-1))
        step.commit()
        at += count
    rows = torch.cat(scores)
    places = range(example.answer, len(ids))
    return -sum(float(rows[place - 1, ids[place]]) for place in places) / len(places)


def _memory(run: Run) -> Check:
    model = run.llm.model
    wanted, free = needed(model, run.plan, run.recipe, run.examples), available(model.device)
    if free is not None and wanted > free:
        raise PromptError(f"a step would take about {gib(wanted)} of {gib(free)}; {_knobs(run)}")
    room = "" if free is None else f" of {gib(free)} that are free"
    return Check("memory", True, f"a step takes about {gib(wanted)}{room}, beside the weights")


def _knobs(run: Run) -> str:
    """What would help, the cheapest first."""
    recipe = run.recipe
    knobs = [] if recipe.accumulate >= recipe.batch else ["--accumulate (the same step in parts)"]
    knobs += [] if recipe.forgetful else ["--checkpoint-layers (a third more time)"]
    return f"less with {', '.join([*knobs, 'a smaller --batch', 'a smaller --rank'])}"


def failed(checks: list[Check]) -> None:
    """Raise RunError naming what is not well."""
    if bad := [check for check in checks if not check.ok]:
        raise RunError(f"before the first step: {bad[0].name}: {bad[0].found}")
