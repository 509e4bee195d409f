"""The models of a server by name: loaded when somebody asks, and unloaded when memory is wanted or nobody asks."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pocketgem.llm import LLM
from pocketgem.memory.program import give_back
from pocketgem.serve.faults import Fault
from pocketgem.serve.log import Log
from pocketgem.service import Service

MAX_UNREAD = 1 << 16  # outputs on their way to the event loop, which has a tighter box for those on their way out
TICK = 5.0  # seconds between looks at who is idle


@dataclass(frozen=True)
class Source:
    """One model of the command line. weight: bytes that it will take, as planned from its headers. adapters: folders
    of those that can be asked for, by name."""

    name: str
    load: Callable[[], LLM]
    weight: int = 0
    adapters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and for one request the adapter that was asked for with it."""

    name: str
    llm: LLM
    service: Service
    adapter: str | None = None

    @property
    def asked(self) -> str:
        """What an answer calls it."""
        return self.name if self.adapter is None else f"{self.name}:{self.adapter}"


@dataclass
class Entry:
    source: Source
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def adapters(self) -> list[str]:
        """Names of adapters that can be asked for with it."""
        return list(dict.fromkeys([*self.source.adapters, *(self.loaded.llm.adapters.names if self.loaded else ())]))


class Registry:
    """Several models, at most so many bytes of them in memory.

    budget: bytes for all that are loaded, None for no limit. idle_seconds: a model that nobody used for so long is
    unloaded; None: never. patience: seconds a request waits for another model to become idle. max_waiting: requests
    that wait for one model's engine.
    """

    def __init__(
        self,
        sources: list[Source],
        log: Log,
        *,
        budget: int | None = None,
        idle_seconds: float | None = None,
        patience: float = 60.0,
        max_waiting: int = 1024,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.entries = {source.name: Entry(source) for source in sources}
        self.aliases = dict(aliases or {})
        self.log, self.budget, self.idle_seconds, self.patience = log, budget, idle_seconds, patience
        self.max_waiting = max_waiting
        self.created = int(time.time())
        self._changed, self._one_at_a_time = asyncio.Condition(), asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def default(self) -> str:
        """The first model of the command line."""
        return next(iter(self.entries))

    @property
    def loaded(self) -> list[Loaded]:
        return [entry.loaded for entry in self.entries.values() if entry.loaded is not None]

    def find(self, name: str | None) -> Entry:
        """The entry of a name, MODEL or MODEL:ADAPTER; the default for None. Raises Fault 404."""
        return self.choose(name)[0]

    def choose(self, name: str | None, adapter: str | None = None) -> tuple[Entry, str | None]:
        """The entry of a name and the adapter that is asked for, in the name or beside it.

        Raises Fault 404 for either, 400 where the two ways name different ones.
        """
        entry, named = self._entry(self.default if name is None else name), None
        if entry is None and name is not None:
            model, _, named = name.rpartition(":")
            entry = self._entry(model) if named else None
        if entry is None:
            raise Fault(
                404, f"there is no model {name[:100] if name else name!r}; see /v1/models", field="model",
                code="model_not_found",
            )  # fmt: skip
        if adapter and named and adapter != named:
            raise Fault(400, "the model's name asks for one adapter and the field for another", field="adapter")
        wanted = adapter or named or None
        if wanted is not None and wanted not in entry.adapters:
            raise Fault(
                404, f"there is no adapter {wanted[:100]!r} for {entry.source.name}; see /v1/models",
                field="adapter" if adapter else "model", code="adapter_not_found",
            )  # fmt: skip
        return entry, wanted

    def _entry(self, name: str) -> Entry | None:
        return self.entries.get(self.aliases.get(name, name))

    async def start(self, ready: Mapping[str, LLM] | None = None) -> None:
        """Begin, with models that were loaded before."""
        for name, llm in (ready or {}).items():
            self.entries[name].loaded = self._serve(name, llm)
        if self.idle_seconds is not None:
            self._keeper = asyncio.create_task(self._unload_idle(self.idle_seconds))

    async def close(self, drain_seconds: float) -> None:
        """End all requests, those that run after a while, and unload all."""
        if self._keeper is not None:
            self._keeper.cancel()
        loading = [entry.loading for entry in self.entries.values() if entry.loading is not None]
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(one.service.close(drain_seconds) for one in self.loaded), return_exceptions=True)
        for entry in self.entries.values():
            entry.loaded = None

    @asynccontextmanager
    async def use(self, name: str | None, adapter: str | None = None) -> AsyncIterator[Loaded]:
        """A model for the length of one request; it is loaded if need be, and not unloaded meanwhile.

        Raises what ``choose`` does, Fault 503 where other models take the memory, and what loading raises.
        """
        entry, wanted = self.choose(name, adapter)
        entry.users += 1
        try:
            yield replace(await self._ready(entry), adapter=wanted)
        finally:
            entry.users -= 1
            entry.last_used = time.monotonic()
            async with self._changed:
                self._changed.notify_all()

    async def _ready(self, entry: Entry) -> Loaded:
        if entry.loaded is not None:
            return entry.loaded
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
            entry.loading.add_done_callback(_seen)
        return await asyncio.shield(entry.loading)  # who gives up does not stop it for the others

    async def _load(self, entry: Entry) -> Loaded:
        try:
            async with self._one_at_a_time:
                await self._make_room(entry)
                self.log.write("loading", model=entry.source.name)
                began = time.monotonic()
                llm = await asyncio.to_thread(entry.source.load)
                entry.loaded = self._serve(entry.source.name, llm)
                self.log.write("loaded", model=entry.source.name, seconds=round(time.monotonic() - began, 2))
                return entry.loaded
        finally:
            entry.loading = None

    def _serve(self, name: str, llm: LLM) -> Loaded:
        for adapter, folder in self.entries[name].source.adapters.items():
            llm.adapters.offer(adapter, folder)
        service = Service(llm, max_waiting=self.max_waiting, max_unread=MAX_UNREAD)
        service.start()
        return Loaded(name, llm, service)

    async def _make_room(self, entry: Entry) -> None:
        """Unload who was idle longest until the new model fits. Raises Fault 503 when the others stay busy."""
        wanted = entry.source.weight
        if self.budget is None:
            return
        if wanted > self.budget:
            raise Fault(503, "the model is larger than the memory that was given to this server")
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience), self._changed:
                while self._taken() + wanted > self.budget:
                    idle = [other for other in self.entries.values() if other.loaded is not None and not other.users]
                    if idle:
                        await self._unload(min(idle, key=lambda other: other.last_used))
                    else:
                        await self._changed.wait()
        if self._taken() + wanted > self.budget:
            raise Fault(503, "other models are busy and take the memory; try again", retry_after=10)

    def _taken(self) -> int:
        return sum(entry.source.weight for entry in self.entries.values() if entry.loaded is not None)

    async def _unload(self, entry: Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is not None:
            await loaded.service.close(0)
            self.log.write("unloaded", model=entry.source.name)
            del loaded
            await asyncio.to_thread(_collect)

    async def _unload_idle(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(TICK, seconds))
            for entry in self.entries.values():
                quiet = time.monotonic() - entry.last_used
                if entry.loaded is not None and not entry.users and quiet >= seconds:
                    await self._unload(entry)


def _collect() -> None:
    """Modules refer to each other in circles; then the C library gives what is free back to the system."""
    gc.collect()
    give_back()


def _seen(task: asyncio.Task[Loaded]) -> None:
    """Whoever asked may have gone: an error that nobody waits for is no news."""
    if not task.cancelled():
        task.exception()
