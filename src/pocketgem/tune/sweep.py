"""A sweep: runs whose recipes an optimiser proposes, each in a folder of its own, those that lag behind stopped early.

The optimiser is Optuna, its memory a journal in the sweep's folder: a sweep that was killed goes on with the run it was
in, from that run's state. The score is the loss over examples that no run learns from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pocketgem.checkpoint.lock import lock
from pocketgem.errors import InputError, PocketgemError, RunError, WeightsError
from pocketgem.llm import LLM
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Taken
from pocketgem.tune.loss import loss_over
from pocketgem.tune.recipe import Recipe, plan_training
from pocketgem.tune.run import Progressed, Run, fingerprint, prepare
from pocketgem.tune.state import STATE
from pocketgem.tune.sweep_results import Results
from pocketgem.tune.sweep_space import Choices, Range, Space, Value
from pocketgem.tune.sweep_tried import Tried
from pocketgem.tune.valid import held_back

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL, TRIALS = "study.journal", "trials"
CHECKS = 10  # looks at the score in a run, at the same shares of each
STARTUP, PATIENT = 4, 2  # runs before the first is stopped; checks before one is
RANDOM = 8  # runs before the optimiser takes what it has seen into account
HELD, MOST_HELD = 0.1, 128  # share and number of examples that are kept from training
HELD_SEED = 20_240_221  # the same ones for every run, whatever its own seed
MOST_REPEATS = 100  # proposals in a row that were tried already


class _Stopped(Exception):
    """This run lags behind the others."""


class _OutOfTime(Exception):
    pass


Look = Callable[[int, Taken, float | None], None]  # number of the trial, its step, the score where that was looked at


@dataclass(frozen=True)
class Sweep:
    """A sweep that is set up. held: examples for the score."""

    llm: LLM
    data: Path
    space: Space
    folder: Path
    held: Sequence[Example]
    keep: frozenset[int]  # places in the data that are held back
    content: str  # a name of all examples
    command: str = ""

    def run(self, trials: int, seconds: float | None = None, look: Look = lambda number, taken, score: None) -> Results:
        """Go on until ``trials`` runs were tried, nothing new is left, or ``seconds`` have passed: the run that is
        under way then goes on at the next call. Raises InputError for a folder of another sweep."""
        until = None if seconds is None else time.monotonic() + seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            study = self._study()
            self._take_up(study)
            repeats = 0
            while len(self._tried(study)) < trials and repeats < MOST_REPEATS and not self._exhausted(study):
                if until is not None and time.monotonic() > until:
                    break
                study.sampler = _sampler(self.space.fixed.seed + len(study.trials) - len(_cut_off(study)))
                try:
                    repeats = 0 if self._try(study, study.ask(), until, look) else repeats + 1
                except _OutOfTime:
                    break
                self._results(study).write(self.folder)
            results = self._results(study)
            results.write(self.folder)
            return results

    # ---- one run -----------------------------------------------------------------------------------------------------

    def _try(self, study: Study, trial: Trial, until: float | None, look: Look) -> bool:
        """False for a proposal that was tried before: it is answered with what came of it then."""
        import optuna

        values = {key: _suggested(trial, key, dimension) for key, dimension in self.space.free.items()}
        if (before := next((one for one in self._tried(study) if one.params == trial.params), None)) is not None:
            trial.set_user_attr("same", before.number)
            study.tell(trial, before.value if before.state.name == "COMPLETE" else None, state=before.state)
            return False
        if "folder" not in trial.user_attrs:
            trial.set_user_attr("folder", f"{TRIALS}/{trial.number:03d}")
        try:
            study.tell(trial, self._trained(trial, values, until, look))
        except _Stopped:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except (PocketgemError, torch.OutOfMemoryError, MemoryError) as error:
            trial.set_user_attr("why", str(error)[:300] or "not enough memory")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        (self.folder / trial.user_attrs["folder"] / STATE).unlink(missing_ok=True)  # nobody goes on from it
        return True

    def _trained(self, trial: Trial, values: Mapping[str, Value], until: float | None, look: Look) -> float:
        run = self._run(self.space.recipe(values), self.folder / trial.user_attrs["folder"])
        checks: dict[int, float] = dict(trial.user_attrs.get("checks", ()))
        for check, score in checks.items():
            trial.report(score, check)
        began, before = time.monotonic(), trial.user_attrs.get("seconds", 0.0)

        def watch(taken: Taken, going: Progressed) -> None:
            check, score = _check_at(taken.step, run.recipe.steps), None
            if check is not None and check not in checks:
                checks[check] = score = loss_over(self.llm.model, self.held)
                trial.report(score, check)
            look(trial.number, taken, score)
            if taken.step < run.recipe.steps:
                if check is not None and trial.should_prune():
                    raise _Stopped
                if until is not None and time.monotonic() > until:
                    raise _OutOfTime

        try:
            run.train(watch)
        finally:
            trial.set_user_attr("seconds", round(before + time.monotonic() - began, 1))
        if CHECKS not in checks:  # the run was whole already when the sweep was killed
            raise RunError("the run ended without a score")
        return checks[CHECKS]

    def _run(self, recipe: Recipe, folder: Path) -> Run:
        run = prepare(self.llm, self.data, folder, recipe, self.command)
        learned = [one for at, one in enumerate(run.examples) if at not in self.keep]
        return replace(run, examples=learned, save_every=max(5, recipe.steps // CHECKS))

    # ---- what the journal says ---------------------------------------------------------------------------------------

    def _study(self) -> Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = self.folder / JOURNAL
        _mend(path)
        backend = JournalFileBackend(str(path), JournalFileOpenLock(str(path)))
        study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="sweep",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=PATIENT),
        )
        mine = {"space": repr(self.space), "data": self.content, "model": self.llm.checkpoint.where}
        if study.user_attrs.setdefault("sweep", mine) != mine:
            raise InputError(f"{self.folder}: the sweep there has another space, data or model; use another --out")
        if "base" not in study.user_attrs:
            study.set_user_attr("base", loss_over(self.llm.model, self.held))
            study.set_user_attr("sweep", mine)
        return study

    def _take_up(self, study: Study) -> None:
        """Runs that were under way when a sweep was killed come first, in their old folders."""
        import optuna

        for old in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(old.number, state=optuna.trial.TrialState.FAIL)
            if "folder" in old.user_attrs:
                known = {**old.user_attrs, "checks": sorted(old.intermediate_values.items())}
                study.enqueue_trial(old.params, user_attrs=known)

    def _tried(self, study: Study) -> list[FrozenTrial]:
        return [
            one
            for one in study.trials
            if one.state.is_finished() and "same" not in one.user_attrs and not _is_cut_off(one)
        ]

    def _exhausted(self, study: Study) -> bool:
        count = self.space.count
        return count is not None and len(self._tried(study)) >= count

    def _results(self, study: Study) -> Results:
        rows = [_row(one, self.folder) for one in self._tried(study)]
        return Results(rows, study.user_attrs["base"], self.space, len(self.held), self.command)


def set_up(
    llm: LLM, data: Path, space: Space, folder: Path, *, validation: Path | None = None, command: str = ""
) -> Sweep:
    """Read the examples, and hold back those of ``validation``, or a tenth of ``data``.

    Raises InputError, FormatError.
    """
    for key, value in _module_choices(space):
        try:
            plan_training(llm.model, replace(space.fixed, modules=value))
        except WeightsError as error:
            raise InputError(f"{key}: {error}") from None
    longest = _longest(space)
    examples = prepare(llm, data, folder, longest).examples
    if validation is not None:
        held = prepare(llm, validation, folder, longest).examples
        return Sweep(llm, data, space, folder, held, frozenset(), fingerprint([*examples, *held]), command)
    if len(examples) < 2:
        raise InputError(f"{data}: one example; a sweep needs some to learn from and some to compare by")
    keep = held_back(len(examples), HELD, HELD_SEED, MOST_HELD)
    held = [examples[at] for at in sorted(keep)]
    return Sweep(llm, data, space, folder, held, keep, fingerprint(examples), command)


def label(value: object) -> str | bool | int | float:
    """A value as the journal and tables have it."""
    return ",".join(value) if isinstance(value, tuple) else value  # type: ignore[return-value]  # a Value is one of them


def _module_choices(space: Space) -> Iterator[tuple[str, tuple[str, ...]]]:
    free = space.free.get("modules")
    for value in free.values if isinstance(free, Choices) else (space.fixed.modules,):
        if isinstance(value, tuple):
            yield "modules", value


def _longest(space: Space) -> Recipe:
    """The recipe that takes the longest examples: they are held back once for all runs."""
    free = space.free.get("max_length")
    return space.fixed if free is None else replace(space.fixed, max_length=max(int(str(end)) for end in free.ends))


def _suggested(trial: Trial, key: str, dimension: Choices | Range) -> Value:
    if isinstance(dimension, Choices):
        by_label = {label(value): value for value in dimension.values}
        return by_label[trial.suggest_categorical(key, list(by_label))]
    if dimension.whole:
        step = int(dimension.step or 1)
        return int(trial.suggest_int(key, int(dimension.low), int(dimension.high), step=step, log=dimension.log))
    return float(trial.suggest_float(key, dimension.low, dimension.high, step=dimension.step, log=dimension.log))


def _sampler(seed: int) -> Any:
    """Made anew for each run from how many there were: a sweep that was killed proposes what it would have."""
    import optuna

    return optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=seed % (1 << 32))


def _check_at(step: int, steps: int) -> int | None:
    """Which tenth of the run ends with this step, if one does."""
    done = step * CHECKS // steps
    return done if done > (step - 1) * CHECKS // steps else None


def _row(one: FrozenTrial, folder: Path) -> Tried:
    checks = dict(sorted(one.intermediate_values.items()))
    state = {"COMPLETE": "done", "PRUNED": "stopped"}.get(one.state.name, "failed")
    score = one.value if state == "done" else next(reversed(checks.values()), None)
    attrs = one.user_attrs
    return Tried(
        one.number, state, score, one.params, folder / attrs["folder"], checks, attrs.get("seconds", 0.0),
        attrs.get("why", ""),
    )  # fmt: skip


def _is_cut_off(one: FrozenTrial) -> bool:
    """Whether another took up what this one had begun."""
    return one.state.name == "FAIL" and "why" not in one.user_attrs


def _cut_off(study: Study) -> list[FrozenTrial]:
    return [one for one in study.trials if _is_cut_off(one) or one.state.name == "WAITING"]


def _mend(path: Path) -> None:
    """Take away what a killed process left: its lock, and a line that it had not written to the end."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as file:
        try:
            lock(file.fileno(), wait=False)
        except OSError:
            raise InputError(f"{folder}: another process works on this sweep") from None
        yield
