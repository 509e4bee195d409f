"""Subjects take turns, command by command, so that a busy minute of the machine hits all of them alike.

Only one works at a time. Where the models do not fit side by side, the subjects' processes take turns too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pocketgem.bench.pipe import Worker
from pocketgem.bench.plan import WARM_PROMPT, WARM_STEPS, Plan, Row
from pocketgem.bench.subjects import Subject
from pocketgem.checkpoint.types import Progress

PAUSE = 0.2  # seconds between commands: threads that spin for their next work have gone to sleep by then


@dataclass
class Track:
    """What one subject was seen to do. ``seconds``: row -> a list of step times for every run."""

    facts: Mapping[str, object] = field(default_factory=dict)
    load_s: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)  # from the process's start to the first token
    seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)  # row -> why
    costs: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # row -> each run's
    peak_MiB: dict[str, float] = field(default_factory=dict)  # kind of row -> highest seen until then, first run
    anonymous_MiB: float | None = None


class Bench:
    """One measurement: the subjects, the rows, and what was seen."""

    def __init__(
        self, subjects: Sequence[Subject], rows: Sequence[Row], plan: Plan, options: Mapping[str, object]
    ) -> None:
        self.subjects, self.rows, self.plan = subjects, rows, plan
        self.options = {**options, "threads": plan.threads, "context": plan.context}
        self.tracks = {subject.name: Track() for subject in subjects}

    def run(self, *, one_at_a_time: bool, progress: Progress | None, between: Callable[[], None]) -> dict[str, Track]:
        """Measure every row ``runs`` times. ``between`` is called before each run, when nobody works.

        Raises RunError when a worker fails. Whatever ends this, no worker is left.
        """
        self._progress, self._done = progress, 0
        (self._in_turn if one_at_a_time else self._side_by_side)(between)
        return self.tracks

    def _side_by_side(self, between: Callable[[], None]) -> None:
        with ExitStack() as stack:
            workers = [stack.enter_context(self._started(subject)) for subject in self.subjects]
            for run in range(self.plan.runs):
                between()
                for row in self.rows:
                    for worker in workers:
                        self._measure(worker, row, run)

    def _in_turn(self, between: Callable[[], None]) -> None:
        for run in range(self.plan.runs):
            between()
            for subject in self.subjects:
                with self._started(subject) as worker:
                    for row in self.rows:
                        self._measure(worker, row, run)

    @contextmanager
    def _started(self, subject: Subject) -> Iterator[Worker]:
        """A worker that has loaded and is warm. The first token of a short prompt ends its start."""
        track = self.tracks[subject.name]
        with Worker(subject, self.options) as worker:
            hello = worker.ready()
            track.facts = hello["facts"]
            track.load_s.append(hello["load_s"])
            worker.ask({"prefill": WARM_PROMPT, "seed": -1})
            track.start_s.append(time.perf_counter() - worker.began)
            worker.ask({"decode": WARM_STEPS, "depth": WARM_PROMPT, "seed": -2})
            yield worker

    def _measure(self, worker: Worker, row: Row, run: int) -> None:
        time.sleep(PAUSE)
        seed = run * len(self.rows) + self.rows.index(row)
        answer = worker.ask({**row.command, "seed": seed})
        self._note(self.tracks[worker.subject.name], row, answer)
        self._done += row.tokens
        if self._progress is not None:
            total = sum(one.tokens for one in self.rows) * self.plan.runs * len(self.subjects)
            self._progress(self._done, total)

    def _note(self, track: Track, row: Row, answer: dict[str, Any]) -> None:
        if "unsupported" in answer:
            track.unsupported[row.name] = answer["unsupported"]
            return
        runs = track.seconds.setdefault(row.name, [])
        runs.append(answer["seconds"])
        if answer.get("costs"):
            track.costs.setdefault(row.name, []).append(answer["costs"])
        memory = answer["memory"]
        if len(runs) == 1 and "peak_MiB" in memory:  # later runs start from the peak of the whole first one
            track.peak_MiB[row.kind] = memory["peak_MiB"]
        track.anonymous_MiB = memory.get("anonymous_MiB")
