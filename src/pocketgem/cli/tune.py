"""``pocketgem tune``: an adapter from examples, with a bar, a curve, and a state from which a killed run goes on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import pocketgem.cli.options as o
from pocketgem.cli.common import count_text, refuse, size_text
from pocketgem.cli.screen import Screen
from pocketgem.cli.tune_ray import report, scale_of, train_on_ray
from pocketgem.cli.tune_sweep import Minutes, Space, Trials, sweep_model
from pocketgem.cli.tune_workers import RayAddress, Shard, UseRay, Workers, among_others, shared, team_of

if TYPE_CHECKING:
    from pocketgem.adapters.adapter import Adapter
    from pocketgem.llm import LLM
    from pocketgem.tune.loop import Taken
    from pocketgem.tune.planner import Part
    from pocketgem.tune.preflight import Check
    from pocketgem.tune.run import Progressed, Run

Model = Annotated[str, typer.Argument(metavar="MODEL", help="As for run.")]
Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help='One JSON object a line: {"prompt", "completion"}, or {"messages": [...]}.'),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run's folder; the adapter is in adapter/.")]
Rank = Annotated[int, typer.Option(help="Of each change.")]
Alpha = Annotated[float, typer.Option(help="Scales each change: alpha / rank.")]
Stabilised = Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank) instead.")]
Modules = Annotated[
    str, typer.Option(metavar="NAMES", help="Kinds of matrices, separated by commas; experts for their stacks.")
]
Rate = Annotated[float, typer.Option(help="The highest learning rate; it rises, then falls as a cosine does.")]
Steps = Annotated[int, typer.Option(help="Batches to learn from.")]
Batch = Annotated[int, typer.Option(help="Examples a step.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of an example, at most.")]
BeginAt = Annotated[
    str | None,
    typer.Option("--begin-at", metavar="ADAPTER", help="Begin with the values of this adapter, not with the base."),
]
Words = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="chat_template.jinja, and tokenizer_config.json that names reserved tokens: for a base that has none.",
    ),
]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show what would be trained and what not, and stop.")]
Dora = Annotated[bool, typer.Option("--dora", help="Also train the lengths of the changed rows (DoRA).")]
Dropout = Annotated[float, typer.Option(help="Share of what a change sees that is left out, by chance.")]
Learn = Annotated[str, typer.Option(metavar="WHAT", help="answers, or all: prompts too.")]
Tokens = Annotated[
    int | None, typer.Option("--tokens-per-step", help="Fill each step with examples up to so many tokens; no --batch.")
]
Accumulate = Annotated[int, typer.Option(help="Parts of a step that run one after the other, for less memory.")]
Forgetful = Annotated[
    bool, typer.Option("--checkpoint-layers", help="Compute layers again for the way back: less memory, more time.")
]
Valid = Annotated[
    str | None, typer.Option("--valid", metavar="FILE|SHARE", help="Validate on a file, or on a share of DATA: 0.1.")
]
Patience = Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")]
ValidEvery = Annotated[int | None, typer.Option(help="Steps between validations; usually a tenth of all.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between states that a killed run goes on from.")]


def tune_model(
    command: typer.Context,
    model: Model,
    data: Data,
    out: Out,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    rslora: Stabilised = False,
    dora: Dora = False,
    modules: Modules = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    learning_rate: Rate = 2e-4,
    steps: Steps = 100,
    batch: Batch = 8,
    tokens_per_step: Tokens = None,
    accumulate: Accumulate = 1,
    checkpoint_layers: Forgetful = False,
    max_length: MaxLength = 512,
    dropout: Dropout = 0.0,
    learn: Learn = "answers",
    valid: Valid = None,
    patience: Patience = None,
    valid_every: ValidEvery = None,
    save_every: SaveEvery = 50,
    seed: Annotated[int, typer.Option(help="The same seed gives the same adapter.")] = 1,
    dtype: o.DtypeChoice = o.Dtype.FLOAT32,
    threads: o.Threads = None,
    words: Words = None,
    begin_at: BeginAt = None,
    plan: OnlyPlan = False,
    sweep: Space = None,
    trials: Trials = 20,
    minutes: Minutes = None,
    workers: Workers = 1,
    shard: Shard = False,
    ray: UseRay = False,
    ray_address: RayAddress = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a low-rank adapter on examples, on this computer, and leave it in PEFT's format.

    A run that was stopped goes on when it is started again with the same options. --dtype stored trains over the
    file's own quantised weights. --json writes one object a line: plan, checks, each step, and the end.
    """
    if dtype is o.Dtype.AUTO:
        refuse("--dtype auto packs weights for kernels that know no gradients; give float32, bfloat16 or stored.")
    if not data.is_file():
        refuse(f"{data}: no such file; give a file with one JSON object a line.")
    if sweep is not None:
        return sweep_model(
            model, data, sweep, out, trials=trials, minutes=minutes, seed=seed, dtype=dtype, threads=threads,
            offline=offline, as_json=as_json, quiet=quiet,
        )  # fmt: skip
    if shard and dora:
        refuse("--shard cuts the base's matrices, whose whole rows --dora needs; give one of the two.")
    if workers > batch:
        refuse(f"{workers} workers cannot share a batch of {batch}; give --batch {workers}.")
    if ray and not among_others():
        train_on_ray(tune_model, command.obj, scale_of(workers, threads, ray_address), quiet=quiet or as_json)
        return report(out, as_json=as_json, quiet=quiet)
    held = _valid(valid)
    from pocketgem.tune.recipe import Recipe

    kinds = tuple(name.strip() for name in modules.split(",") if name.strip())
    recipe = Recipe(
        rank=rank, alpha=alpha, stabilised=rslora, modules=kinds, learning_rate=learning_rate, steps=steps,
        batch=batch, max_length=max_length, seed=seed, dora=dora, dropout=dropout, learn=learn, tokens=tokens_per_step,
        accumulate=accumulate, forgetful=checkpoint_layers, patience=patience, valid_every=valid_every,
    )  # fmt: skip
    from pocketgem.adapters.dialect import Dialect, read_dialect
    from pocketgem.llm import LLM
    from pocketgem.tune.planner import parts
    from pocketgem.tune.preflight import failed, preflight
    from pocketgem.tune.run import prepare

    dialect = Dialect() if words is None else read_dialect(words)
    if words is not None and not dialect:
        refuse(f"--words {words}: neither chat_template.jinja nor names in tokenizer_config.json are there.")
    with team_of(workers, command.obj) as team:
        first = team is None or team.rank == 0  # the others say nothing
        screen, as_json = Screen(quiet=quiet or as_json or not first), as_json and first
        with screen.waiting("loading", "bytes") as bar:
            llm = LLM.load(
                model, dtype=o.torch_dtype(dtype), threads=threads, dialect=dialect, offline=offline, progress=bar
            )
        run = prepare(llm, data, out, recipe, shlex.join(sys.argv), valid=held)
        run = replace(run, save_every=save_every, dialect=dialect, start=_start(begin_at, llm))
        _show_plan(screen, parts(llm.model, run.plan), as_json)
        if plan:
            return
        checks = preflight(run, data)
        _show_checks(screen, checks, as_json)
        failed(checks)
        going = _watched(screen, shared(run, team, shard=shard), as_json)
    if not first:
        return
    _draw(screen, run.folder)
    if as_json:
        best = {"loss": going.best.loss, "step": going.best.step} if run.valid else None
        _line("done", adapter=str(out / "adapter"), loss=going.losses[-1:], seconds=going.seconds, best=best,
              stopped=going.stopped, recipe=asdict(recipe))  # fmt: skip
    why = f"; {going.stopped}" if going.stopped else ""
    screen.note(f"{out / 'adapter'}: {run.plan.parameters:,} parameters, loss {_losses(going)}{why}")


