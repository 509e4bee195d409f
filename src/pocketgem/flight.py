"""Requests in flight: several callers, in one thread or many, share one engine.

Whoever waits for its own outputs drives the engine for all; what a step made for others lies in their inboxes. A
service (``service.py``) is one more driver, with a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from pocketgem.answers import Stats
from pocketgem.checkpoint.types import Progress
from pocketgem.engine.loop import Engine, Output
from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence


@dataclass(eq=False)
class Run:
    """A request in flight: its outputs not yet read, and its clock."""

    sequence: Sequence
    inbox: deque[Output] = field(default_factory=deque)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None  # time of the first token
    last: float = 0.0
    asked: FinishReason | None = None  # how its caller ended it, maybe before the engine has come to that
    over: bool = False  # nothing more will arrive
    _last: Output | None = None  # the output with which the sequence ended
    _read: Output | None = None  # the one that was read last

    @property
    def params(self) -> SamplingParams:
        return self.sequence.request.params

    @property
    def finish(self) -> FinishReason | None:
        """Why the run ended, once nothing of it is left unread.

        The engine ends a sequence a moment before its last output is here, so the sequence alone does not tell.
        """
        read = self._last is not None and self._read is self._last
        return self.sequence.finish if read or (self.over and not self.inbox) else None

    @property
    def reason(self) -> FinishReason | None:
        """Why it ended, or is about to, whatever is left unread."""
        return self.sequence.finish or self.asked

    def take(self, output: Output) -> None:
        """An output arrives. Called by the thread that drives the engine."""
        if self.sequence.finish is not None:
            self._last = output  # before anybody can read it
        self.inbox.append(output)
        if output.sampled is not None:
            self.last = time.perf_counter()
            self.first = self.first or self.last

    def ended(self) -> None:
        """Nothing more will arrive. Called by the thread that drives the engine, maybe twice."""
        self.over = True

    def tell(self) -> None:
        """Wake who waits for it elsewhere. Called by the thread that drives the engine."""

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
            reuse_reason=sequence.reuse_reason,
            **{f"{kind}_tokens": count for kind, count in self._media.items()},
        )

    @property
    def _media(self) -> Counter[str]:
        """Rows of each kind of media in the prompt."""
        counts: Counter[str] = Counter()
        for insert in self.sequence.request.inserts:
            counts[insert.kind] += insert.count
        return counts


class FairLock:
    """A lock that goes to another thread that waits for it before it comes back to the same one; re-entrant.

    Who drives the engine lets go between two steps only for an instant, in which nobody who waits for a plain lock
    would wake up.
    """

    def __init__(self) -> None:
        self._gate, self._lock = threading.Lock(), threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._owner != (me := threading.get_ident()):
            with self._gate:  # who waits for the lock holds the gate, and the last owner queues behind it
                self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()


class Flights:
    """The runs of one engine, behind one lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.lock = FairLock()
        self.runs: dict[Sequence, Run] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._untold: deque[Run] = deque()  # something has come for these, or they have ended

    def start(self, request: Request) -> Run:
        """Queue a request. Raises PromptError for one that cannot be answered."""
        with self.lock:
            run = Run(self.engine.submit(request))
            self.runs[run.sequence] = run
        return run

    def outputs(self, run: Run, on_prefill: Progress | None = None) -> Iterator[Output]:
        """The run's outputs as the engine makes them. Leaving the loop ends the request and frees its cache.

        Raises what ended this very request, where its run failed.
        """
        try:
            while run.inbox or run.finish is None:
                while run.inbox:
                    output = run._read = run.inbox.popleft()
                    if on_prefill is not None and output.sampled is None:
                        on_prefill(output.prefilled, run.sequence.num_prompt)
                    yield output
                if run.finish is None:
                    self._wait(run)
            if run.sequence.error is not None:
                raise run.sequence.error
        finally:
            with self.lock:
                self.end(run, FinishReason.ABORT)
                self.tell()

    def end(self, run: Run, reason: FinishReason = FinishReason.STOP) -> None:
        """End a run now, unless it has ended."""
        with self.lock:
            self.engine.abort(run.sequence, reason)
            self._forget(run)

    def _wait(self, run: Run) -> None:
        """Drive the engine for everybody, unless another has just made what the run waits for."""
        with self.lock:
            if run.sequence not in self.runs:
                run.ended()
            elif not run.inbox:
                self.advance()

    # ---- for drivers -----------------------------------------------------------------------------------------------

    def order(self, order: Callable[[], None]) -> None:
        """Have something done by whoever drives, before its next step and under the lock. Never waits."""
        self._orders.append(order)

    @property
    def ordered(self) -> bool:
        """Whether orders wait."""
        return bool(self._orders)

    def enter(self, run: Run) -> None:
        """Queue a run whose request was checked. Under the lock."""
        self.engine.enter(run.sequence)
        self.runs[run.sequence] = run

    def advance(self) -> bool:
        """Carry out orders, then one step of the engine for everybody. False when there was nothing to do.

        Readers elsewhere are told when the next step's pass begins, or when there is none: their Python runs while
        kernels do, and the engine's own between two passes does not wait for it. Who stops driving tells them himself.
        """
        with self.lock:
            self.obey()
            outputs = self.engine.step(self.tell)
            for output in outputs:
                self._deliver(output)
            if not outputs:
                self.tell()
        return bool(outputs)

    def tell(self) -> None:
        """Wake the readers of all that has come or ended. Under the lock."""
        while self._untold:
            self._untold.popleft().tell()

    def obey(self) -> None:
        """Carry out the orders that wait. Under the lock."""
        while self._orders:
            self._orders.popleft()()

    def _deliver(self, output: Output) -> None:
        run = self.runs.get(output.sequence)
        if run is None:  # somebody steps the engine beside us, or an order ended it
            return
        if output.sequence.error is None:
            run.take(output)
            self._untold.append(run)
        if output.sequence.finish is not None:
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if self.runs.pop(run.sequence, None) is not None:
            run.ended()
            self._untold.append(run)
