"""An engine for asyncio: one thread of its own drives it while there is work, and callers in event loops read outputs.

    service = Service(llm, max_waiting=64)
    service.start()
    run = service.submit(request)             at once, or BusyError, PromptError
    async for output in service.outputs(run): ...
    await service.close(drain_seconds=10)

The event loop never waits for the engine: a submission and an end are orders, carried out before the next step. The
engine never waits for a reader: what it makes lies in the run's inbox, and who leaves ``max_unread`` of it there has
its request ended with a StalledError, so that 500 readers that stopped hold neither places nor much memory.

The synchronous calls of the same ``LLM`` go on working beside it: both drive the same flights, and take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from pocketgem.engine.loop import Output
from pocketgem.engine.request import FinishReason, Request, Sequence
from pocketgem.errors import BusyError, RunError, StalledError
from pocketgem.flight import Run
from pocketgem.llm import LLM

MAX_UNREAD = 1024  # outputs, and alternatives listed in them: about 200 KiB
TICK = 0.05  # seconds between two looks while a close waits


@dataclass(frozen=True)
class Held:
    """What is cached now. ``tokens`` and ``bytes`` of requests that run; ``kept_*`` of pasts for prompts to come."""

    tokens: int
    bytes: int
    kept_tokens: int
    kept_bytes: int


class Bell:
    """Wakes the readers of an event loop: one message to it for all that a step made, not one for each request.

    All but ``_heard`` is for the thread that drives the engine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._rung = weakref.ref(loop), False  # a service keeps bells by loop, and no loop alive
        self._runs: deque[ServedRun] = deque()

    def note(self, run: ServedRun) -> None:
        """Something has come for a run: it is among those who are woken next."""
        self._runs.append(run)

    def ring(self) -> None:
        """Wake them."""
        if self._runs and not self._rung and (loop := self._loop()) is not None:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will read
                loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self._rung = False  # before a look at what is there: what comes from now on rings again
        while self._runs:
            self._runs.popleft().wake()


