"""Pictures of a rebase: divergence by position, what the gate saw, how distilling went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pocketgem.rebase.judge import Candidate
from pocketgem.rebase.run import Outcome

_COLOURS = {"new base alone": "0.7", "old adapter as it is": "tab:orange", "distilled": "tab:blue"}


def draw(folder: Path, outcome: Outcome, names: Sequence[str]) -> None:
    """Three files in ``folder``; the last only where something was distilled."""
    found = {"new base alone": outcome.bare, "old adapter as it is": outcome.reuse}
    if outcome.distilled is not None:
        found["distilled"] = outcome.distilled
    _positions(found).savefig(folder / names[0], dpi=120)
    _marks(found, outcome).savefig(folder / names[1], dpi=120)
    if outcome.curve is not None:
        _curve(outcome).savefig(folder / names[2], dpi=120)


def _positions(found: dict[str, Candidate]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, one in found.items():
        values = [max(value, 1e-6) for value in one.marks.positions]
        axes.plot(range(1, len(values) + 1), values, color=_COLOURS[name], marker=".", label=name)
    axes.set(xlabel="token of the answer", ylabel="KL from the old pair (nat)", yscale="log")
    axes.legend(frameon=False)
    return figure


def _marks(found: dict[str, Candidate], outcome: Outcome) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    labels = ("effect kept", "answers equal", "token F1")
    for at, (name, one) in enumerate(found.items()):
        values = [max(0.0, one.marks.kept), one.marks.match, one.marks.f1]
        places = [place + 0.25 * (at - 1) for place in range(len(labels))]
        axes.bar(places, values, 0.23, color=_COLOURS[name], label=name)
    wanted = (outcome.limits.kept, outcome.limits.match * outcome.consistency)
    for place, value in enumerate(wanted):
        axes.hlines(value, place - 0.4, place + 0.4, color="black", linewidth=1, label="" if place else "asked for")
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylim=(0, 1.05))
    axes.legend(frameon=False, loc="lower right")
    return figure


def _curve(outcome: Outcome) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    curve = outcome.curve
    if curve is not None:
        axes.plot(range(1, len(curve.losses) + 1), curve.losses, color="0.8", label="each step")
        steps, values = zip(*curve.watched, strict=True)
        axes.plot(steps, values, color="tab:blue", marker="o", label="prompts that are only watched")
        axes.axvline(curve.best, color="black", linewidth=0.8, linestyle=":", label="kept")
    axes.set(xlabel="step", ylabel="KL from the target (nat)", yscale="log")
    axes.legend(frameon=False)
    return figure
