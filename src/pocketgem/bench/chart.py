"""A bar chart of ratios, drawn with matplotlib where it is installed: ``pip install "pocketgem[bench]"``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketgem.errors import InputError

ENDINGS = (".svg", ".png")
THICKNESS = 0.8  # of all bars of one row together


def check_chart(path: Path) -> None:
    """Before minutes of measuring: raise InputError where no chart could be drawn."""
    if path.suffix not in ENDINGS:
        raise InputError(f"--chart {path}: the file's name must end in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise InputError(f"--chart {path}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise InputError('--chart needs matplotlib: pip install "pocketgem[bench]"')


def draw_chart(report: Mapping[str, Any], path: Path) -> None:
    """How many times better ours is, row by row and peer by peer, with the spread; 1 is a tie."""
    figure_module: Any = import_module("matplotlib.figure")
    rows = [row for row in report["rows"] if any("ratio" in peer for peer in row.get("peers", {}).values())]
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    figure = figure_module.Figure(figsize=(8, 1.4 + 0.42 * len(rows) * max(len(peers), 1)), layout="constrained")
    axes = figure.subplots()
    for index, peer in enumerate(peers):
        _bars(axes, rows, peer, index, len(peers))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"times better than the other, {report['threads']} threads, median of {report['runs']} runs")
    axes.set_title(report["model"])
    axes.legend()
    figure.savefig(path)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], peer: str, index: int, count: int) -> None:
    """One peer's bars, each with a line from its least to its greatest ratio."""
    shown = [(at, row["peers"][peer]) for at, row in enumerate(rows) if "ratio" in row["peers"].get(peer, {})]
    height = THICKNESS / count
    places = [at - THICKNESS / 2 + height * (index + 0.5) for at, _ in shown]
    values = [one["ratio"] for _, one in shown]
    below = [max(0.0, one["ratio"] - one["ratio_spread"][0]) for _, one in shown]
    above = [max(0.0, one["ratio_spread"][1] - one["ratio"]) for _, one in shown]
    bars = axes.barh(places, values, height, xerr=(below, above), capsize=2, label=f"against {peer}")
    axes.bar_label(bars, labels=[f"{value:.2f}" for value in values], padding=4)