class ServedRun(Run):
    """A run that is read in an event loop, by one reader at a time."""

    def __init__(self, sequence: Sequence, bell: Bell, max_unread: int) -> None:
        super().__init__(sequence)
        self._news: asyncio.Future[None] | None = None  # for which its reader waits
        self._bell, self._max_unread = bell, max_unread
        self._taken = self._given = 0  # outputs and alternatives: a count of each thread's own, so that none is lost

    def take(self, output: Output) -> None:
        if self._taken - self._given >= self._max_unread and self.sequence.error is None:
            self.sequence.error = StalledError(
                f"{self.sequence.request.id}: {len(self.inbox)} parts of the answer lay unread, so it was ended"
            )
        if self.sequence.error is None:
            self._taken += _weight(output)
            super().take(output)
            self._bell.note(self)

    @property
    def stalled(self) -> bool:
        return isinstance(self.sequence.error, StalledError)

    def ended(self) -> None:
        super().ended()
        self._bell.note(self)

    def tell(self) -> None:
        self._bell.ring()

    def wake(self) -> None:
        """Something has come. Called in the reader's event loop."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> Output | None:
        """The next output, None after the last. Raises what ended the run."""
        while not self.inbox:
            if self.over and not self.inbox:
                if self.sequence.error is not None:
                    raise self.sequence.error
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        output = self._read = self.inbox.popleft()
        self._given += _weight(output)
        return output


def _weight(output: Output) -> int:
    return 1 if output.sampled is None else 1 + len(output.sampled.top)


class Outputs(AsyncIterator[Output]):
    """A run's outputs. However it is left, by its end, an error, ``aclose`` or being forgotten, the request ends."""

    def __init__(self, service: Service, run: ServedRun) -> None:
        self._service, self._run = service, run

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        try:
            output = await self._run.next()
        except BaseException:  # a cancelled task, too
            self._leave()
            raise
        if output is None:
            raise StopAsyncIteration
        return output

    async def aclose(self) -> None:
        """End the request, unless it has ended."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if not self._run.over:
            self._service.end(self._run, FinishReason.ABORT)


class Service:
    """Runs requests of event loops on an LLM's engine.

    max_waiting: requests that may wait for a place. max_unread: outputs, with the alternatives in them, that a reader
    may leave unread.
    """

    def __init__(self, llm: LLM, *, max_waiting: int = 64, max_unread: int = MAX_UNREAD) -> None:
        self.llm, self.max_waiting, self.max_unread = llm, max_waiting, max_unread
        self._flights, self._engine = llm.flights, llm.engine
        self._thread = threading.Thread(target=self._drive, name="pocketgem-engine", daemon=True)
        self._wake, self._closing, self._stopped = threading.Event(), False, False
        self._bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = weakref.WeakKeyDictionary()
        self._runs: set[ServedRun] = set()  # of the engine's thread
        self._arriving = self._arrived = 0  # counts: of the loop's thread, and of the engine's
        self._quiet_since = time.monotonic()  # when a step ended, or work came to an idle engine

    # ---- for callers in an event loop ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to drive. Once."""
        self._thread.start()

    def submit(self, request: Request) -> Run:
        """Queue a request of the running event loop.

        Raises PromptError for one that cannot be answered, CheckpointError when the model's file was changed, BusyError
        when more than ``max_waiting`` wait or the service is closing.
        """
        if self._closing or not self._thread.is_alive():
            raise BusyError("the service is closing; nothing more is taken")
        request = self.llm.checked(request)
        if (waiting := self.waiting) >= self.max_waiting:
            raise BusyError(f"{waiting} requests wait for their turn already; try again later")
        loop = asyncio.get_running_loop()
        run = ServedRun(Sequence(request), self._bells.setdefault(loop, Bell(loop)), self.max_unread)
        self._arriving += 1
        self._flights.order(lambda: self._enter(run))
        self._wake.set()
        return run

    def outputs(self, run: Run) -> Outputs:
        """The run's outputs as they are made. Leaving early, or cancelling the task, ends the request within a step.

        Raises what ended the run, where it failed: StalledError, PromptError for options that leave nothing to choose,
        RunError.
        """
        if not isinstance(run, ServedRun):
            raise RunError("a run that another service or a synchronous call began cannot be read here")
        return Outputs(self, run)

    def end(self, run: Run, reason: FinishReason = FinishReason.STOP) -> None:
        """End a run before the engine's next step, unless it has ended. Never waits."""
        if self._stopped or run.reason is not None:
            return
        run.asked = reason
        self._flights.order(lambda: self._flights.end(run, reason))
        self._wake.set()

    async def close(self, drain_seconds: float | None) -> None:
        """Take no more requests, let those that are here finish for so long (None: till they do), end the rest."""
        self._closing = True
        until = None if drain_seconds is None else time.monotonic() + drain_seconds
        while self._busy and self._thread.is_alive() and (until is None or time.monotonic() < until):
            await asyncio.sleep(TICK if until is None else max(0.0, min(TICK, until - time.monotonic())))
        self._stopped = True
        self._wake.set()
        while self._thread.is_alive():
            await asyncio.sleep(TICK / 5)
        if self._engine.folder is not None:
            await asyncio.to_thread(self._engine.folder.close)
        if self._flights.ordered:  # another loop's request came between the two
            await asyncio.to_thread(self._finish)

    # ---- for metrics, readiness and a watchdog ---------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._engine.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._arriving - self._arrived + len(self._engine.scheduler.waiting)

    @property
    def last_step_age(self) -> float:
        """Seconds since a step ended, or since work came to an idle engine; 0 while there is no work."""
        return time.monotonic() - self._quiet_since if self._busy else 0.0

    @property
    def held(self) -> Held:
        """What is cached. A look from outside: a step may be moving it."""
        caches = [cache for state in list(self._engine.states.values()) if (cache := state.cache) is not None]
        prefixes = self._engine.prefixes
        tokens, size = sum(cache.length for cache in caches), sum(cache.nbytes for cache in caches)
        return Held(tokens, size, prefixes.tokens, prefixes.nbytes)

    @property
    def _busy(self) -> bool:
        return bool(self._runs or self._flights.ordered)

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _enter(self, run: ServedRun) -> None:
        self._arrived += 1
        if run.sequence.finish is None:
            self._runs.add(run)
            self._flights.enter(run)

    def _drive(self) -> None:
        while not self._stopped:
            self._wake.clear()
            if not self._busy:
                self._rest()
                self._quiet_since = time.monotonic()
            try:
                self._step()
            except Exception as error:  # a fault of ours: nobody may wait for ever
                self._fail(error)
        self._finish()

    def _rest(self) -> None:
        """Until there is work."""
        with self._flights.lock:
            self._flights.tell()
        self._wake.wait()

    def _step(self) -> None:
        self._flights.advance()
        self._quiet_since = time.monotonic()
        for run in [run for run in self._runs if run.over or run.stalled]:
            self._flights.end(run, FinishReason.ABORT)
            self._runs.discard(run)

    def _fail(self, error: Exception) -> None:
        for run in list(self._runs):
            failed = RunError(f"{run.sequence.request.id}: the engine failed: {error}")
            run.sequence.error = run.sequence.error or failed
            with contextlib.suppress(Exception):
                self._flights.end(run, FinishReason.ABORT)
            run.ended()
            run.tell()
        self._runs.clear()

    def _finish(self) -> None:
        """End what is left; who submits now is refused."""
        with self._flights.lock:
            self._flights.obey()
            for run in self._runs:
                self._flights.end(run, FinishReason.ABORT)
                run.ended()
                run.tell()
            self._flights.tell()
            self._runs.clear()
