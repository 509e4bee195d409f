"""One thread owns the engine; callers of asyncio hand in requests and wait for what comes of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

from pocketgem.engine.request import FinishReason, Request
from pocketgem.errors import PromptError
from pocketgem.flight import Run
from pocketgem.llm import LLM


class Service:
    """Requests of one event loop on one model."""

    def __init__(self, llm: LLM, *, max_waiting: int = 256) -> None:
        self.llm, self.max_waiting = llm, max_waiting
        self._news: dict[int, asyncio.Event] = {}
        self._work, self._stop = threading.Event(), False
        self._last_step = time.monotonic()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def close(self, drain_seconds: float) -> None:
        end = time.monotonic() + drain_seconds
        while self.llm.flights.runs and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for run in list(self.llm.flights.runs.values()):
            self.end(run, FinishReason.ABORT)
        self._stop = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    def submit(self, request: Request) -> Run:
        if self.waiting >= self.max_waiting:
            raise PromptError("too many requests wait")
        run = self.llm.flights.start(request)
        self._news[id(run)] = asyncio.Event()
        self._work.set()
        return run

    async def outputs(self, run: Run) -> AsyncIterator[object]:
        news = self._news[id(run)]
        try:
            while run.inbox or run.finish is None:
                while run.inbox:
                    yield run.inbox.popleft()
                if run.finish is None:
                    news.clear()
                    if not run.inbox and run.sequence.finish is None:
                        await news.wait()
        finally:
            self.end(run, FinishReason.ABORT)
            self._news.pop(id(run), None)

    def end(self, run: Run, reason: FinishReason = FinishReason.STOP) -> None:
        self.llm.flights.end(run, reason)
        if news := self._news.get(id(run)):
            news.set()

    @property
    def running(self) -> int:
        return len(self.llm.engine.scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self.llm.engine.scheduler.waiting)

    @property
    def last_step_age(self) -> float:
        return time.monotonic() - self._last_step

    @property
    def held(self) -> int:
        return sum(state.cache is not None for state in list(self.llm.engine.states.values()))

    def _run(self) -> None:
        flights = self.llm.flights
        while not self._stop:
            self._work.wait()
            if not flights.runs:
                self._work.clear()
                if flights.runs:
                    self._work.set()
                continue
            with flights.lock:
                with contextlib.suppress(Exception):
                    flights._advance()
                self._last_step = time.monotonic()
                for run in list(flights.runs.values()):
                    if run.sequence.finish is not None:
                        flights.runs.pop(run.sequence)
            self._loop.call_soon_threadsafe(self._tell)
            time.sleep(0.0005)

    def _tell(self) -> None:
        for news in self._news.values():
            news.set()
