"""One replica: the routes of the server without its guard, for requests that the server in front let through."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.requests import Request
from starlette.types import Message, Scope

from pocketgem.serve.app import App
from pocketgem.serve.call import Call
from pocketgem.serve.faults import fault_of
from pocketgem.serve.forward import Begun, Broken, Ended, Forward, Sent, State
from pocketgem.serve.health import is_stuck, metrics
from pocketgem.serve.loading import Loader
from pocketgem.serve.log import Log
from pocketgem.serve.metrics import Metrics
from pocketgem.serve.models import Registry
from pocketgem.serve.settings import Settings
from pocketgem.serve.wiring import Serving

WAITING = 8  # pieces of an answer on their way out


@dataclass(frozen=True)
class Plan:
    """What a replica serves. models: names to files; weights: bytes each will take; ready: loaded at the start."""

    loader: Loader
    models: dict[str, str]
    weights: dict[str, int]
    ready: tuple[str, ...]
    settings: Settings  # without its keys: the server in front looks at them
    aliases: dict[str, str]
    budget: int | None = None
    idle_seconds: float | None = None

    def worker(self, name: str, rank: int) -> Worker:
        """A replica of this plan, its models not yet loaded. ``rank`` outlives it: its successor has it too."""
        loader = self.loader
        if loader.cache_dir is not None:
            loader = replace(loader, cache_dir=loader.cache_dir / f"replica-{rank}")
        sources = [loader.source(name, model, self.weights[name]) for name, model in self.models.items()]
        log = Log(requests=False)
        registry = Registry(sources, log, budget=self.budget, idle_seconds=self.idle_seconds, aliases=self.aliases)
        return Worker(name, App(Serving(self.settings, registry, Metrics(), log)), self.ready)


class Worker:
    """Answers forwarded requests. ``ready``: names of models to load before the first."""

    def __init__(self, name: str, app: App, ready: tuple[str, ...] = ()) -> None:
        self.name, self.app, self.ready = name, app, ready

    async def start(self) -> None:
        """Load what has to be. Raises what loading raises."""
        registry = self.app.serving.registry
        await registry.start()
        for name in self.ready:
            async with registry.use(name):
                pass

    async def close(self) -> None:
        await self.app.serving.registry.close(0)
        await asyncio.to_thread(self.app.serving.media.close)

    async def answer(self, forward: Forward) -> AsyncGenerator[Sent]:
        """Pieces of an answer. Closing it ends the request within a step of the engine."""
        out: asyncio.Queue[Sent] = asyncio.Queue(WAITING)
        task = asyncio.create_task(self._run(forward, out))
        try:
            while True:
                sent = await out.get()
                yield sent
                if isinstance(sent, Ended | Broken):
                    return
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def state(self) -> State:
        """How it is, for the server in front."""
        serving = self.app.serving
        stuck = any(is_stuck(loaded, serving.settings.ready_seconds) for loaded in serving.registry.loaded)
        told = await metrics(serving, Request({"type": "http", "headers": []}))
        return State(self.name, stuck, bytes(told.body))

    async def _run(self, forward: Forward, out: asyncio.Queue[Sent]) -> None:
        call = Call(forward.caller, forward.key, forward.id, body=forward.body, content_type=forward.content_type)

        async def receive() -> Message:  # whose client leaves is cancelled from outside
            await asyncio.get_running_loop().create_future()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await out.put(Begun(self.name, message["status"], list(message["headers"])))
            elif message.get("body"):
                await out.put(bytes(message["body"]))

        try:
            await self.app.behind(scope_of(forward, call), receive, send)
        except Exception as error:
            await out.put(broken(error))
        else:
            await out.put(Ended(call.note))


def scope_of(forward: Forward, call: Call) -> Scope:
    """The request as an ASGI application gets it."""
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
        "method": forward.method, "path": forward.path, "raw_path": forward.path.encode(),
        "query_string": forward.query, "headers": [(b"content-type", forward.content_type.encode("latin-1"))],
        "client": None, "server": None, "state": {"call": call},
    }  # fmt: skip


def broken(error: Exception) -> Broken:
    """An exception without its text, which may quote a prompt."""
    fault = fault_of(error)
    told = Broken(fault.status, fault.message, fault.field, fault.code, fault.headers)
    if fault.status < 500:
        return told
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = tuple(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return replace(told, error=type(error).__name__, at=places)
