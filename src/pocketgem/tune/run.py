"""One training run from files to a folder: examples in, an adapter out, with its curve and what made it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pocketgem.adapters.save import Label, save_adapter
from pocketgem.checkpoint.durable import write_file
from pocketgem.errors import InputError
from pocketgem.llm import LLM
from pocketgem.tune.data import Example, Reader
from pocketgem.tune.loop import Taken, Trainer
from pocketgem.tune.recipe import Recipe, TrainingPlan, plan_training
from pocketgem.tune.state import STATE, load_state, save_state

TURN_ENDS = ("<turn|>", "<end_of_turn>")  # what ends an answer to messages
CURVE, RUN = "curve.csv", "run.json"
Watch = Callable[[Taken, "Progressed"], None]


@dataclass
class Progressed:
    """How a run goes. ``losses`` of the steps taken in this process; ``seconds`` they took."""

    steps: int
    started: int  # the step it went on from
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

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

    def train(self, watch: Watch) -> Progressed:
        """Train to the end, from where a run in the same folder stopped. Raises RunError, InputError."""
        trainer = self.trainer()
        try:
            data = fingerprint(self.examples)
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / STATE).exists():
                load_state(self.folder, trainer, data)
            else:
                trainer.check_gradients()
            return self._steps(trainer, data, watch)
        finally:
            trainer.close()

    def _steps(self, trainer: Trainer, data: str, watch: Watch) -> Progressed:
        going, curve = Progressed(self.recipe.steps, trainer.step), _curve_before(self.folder, trainer.step)
        began = time.perf_counter()
        for taken in trainer.run():
            going.losses.append(taken.loss)
            going.seconds, going.tokens = time.perf_counter() - began, going.tokens + taken.tokens
            curve.append(f"{taken.step},{taken.loss:.6f},{taken.rate:.3e},{taken.tokens}")
            watch(taken, going)
            if taken.step % self.save_every == 0 or taken.step == self.recipe.steps:
                self.keep(trainer, curve, data)
        self.finish(trainer, going, data)
        return going

    def trainer(self) -> Trainer:
        """What takes the steps."""
        return Trainer(self.llm.model, self.plan, self.recipe, self.examples)

    def keep(self, trainer: Trainer, curve: Sequence[str], data: str) -> None:
        """Leave on the disk what a stopped run goes on from."""
        write_file(self.folder / CURVE, "\n".join(["step,loss,rate,tokens", *curve, ""]).encode())
        save_state(self.folder, trainer, data)

    def finish(self, trainer: Trainer, going: Progressed, data: str) -> None:
        """Leave the adapter."""
        checkpoint = self.llm.checkpoint
        prefix = "model." if checkpoint.config.vision is None else "model.language_model."
        base = checkpoint.location.files[0].name if checkpoint.location.files else str(checkpoint.location.folder)
        label = Label(base, self.recipe.rank, self.recipe.alpha, self.recipe.stabilised, prefix)
        record = {
            "command": self.command, "recipe": asdict(self.recipe), "examples": len(self.examples), "data": data,
            "parameters": self.plan.parameters, "trained": dict(self.plan.kinds), "left": dict(self.plan.left),
            "seconds": round(going.seconds, 1), "tokens": going.tokens, "loss": going.losses[-1:],
        }  # fmt: skip
        save_adapter(self.folder / "adapter", trainer.deltas, label, {RUN: json.dumps(record, indent=2).encode()})


def prepare(llm: LLM, data: Path, folder: Path, recipe: Recipe, command: str = "") -> Run:
    """Read the examples with the model's tokenizer and template. Raises FormatError, InputError."""
    tokenizer = llm.tokenizer
    turn = next((id for name in TURN_ENDS if (id := tokenizer.token_id(name)) is not None), None)
    end = turn if llm.can_chat and turn is not None else tokenizer.eos_id
    if end is None:
        raise InputError(f"{llm.checkpoint.where}: the vocabulary has no id that ends an answer")
    reader = Reader(tokenizer, llm.chat_prompt, end, recipe.max_length)
    return Run(llm, recipe, reader.read(data), folder, plan_training(llm.model, recipe), command)


def fingerprint(examples: Sequence[Example]) -> str:
    """64 hex digits of the examples as the model sees them."""
    return hashlib.sha256(repr([(one.ids, one.answer) for one in examples]).encode()).hexdigest()


def _curve_before(folder: Path, step: int) -> list[str]:
    """Lines of the steps that a resumed run does not take again."""
    path = folder / CURVE
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if step and path.is_file() else []
    return [line for line in lines if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step]