def _start(adapter: str | None, llm: LLM) -> Adapter | None:
    """The adapter to begin at. Raises InputError, CheckpointError."""
    from pocketgem.adapters.peft import open_adapter
    from pocketgem.adapters.where import where_is

    experts = llm.checkpoint.config.experts
    count = None if experts is None else experts.num_experts
    return None if adapter is None else open_adapter(where_is(adapter), count)


def _valid(text: str | None) -> Path | float | None:
    """A share where it is a number, else a file."""
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        return Path(text)
    if not 0 < share < 1:
        refuse(f"--valid {text}: a share must lie between 0 and 1, such as 0.1; or give a file.")
    return share


def _line(event: str, **fields: object) -> None:
    """One object for who reads along."""
    print(json.dumps({"event": event, **fields}), flush=True)


def _losses(going: Progressed) -> str:
    return "as it was" if not going.losses else f"{going.losses[0]:.3f} to {going.losses[-1]:.3f}"


def _show_plan(screen: Screen, plan: Sequence[Part], as_json: bool) -> None:
    if as_json:
        return _line("plan", parts=[{**asdict(part), "added_bytes": part.added_bytes} for part in plan])
    table = Table("kind", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("there", "trained", "parameters", "bytes", "added"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for part in plan:
        sizes = (count_text(part.parameters), size_text(part.bytes), count_text(part.added) if part.added else "")
        cells = (part.kind, str(part.count), str(part.trained) if part.trained else "no", *sizes, part.why)
        table.add_row(*cells, style=None if part.trained else "dim")
    screen.table(table)


def _show_checks(screen: Screen, checks: Sequence[Check], as_json: bool) -> None:
    for check in checks:
        if as_json:
            _line("check", **asdict(check))
        screen.note(f"{'ok ' if check.ok else 'NOT'} {check.name}: {check.found}")


def _watched(screen: Screen, run: Run, as_json: bool) -> Progressed:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = screen.err.is_terminal and not screen.quiet
    with Progress(*columns, console=screen.err, transient=True, disable=not visible) as bar:
        task = bar.add_task("training", total=run.recipe.steps)

        def watch(taken: Taken, going: Progressed) -> None:
            if as_json:
                _line("step", **asdict(taken), seconds=round(going.seconds, 3), left_seconds=going.left_seconds)
            recent = going.losses[-10:]
            best = f", best validation {going.best.loss:.3f}" if going.best.parts else ""
            shown = f"loss {sum(recent) / len(recent):.3f}, {len(going.losses) / going.seconds:.2f} steps/s{best}"
            bar.update(task, completed=taken.step, description=shown)

        return run.train(watch)


def _draw(screen: Screen, folder: Path) -> None:
    """The curve as a picture, where matplotlib is installed."""
    try:
        from pocketgem.tune.curve import draw
    except ImportError:
        screen.note("no picture of the curve: it needs matplotlib (pip install 'pocketgem[bench]')")
        return
    draw(folder)
