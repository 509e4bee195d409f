"""``pocketgem adapters capsule`` and ``rebase``: record what an adapter does, carry it over to the next base."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import pocketgem.cli.options as o
from pocketgem.cli.adapters import app, registry_at
from pocketgem.cli.common import FAILED, HELP, refuse, size_text
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.llm import LLM
    from pocketgem.model.lora import Deltas
    from pocketgem.rebase.record import Prompt
    from pocketgem.rebase.run import Outcome

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or the name of a registered adapter.")]
OldBase = Annotated[str, typer.Option("--model", metavar="OLD_BASE", help="The base that the adapter was made for.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="A prompt a line: text, or JSON with prompt or messages."),
]
Count = Annotated[int, typer.Option("--count", min=8, help="Prompts; what --prompts lacks is made by the model.")]
CapsuleOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where the capsule goes. Left out: beside the adapter.")
]
Top = Annotated[int, typer.Option(min=1, max=1024, help="Most probable ids to keep of each distribution.")]
Samples = Annotated[int, typer.Option(min=0, max=16, help="Answers to draw for a prompt beside the greedy one.")]
AnswerTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer.")]
NewBase = Annotated[str, typer.Argument(metavar="NEW_BASE", help="As for run.")]
CapsuleFile = Annotated[
    Path | None, typer.Option("--capsule", metavar="FILE", help="Left out: the one beside the adapter.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="For the adapter and the report. Default: NAME-rebased.")
]
AimChoice = Annotated[str, typer.Option("--target", metavar="copy|delta", help="What is distilled: docs/rebase.md.")]
Steps = Annotated[int, typer.Option(min=1, help="Batches to distil from, at most.")]
Rate = Annotated[float, typer.Option(help="The highest learning rate of distilling.")]
Kept = Annotated[float, typer.Option(min=0, max=1, help="Share of the effect that the gate asks for.")]
Match = Annotated[float, typer.Option(min=0, max=1, help="Equal answers asked for, of the old pair's consistency.")]
Distil = Annotated[bool, typer.Option("--distil", help="Distil even where the old weights answer as before.")]
Store = Annotated[Path | None, typer.Option("--registry", metavar="FOLDER", help="Default: the person's own.")]


@app.command("capsule", context_settings=HELP)
def record_capsule(
    adapter: Adapter,
    model: OldBase,
    out: CapsuleOut = None,
    prompts: Prompts = None,
    count: Count = 128,
    top: Top = 32,
    samples: Samples = 1,
    max_tokens: AnswerTokens = 64,
    seed: Annotated[int, typer.Option(help="The same seed gives the same capsule.")] = 1,
    registry: Store = None,
    dtype: o.DtypeChoice = o.Dtype.FLOAT32,
    threads: o.Threads = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Record what a base with an adapter answers, while that base is there: `rebase` needs it when it is gone.

    Prompts are given, or made by the model: like those that are given where there are too few of them, else from
    nothing. No answers of people are needed, and nothing leaves this computer.
    """
    _check_dtype(dtype)
    screen = Screen(quiet=quiet or as_json)
    from pocketgem.adapters.peft import open_adapter
    from pocketgem.adapters.where import where_is
    from pocketgem.rebase.keep import keep_capsule
    from pocketgem.rebase.record import Wishes, record
    from pocketgem.rebase.write import experts_of

    store = registry_at(registry)
    folder = where_is(adapter, store)
    llm = _loaded(screen, model, dtype, threads, offline)
    opened = open_adapter(folder, experts_of(llm))
    wishes = Wishes(top=top, samples=samples, max_tokens=max_tokens, seed=seed)
    with _bar(screen) as watch:
        chosen = _prompts(llm, opened.deltas, prompts, count, seed, watch)
        capsule = record(llm, opened, chosen, wishes, watch)
    where, written = keep_capsule(capsule, adapter, folder, store, out)
    if as_json:
        said = {"capsule": str(where), "prompts": len(chosen), "answers": len(capsule.answers), "bytes": written}
        print(json.dumps({**said, "tokens": len(capsule.tops.ids), "digest": capsule.digest}))
    screen.note(f"{where}: {len(capsule.answers)} answers to {len(chosen)} prompts, {size_text(written)}")


