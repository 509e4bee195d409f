"""One training run from files to a folder: examples in, an adapter out, with its curve and what made it."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import cast

from torch import Tensor

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.adapters.dialect import Dialect
from pocketgem.adapters.manifest import manifest_of, write_manifest
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.checkpoint.durable import write_file
from pocketgem.checkpoint.export_vocab import TURN_ENDS
from pocketgem.errors import InputError
from pocketgem.llm import LLM
from pocketgem.tune.batches import Batches
from pocketgem.tune.data import Example, Reader
from pocketgem.tune.load import expert_load, shift
from pocketgem.tune.loop import Taken, Trainer
from pocketgem.tune.loss import loss_over
from pocketgem.tune.recipe import Recipe, TrainingPlan, plan_training
from pocketgem.tune.state import STATE, load_state, save_state
from pocketgem.tune.valid import Best, split

CURVE, RUN = "curve.csv", "run.json"
HEAD = "step,loss,rate,tokens,valid"
Watch = Callable[[Taken, "Progressed"], object]  # True: this step was the last


@dataclass
class Progressed:
    """How a run goes. ``losses`` of the steps taken in this process; ``seconds`` they took."""

    steps: int
    started: int  # the step it went on from
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    best: Best = field(default_factory=Best)  # by validation, where there is one
    stopped: str = ""  # why it ended before its last step

    @property
    def left_seconds(self) -> float | None:
        """Until the last step, None before the first one."""
        done = len(self.losses)
        return None if not done else (self.steps - self.started - done) * self.seconds / done


@dataclass(frozen=True)
class Run:
    """A run that is set up. ``command``: what the person typed, for the record."""

    llm: LLM
    recipe: Recipe
    examples: Sequence[Example]
    folder: Path
    plan: TrainingPlan
    command: str = ""
    save_every: int = 50
    valid: Sequence[Example] = ()
    dialect: Dialect = field(default_factory=Dialect)  # with which the model was loaded; it goes with the adapter
    start: Adapter | None = None  # whose values the first step begins with; None: with the base

    def train(self, watch: Watch) -> Progressed:
        """Train to the end, from where a run in the same folder stopped; ``watch`` sees every step, and may return True
        to end the run there with what it has. Raises RunError, InputError, and what ``watch`` raises."""
        load = expert_load(self.llm.model, self._first())  # before anything is attached
        trainer = self.trainer()
        going = Progressed(self.recipe.steps, 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / STATE).exists():
                load_state(self.folder, trainer, self._data, going.best)
            else:
                if self.start is not None:
                    trainer.begin_at(self.start.deltas)
                trainer.check_gradients()
            going.started = trainer.step
            self._steps(trainer, going, watch)
            self.finish(trainer, going, load)
        finally:
            trainer.close()
        self.describe()
        return going

    @cached_property
    def _data(self) -> str:
        found = fingerprint([*self.examples, *self.valid])
        return found if self.start is None else f"{found} {self.start.identity}"

    def _first(self) -> list[Example]:
        return Batches(self.examples, self.recipe.batch, self.recipe.tokens, self.recipe.seed).of(0)

    def _steps(self, trainer: Trainer, going: Progressed, watch: Watch) -> None:
        curve, began = _curve_before(self.folder, trainer.step), time.perf_counter()
        if self._is_over(going.best):
            return  # it was stopped early, and killed before the adapter was written
        for taken in trainer.run():
            if self.valid and (taken.step % self.valid_every == 0 or taken.step == self.recipe.steps):
                taken = replace(taken, valid=loss_over(self.llm.model, self.valid, self.recipe.batch))
                going.best.see(cast(float, taken.valid), taken.step, trainer.deltas)
            going.losses.append(taken.loss)
            going.seconds, going.tokens = time.perf_counter() - began, going.tokens + taken.tokens
            curve.append(_line(taken))
            if watch(taken, going) is True:
                going.stopped = "stopped by who watched"
            elif self._is_over(going.best):
                going.stopped = f"no better validation since step {going.best.step}"
            last = bool(going.stopped) or taken.step == self.recipe.steps
            if last or taken.step % self.save_every == 0:
                self.keep(trainer, curve, going.best)
            if last:
                return

    @property
    def valid_every(self) -> int:
        """Steps between validations."""
        return self.recipe.valid_every or max(1, self.recipe.steps // 10)

    def _is_over(self, best: Best) -> bool:
        return self.recipe.patience is not None and best.waited >= self.recipe.patience

    def trainer(self) -> Trainer:
        """What takes the steps."""
        return Trainer(self.llm.model, self.plan, self.recipe, self.examples)

    def keep(self, trainer: Trainer, curve: Sequence[str], best: Best) -> None:
        """Leave on the disk what a stopped run goes on from."""
        write_file(self.folder / CURVE, "\n".join([HEAD, *curve, ""]).encode())
        save_state(self.folder, trainer, self._data, best)

    def finish(self, trainer: Trainer, going: Progressed, load: Mapping[str, Tensor]) -> None:
        """Leave the adapter. load: the experts' before anything was learned."""
        checkpoint = self.llm.checkpoint
        prefix = "model." if checkpoint.config.vision is None else "model.language_model."
        base = checkpoint.location.files[0].name if checkpoint.location.files else str(checkpoint.location.folder)
        label = Label(base, self.recipe.rank, self.recipe.alpha, self.recipe.stabilised, prefix)
        record = json.dumps(self._record(trainer, going, load), indent=2).encode()
        save_adapter(self.adapter, going.best.of(trainer.deltas), label, {RUN: record, **self.dialect.files()})
        write_file(self.folder / RUN, record)

    def describe(self) -> None:
        """Put a manifest beside the adapter while its base is at hand. Raises WeightsError where it does nothing."""
        experts = self.llm.checkpoint.config.experts
        adapter = open_adapter(self.adapter, None if experts is None else experts.num_experts)
        base = Base(*self.llm.plain)
        write_manifest(self.adapter, manifest_of(self.llm.model, base, adapter))

    @property
    def adapter(self) -> Path:
        """Where the adapter will be."""
        return self.folder / "adapter"

    def _record(self, trainer: Trainer, going: Progressed, load: Mapping[str, Tensor]) -> dict[str, object]:
        best = going.best
        record: dict[str, object] = {
            "command": self.command, "recipe": asdict(self.recipe), "versions": versions(),
            "examples": len(self.examples), "data": self._data, "parameters": self.plan.parameters,
            "trained": dict(self.plan.kinds), "left": dict(self.plan.left), "steps": trainer.step,
            "seconds": round(going.seconds, 1), "tokens": going.tokens, "loss": going.losses[-1:],
        }  # fmt: skip
        if self.start is not None:
            record["began_at"] = self.start.identity
        if self.valid:
            record["validation"] = {"examples": len(self.valid), "best": best.loss, "at_step": best.step}
        if going.stopped:
            record["stopped"] = going.stopped
        if load:
            record["router_shift"] = shift(load, expert_load(self.llm.model, self._first()))
        return record


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    found = {name: version(name) for name in ("pocketgem", "torch", "safetensors")}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def _line(taken: Taken) -> str:
    """Of the curve."""
    valid = "" if taken.valid is None else f"{taken.valid:.6f}"
    return f"{taken.step},{taken.loss:.6f},{taken.rate:.3e},{taken.tokens},{valid}"


