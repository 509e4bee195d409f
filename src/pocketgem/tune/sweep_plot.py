"""A sweep as a picture: the score of every run as it went, and where in the two weightiest parameters the runs lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pocketgem.tune.sweep_results import Results
from pocketgem.tune.sweep_space import Range

PICTURE = "sweep.png"


def draw_sweep(results: Results, folder: Path) -> Path:
    """``sweep.png`` in the sweep's folder."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, results)
    _places(figure, right, results)
    figure.savefig(folder / PICTURE, dpi=120)
    return folder / PICTURE


def _curves(axes: Axes, results: Results) -> None:
    best = results.best
    for one in results.tried:
        colour, width = ("tab:orange", 2.0) if one is best else ("tab:blue" if one.state == "done" else "0.75", 1.0)
        axes.plot([check * 10 for check in one.checks], list(one.checks.values()), color=colour, linewidth=width)
    axes.axhline(results.base, color="0.5", linestyle=":", label="without an adapter")
    for colour, name in (("tab:orange", "best"), ("tab:blue", "whole"), ("0.75", "stopped")):
        axes.plot([], [], color=colour, label=name)
    axes.set(xlabel="share of the run (%)", ylabel="validation loss (nat a token)")
    axes.legend(frameon=False)


def _places(figure: Figure, axes: Axes, results: Results) -> None:
    scored = [one for one in results.tried if one.score is not None]
    keys = list(results.weights())[:2]
    if not scored:
        return
    across = _scaled(axes, results, keys[0], "x", [one.values[keys[0]] for one in scored])
    scores = [one.score or 0.0 for one in scored]
    if len(keys) == 1:
        axes.scatter(across, scores, c=scores, cmap="viridis_r")
        axes.set(ylabel="score")
        return
    up = _scaled(axes, results, keys[1], "y", [one.values[keys[1]] for one in scored])
    dots = axes.scatter(across, up, c=scores, cmap="viridis_r")
    figure.colorbar(dots, ax=axes, label="score")
    if (best := results.best) is not None:
        at = scored.index(best)
        axes.scatter(across[at : at + 1], up[at : at + 1], s=160, facecolors="none", edgecolors="tab:orange")


def _scaled(axes: Axes, results: Results, key: str, side: str, values: list[Any]) -> list[float]:
    """Where values stand on an axis, which is labelled: choices at whole numbers, ranges at their own."""
    axis, dimension = getattr(axes, f"{side}axis"), results.space.free[key]
    axis.set_label_text(key)
    if isinstance(dimension, Range):
        if dimension.log:
            getattr(axes, f"set_{side}scale")("log")
        return [float(value) for value in values]
    labels = [",".join(value) if isinstance(value, tuple) else value for value in dimension.values]
    axis.set_ticks(range(len(labels)), [str(one)[:30] for one in labels])
    return [float(labels.index(value)) for value in values]