@app.command("rebase", context_settings=HELP)
def rebase_adapter(
    adapter: Adapter,
    new_base: NewBase,
    out: Out = None,
    capsule: CapsuleFile = None,
    target: AimChoice = "copy",
    steps: Steps = 60,
    learning_rate: Rate = 5e-4,
    kept: Kept = 0.9,
    match: Match = 0.9,
    distil: Distil = False,
    seed: Annotated[int, typer.Option(help="Of the order of batches.")] = 1,
    registry: Store = None,
    dtype: o.DtypeChoice = o.Dtype.FLOAT32,
    threads: o.Threads = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Carry an adapter over to an updated base, without its training data.

    Estimates how far the base moved and tries the old weights. Unless these answer as before, the capsule is distilled
    into new ones, and the better of those that pass the gate is taken. A registered name then stands for them;
    `adapters rollback` undoes it. Ends with 1, and changes nothing, where nothing passes. The report is written either
    way.
    """
    _check_dtype(dtype)
    screen = Screen(quiet=quiet or as_json)
    from pocketgem.adapters.where import where_is
    from pocketgem.rebase.distill import Settings, Target
    from pocketgem.rebase.judge import Limits
    from pocketgem.rebase.report import headline, write_report
    from pocketgem.rebase.run import rebase, swap

    if target not in tuple(Target):
        refuse(f"--target is {target!r}, expected {' or '.join(Target)}.")
    settings = Settings(target=Target(target), steps=steps, learning_rate=learning_rate, seed=seed)
    store = registry_at(registry)
    folder, place = where_is(adapter, store), out or Path(f"{Path(adapter).name}-rebased")
    llm = _loaded(screen, new_base, dtype, threads, offline)
    with _bar(screen) as watch:
        outcome = rebase(llm, folder, place, capsule, Limits(kept, match), settings, reuse=not distil, watch=watch)
    pictures = write_report(place, outcome)
    swapped = swap(store, adapter, place).identity if outcome.passed and adapter in store.names() else None
    if as_json:
        print(json.dumps({**outcome.facts(), "report": str(place), "registered": swapped}))
    _tell(screen, outcome, place, adapter if swapped else None, pictures=pictures)
    if not outcome.passed:
        screen.say(headline(outcome))
        raise typer.Exit(FAILED)
    screen.note(headline(outcome))


def _tell(screen: Screen, outcome: Outcome, place: Path, name: str | None, *, pictures: bool) -> None:
    from pocketgem.rebase.report import candidates

    for title, one in candidates(outcome):
        gate = "passes" if one.verdict.accepted else "; ".join(one.verdict.reasons)
        screen.note(f"{title}: KL {one.marks.kl:.4f}, {one.marks.kept:.1%} of the effect kept, {gate}")
    if not pictures:
        screen.note("no pictures: they need matplotlib (pip install 'pocketgem[bench]')")
    if name is not None:
        screen.note(f"{name} stands for the new adapter now; `pocketgem adapters rollback {name}` goes back")
    screen.note(f"report: {place / 'report.html'}")


def _check_dtype(dtype: o.Dtype) -> None:
    if dtype is o.Dtype.AUTO:
        refuse("--dtype auto packs weights for kernels that know no gradients; give float32, bfloat16 or stored.")


def _loaded(screen: Screen, model: str, dtype: o.Dtype, threads: int | None, offline: bool) -> LLM:
    """A plain model that keeps no pasts: adapters are put on and taken off between its answers."""
    from pocketgem.llm import LLM

    with screen.waiting("loading", "bytes") as bar:
        return LLM.load(
            model, dtype=o.torch_dtype(dtype), threads=threads, offline=offline, kept=0, progress=bar
        )  # fmt: skip


def _prompts(
    llm: LLM, deltas: Deltas, file: Path | None, count: int, seed: int, watch: Callable[[str, int, int], None]
) -> list[Prompt]:
    """``count`` of them: from the file, then made like those; without a file made from nothing, the adapter on."""
    from pocketgem.model.lora import attach_, detach_
    from pocketgem.rebase.prompts import free_prompts, more_prompts, read_prompts

    if file is not None:
        given = read_prompts(file, llm)
        chosen = random.Random(seed).sample(given, min(count, len(given)))
        found = list(dict.fromkeys(one.ids for one in chosen))
        return found + (more_prompts(llm, given, count - len(found), seed, watch) if len(found) < count else [])
    attach_(llm.model, deltas)
    try:
        return free_prompts(llm, count, seed, watch)
    finally:
        detach_(llm.model)


@contextlib.contextmanager
def _bar(screen: Screen) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr where somebody watches. Call it with what is going on, steps done, steps in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = screen.err.is_terminal and not screen.quiet
    with Progress(*columns, console=screen.err, transient=True, disable=not visible) as bar:
        task = bar.add_task("", total=None)

        def watch(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield watch
