"""One run of a sweep, as its results know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tried:
    """score: nat a token; of a run that was stopped, its last. checks: the score by tenths of the run.

    state: "done", "stopped" or "failed", and then ``why``. seconds: of training, in all processes that took part.
    """

    number: int
    state: str
    score: float | None
    values: Mapping[str, object]
    folder: Path
    checks: Mapping[int, float]
    seconds: float
    why: str = ""