def prepare(
    llm: LLM, data: Path, folder: Path, recipe: Recipe, command: str = "", *, valid: Path | float | None = None
) -> Run:
    """Read the examples with the model's tokenizer and template. Raises FormatError, InputError.

    valid: a file of examples, or the share of ``data`` that is kept from learning.
    """
    tokenizer = llm.tokenizer
    turn = next((id for name in TURN_ENDS if (id := tokenizer.token_id(name)) is not None), None)
    end = turn if llm.can_chat and turn is not None else tokenizer.eos_id
    if end is None:
        raise InputError(f"{llm.checkpoint.where}: the vocabulary has no id that ends an answer")
    reader = Reader(tokenizer, llm.chat_prompt, end, recipe.max_length, recipe.learn)
    examples, held = reader.read(data), list[Example]()
    if isinstance(valid, Path):
        held = reader.read(valid)
    elif valid is not None:
        examples, held = split(examples, valid, recipe.seed)
    if recipe.patience is not None and not held:
        raise InputError("patience needs examples to validate on; give --valid a file, or a share such as 0.1")
    return Run(llm, recipe, examples, folder, plan_training(llm.model, recipe), command, valid=held)


def fingerprint(examples: Sequence[Example]) -> str:
    """64 hex digits of the examples as the model sees them."""
    return hashlib.sha256(repr([(one.ids, one.spans) for one in examples]).encode()).hexdigest()


def _curve_before(folder: Path, step: int) -> list[str]:
    """Lines of the steps that a resumed run does not take again."""
    path = folder / CURVE
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if step and path.is_file() else []
    return [line for line in lines if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step]
