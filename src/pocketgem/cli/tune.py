"""``pocketgem tune``: an adapter from examples, with a bar, a curve, and a state from which a killed run goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import pocketgem.cli.options as o
from pocketgem.cli.common import count_text, refuse
from pocketgem.cli.screen import Screen
from pocketgem.cli.tune_ray import report, scale_of, train_on_ray
from pocketgem.cli.tune_sweep import Minutes, Space, Trials, sweep_model
from pocketgem.cli.tune_workers import RayAddress, Shard, UseRay, Workers, among_others, shared, team_of

if TYPE_CHECKING:
    from pocketgem.tune.loop import Taken
    from pocketgem.tune.recipe import TrainingPlan
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
Modules = Annotated[str, typer.Option(metavar="NAMES", help="Kinds of matrices, separated by commas.")]
Rate = Annotated[float, typer.Option(help="The highest learning rate; it rises, then falls as a cosine does.")]
Steps = Annotated[int, typer.Option(help="Batches to learn from.")]
Batch = Annotated[int, typer.Option(help="Examples a step.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of an example, at most.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show what would be trained, and stop.")]


def tune_model(
    command: typer.Context,
    model: Model,
    data: Data,
    out: Out,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    rslora: Stabilised = False,
    modules: Modules = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    learning_rate: Rate = 2e-4,
    steps: Steps = 100,
    batch: Batch = 8,
    max_length: MaxLength = 512,
    seed: Annotated[int, typer.Option(help="The same seed gives the same adapter.")] = 1,
    dtype: o.DtypeChoice = o.Dtype.FLOAT32,
    threads: o.Threads = None,
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
    file's own quantised weights.
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
    if workers > batch:
        refuse(f"{workers} workers cannot share a batch of {batch}; give --batch {workers}.")
    if ray and not among_others():
        train_on_ray(tune_model, command.obj, scale_of(workers, threads, ray_address), quiet=quiet or as_json)
        return report(out, as_json=as_json, quiet=quiet)
    from pocketgem.tune.recipe import Recipe

    kinds = tuple(name.strip() for name in modules.split(",") if name.strip())
    recipe = Recipe(
        rank=rank, alpha=alpha, stabilised=rslora, modules=kinds, learning_rate=learning_rate, steps=steps,
        batch=batch, max_length=max_length, seed=seed,
    )  # fmt: skip
    from pocketgem.llm import LLM
    from pocketgem.tune.run import prepare

    with team_of(workers, command.obj) as team:
        first = team is None or team.rank == 0  # the others say nothing
        screen = Screen(quiet=quiet or as_json or not first)
        with screen.waiting("loading", "bytes") as bar:
            llm = LLM.load(model, dtype=o.torch_dtype(dtype), threads=threads, offline=offline, progress=bar)
        run = prepare(llm, data, out, recipe, command=" ".join(sys.argv))
        _show_plan(screen, run.plan, len(run.examples))
        if plan:
            return
        going = _watched(screen, shared(run, team, shard=shard))
    if not first:
        return
    _draw(screen, run.folder)
    if as_json:
        print(json.dumps({"adapter": str(out / "adapter"), "loss": going.losses[-1:], "seconds": going.seconds,
                          "recipe": asdict(recipe)}))  # fmt: skip
    screen.note(f"{out / 'adapter'}: {run.plan.parameters:,} parameters, loss {_losses(going)}")


def _losses(going: Progressed) -> str:
    return "as it was" if not going.losses else f"{going.losses[0]:.3f} to {going.losses[-1]:.3f}"


def _show_plan(screen: Screen, plan: TrainingPlan, examples: int) -> None:
    trained = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.kinds.items()))
    left = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.left.items()))
    screen.note(f"{examples} examples; trained: {trained} ({count_text(plan.parameters)} parameters)")
    screen.note(f"not trained: {left or 'nothing else has a matrix'}")


def _watched(screen: Screen, run: Run) -> Progressed:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = screen.err.is_terminal and not screen.quiet
    with Progress(*columns, console=screen.err, transient=True, disable=not visible) as bar:
        task = bar.add_task("training", total=run.recipe.steps)

        def watch(taken: Taken, going: Progressed) -> None:
            recent = going.losses[-10:]
            shown = f"loss {sum(recent) / len(recent):.3f}, {len(going.losses) / going.seconds:.2f} steps/s"
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
