"""Requests in flight: several callers, in one thread or many, share one engine.

Whoever waits for its own outputs drives the engine for all; what a step made for others lies in their inboxes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pocketgem.answers import Stats
from pocketgem.checkpoint.types import Progress
from pocketgem.engine.loop import Engine, Output
from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence


@dataclass
class Run:
    """A request in flight: its outputs not yet read, and its clock."""

    sequence: Sequence
    inbox: deque[Output] = field(default_factory=deque)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None  # time of the first token
    last: float = 0.0

    @property
    def params(self) -> SamplingParams:
        return self.sequence.request.params

    @property
    def finish(self) -> FinishReason | None:
        """Why the run ended, once nothing of it is left unread."""
        return None if self.inbox else self.sequence.finish

    def take(self, output: Output) -> None:
        self.inbox.append(output)
        if output.sampled is not None:
            self.last = time.perf_counter()
            self.first = self.first or self.last

    def visible(self, output: Output) -> list[int]:
        """The output's ids that are text: a stop id ends the answer and is no part of it."""
        sampled = output.sampled
        return [] if sampled is None or sampled.id in self.params.stop_ids else [sampled.id]

    @property
    def stats(self) -> Stats:
        sequence, first = self.sequence, self.first or self.last
        return Stats(
            prompt_tokens=sequence.num_prompt,
            reused_tokens=sequence.num_reused,
            completion_tokens=len(sequence.output_ids),
            prefill_seconds=max(first - self.began, 0.0),
            decode_seconds=self.last - first,
        )


class Flights:
    """The runs of one engine, behind one lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.lock = threading.RLock()
        self.runs: dict[Sequence, Run] = {}

    def start(self, request: Request) -> Run:
        """Queue a request. Raises PromptError for one that cannot be answered."""
        with self.lock:
            run = Run(self.engine.submit(request))
            self.runs[run.sequence] = run
        return run

    def outputs(self, run: Run, on_prefill: Progress | None = None) -> Iterator[Output]:
        """The run's outputs as the engine makes them. Leaving the loop ends the request and frees its cache.

        Raises what ended this very request, where no id could be chosen for it.
        """
        try:
            while run.inbox or run.finish is None:
                while run.inbox:
                    output = run.inbox.popleft()
                    if on_prefill is not None and output.sampled is None:
                        on_prefill(output.prefilled, run.sequence.num_prompt)
                    yield output
                if run.finish is None:
                    self._advance()
            if run.sequence.error is not None:
                raise run.sequence.error
        finally:
            self.end(run, FinishReason.ABORT)

    def end(self, run: Run, reason: FinishReason = FinishReason.STOP) -> None:
        """End a run now, unless it has ended."""
        with self.lock:
            self.engine.abort(run.sequence, reason)
            self.runs.pop(run.sequence, None)

    def _advance(self) -> None:
        with self.lock:
            for output in self.engine.step():
                self.runs[output.sequence].take(output)
