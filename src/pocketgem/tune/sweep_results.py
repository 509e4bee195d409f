"""What came of a sweep: runs in the order of their scores, as JSON and CSV, and which parameters mattered."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from pocketgem.checkpoint.durable import write_file
from pocketgem.tune.sweep_space import Space
from pocketgem.tune.sweep_tried import Tried

JSON, CSV = "results.json", "results.csv"
GROUPS = 3  # of a range's values, for their weight


@dataclass(frozen=True)
class Results:
    """tried: in the order they were begun. base: the score without an adapter. held: examples it is over."""

    tried: Sequence[Tried]
    base: float
    space: Space
    held: int
    command: str

    @property
    def ranked(self) -> list[Tried]:
        """Whole runs, the best first, then those that were stopped, then those that failed."""
        return sorted(self.tried, key=lambda one: (_ORDER[one.state], one.score or 0.0, one.number))

    @property
    def best(self) -> Tried | None:
        """None where no run came to its end."""
        first = next(iter(self.ranked), None)
        return first if first is not None and first.state == "done" else None

    def weights(self) -> dict[str, float]:
        """For each parameter, the share of the scores' variance that its values explain (eta squared), 0 to 1, the
        weightiest first. With few runs it is a hint, no more."""
        scored = [one for one in self.tried if one.score is not None]
        found = {key: _explained([(one.values[key], one.score or 0.0) for one in scored]) for key in self.space.free}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def write(self, folder: Path) -> None:
        """``results.json`` and ``results.csv``. Raises as ``write_file``."""
        write_file(folder / JSON, (json.dumps(self.as_json(), indent=2) + "\n").encode())
        write_file(folder / CSV, self._csv().encode())

    def as_json(self) -> dict[str, object]:
        best = self.best
        return {
            "score": "validation loss, nat a token: smaller is better",
            "base": self.base,
            "validation_examples": self.held,
            "best": None if best is None else {**_entry(best), "recipe": self._recipe(best)},
            "weights": self.weights(),
            "trials": [_entry(one) for one in self.ranked],
            "command": self.command,
        }

    def _recipe(self, one: Tried) -> dict[str, object]:
        return asdict(self.space.fixed) | dict(one.values)

    def _csv(self) -> str:
        text, free = io.StringIO(), list(self.space.free)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["trial", "state", "score", *free, "seconds", "folder"])
        for one in self.ranked:
            values = [one.values.get(key, "") for key in free]
            score = "" if one.score is None else f"{one.score:.6f}"
            rows.writerow([one.number, one.state, score, *values, one.seconds, one.folder.name])
        return text.getvalue()


_ORDER = {"done": 0, "stopped": 1, "failed": 2}


def _entry(one: Tried) -> dict[str, object]:
    adapter = one.folder / "adapter"
    return {
        "trial": one.number, "state": one.state, "score": one.score, "values": dict(one.values),
        "adapter": str(adapter) if one.state == "done" else None, "checks": {str(k): v for k, v in one.checks.items()},
        "seconds": one.seconds, **({"why": one.why} if one.why else {}),
    }  # fmt: skip


def _explained(pairs: Sequence[tuple[object, float]]) -> float:
    """Variance between groups of values over all variance. Numbers of many values are grouped by size."""
    scores = [score for _, score in pairs]
    whole = sum((score - fmean(scores)) ** 2 for score in scores) if scores else 0.0
    if not whole:
        return 0.0
    mean = fmean(scores)
    return sum(len(group) * (fmean(group) - mean) ** 2 for group in _groups(pairs).values()) / whole


def _groups(pairs: Sequence[tuple[object, float]]) -> Mapping[object, list[float]]:
    distinct = {value for value, _ in pairs}
    numbers = all(isinstance(value, int | float) for value in distinct)
    found: dict[object, list[float]] = {}
    if not numbers or len(distinct) <= GROUPS:
        for value, score in pairs:
            found.setdefault(value, []).append(score)
        return found
    for at, (_, score) in enumerate(sorted(pairs, key=lambda pair: float(str(pair[0])))):
        found.setdefault(at * GROUPS // len(pairs), []).append(score)
    return found
