"""``pocketgem sweep``, also ``pocketgem tune --sweep``: many runs, compared in a table, a picture and files."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import pocketgem.cli.options as o
from pocketgem.cli.common import one_line, refuse
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.tune.loop import Taken
    from pocketgem.tune.sweep import Sweep
    from pocketgem.tune.sweep_results import Results
    from pocketgem.tune.sweep_tried import Tried

Space = Annotated[
    Path | None, typer.Option("--sweep", metavar="FILE", help="Try many recipes: what each may be (docs/sweep.md).")
]
Trials = Annotated[int, typer.Option(min=1, max=10_000, help="Of a sweep: runs in all, those before included.")]
Minutes = Annotated[float | None, typer.Option(min=0.01, help="Of a sweep: stop after so long; it can go on later.")]
Validation = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Examples to compare by; without it a tenth of DATA is kept back.")
]


def sweep_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for run.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="As for tune.")],
    space: Annotated[Path, typer.Option("--space", metavar="FILE", help="Which recipes to try (docs/sweep.md).")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="The sweep's folder, one run in each of trials/.")
    ],
    validation: Validation = None,
    trials: Trials = 20,
    minutes: Minutes = None,
    seed: Annotated[int, typer.Option(help="The same seed tries the same recipes.")] = 1,
    dtype: o.DtypeChoice = o.Dtype.FLOAT32,
    threads: o.Threads = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train with many recipes, stop those that lag behind, and say which is best.

    A sweep that was stopped goes on when it is started again; with more --trials it goes further.
    """
    if dtype is o.Dtype.AUTO:
        refuse("--dtype auto packs weights for kernels that know no gradients; give float32, bfloat16 or stored.")
    if find_spec("optuna") is None:
        refuse("a sweep needs Optuna: pip install 'pocketgem[sweep]'.")
    screen = Screen(quiet=quiet or as_json)
    from pocketgem.tune.sweep_space import read_space

    wanted = read_space(space, seed=seed)
    from pocketgem.llm import LLM
    from pocketgem.tune.sweep import set_up

    with screen.waiting("loading", "bytes") as bar:
        llm = LLM.load(model, dtype=o.torch_dtype(dtype), threads=threads, offline=offline, progress=bar)
    sweep = set_up(llm, data, wanted, out, validation=validation, command=" ".join(sys.argv))
    screen.note(f"{len(sweep.held)} examples are kept to compare by; tried: {', '.join(wanted.free)}")
    results = _watched(screen, sweep, trials, minutes)
    _draw(screen, results, out)
    if as_json:
        print(json.dumps(results.as_json()))
    elif not quiet:
        screen.end()
        screen.err.print(_table(results))
    _conclude(screen, results, out)


def _watched(screen: Screen, sweep: Sweep, trials: int, minutes: float | None) -> Results:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    visible = screen.err.is_terminal and not screen.quiet
    with Progress(*columns, console=screen.err, transient=True, disable=not visible) as bar:
        task = bar.add_task("sweep", total=None)

        def look(number: int, taken: Taken, score: float | None) -> None:
            bar.update(task, description=f"run {number}, step {taken.step}, loss {taken.loss:.3f}")
            if score is not None and not visible:
                screen.note(f"run {number}, step {taken.step}: score {score:.4f}")

        return sweep.run(trials, None if minutes is None else minutes * 60, look)


def _draw(screen: Screen, results: Results, folder: Path) -> None:
    """The picture, where matplotlib is installed."""
    try:
        from pocketgem.tune.sweep_plot import draw_sweep
    except ImportError:
        screen.note("no picture: it needs matplotlib (pip install 'pocketgem[bench]')")
        return
    draw_sweep(results, folder)


def _table(results: Results) -> Table:
    free = list(results.space.free)
    table = Table(box=None, header_style="dim")
    for name in ("run", "state", "score", *free, "seconds"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for one in results.ranked:
        table.add_row(*(Text(one_line(cell)) for cell in _cells(one, free)))
    return table


def _cells(one: Tried, free: list[str]) -> list[str]:
    score = "" if one.score is None else f"{one.score:.4f}"
    values = (one.values.get(key, "") for key in free)
    shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return [str(one.number), one.state, score, *shown, f"{one.seconds:.0f}"]


def _conclude(screen: Screen, results: Results, folder: Path) -> None:
    best = results.best
    if best is not None:
        screen.note(f"best: {best.folder / 'adapter'}, score {best.score:.4f}; without an adapter {results.base:.4f}")
    elif results.tried and all(one.state == "failed" for one in results.tried):
        from pocketgem.errors import RunError

        raise RunError(f"every run failed; the last: {results.tried[-1].why}")
    else:
        screen.note("no run has come to its end yet; start the sweep again and it goes on")
    screen.note(f"all of it: {folder / 'results.json'}")
