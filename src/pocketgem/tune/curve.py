"""The loss of a run as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

from pocketgem.tune.run import CURVE

PICTURE = "curve.png"
SMOOTH = 0.9  # weight of the past in the running mean


def draw(folder: Path) -> Path:
    """``curve.png`` from ``curve.csv`` in a run's folder."""
    with (folder / CURVE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    valid = [(int(row["step"]), float(row["valid"])) for row in rows if row.get("valid")]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="0.8", linewidth=1, label="each step")
    axes.plot(steps, _smoothed(losses), color="tab:blue", label="running mean")
    if valid:
        axes.plot(*zip(*valid, strict=True), color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set(xlabel="step", ylabel="loss (nat a token)", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(folder / PICTURE, dpi=120)
    return folder / PICTURE


def _smoothed(losses: list[float]) -> list[float]:
    mean, found = losses[0], []
    for loss in losses:
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        found.append(mean)
    return found
