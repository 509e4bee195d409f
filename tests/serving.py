"""A server on a free port of this machine, in a thread of the test's process, with models that are loaded already.

    with running({"scripted": llm}) as server:
        server.http.post("/v1/completions", json={...})

What it holds can be looked at: ``server.service()``, ``server.lines`` of the log.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from pocketgem.llm import LLM
from pocketgem.serve.app import App
from pocketgem.serve.log import Log
from pocketgem.serve.metrics import Metrics
from pocketgem.serve.models import Registry, Source
from pocketgem.serve.server import Server, bind, run, server_of
from pocketgem.serve.settings import Settings
from pocketgem.serve.wiring import Serving
from pocketgem.service import Service

PATIENCE = 20.0  # seconds until a test gives up


@dataclass
class Running:
    """A server that answers."""

    port: int
    app: App
    server: Server
    log: io.StringIO
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def service(self, name: str | None = None) -> Service:
        entry = self.app.serving.registry.find(name)
        assert entry.loaded is not None
        return entry.loaded.service

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return all(not one.service.running and not one.service.waiting for one in self.app.serving.registry.loaded)


@contextmanager
def running(
    models: Mapping[str, LLM],
    settings: Settings | None = None,
    *,
    sources: list[Source] | None = None,
    **registry: Any,
) -> Iterator[Running]:
    """Serve ``models``, and ``sources`` that are loaded on demand."""
    settings = settings or Settings(port=0)
    known = [Source(name, lambda llm=llm: llm) for name, llm in models.items()]

    def whole(log: Log) -> App:
        registered = Registry([*known, *(sources or [])], log, **registry)
        return App(Serving(settings, registered, Metrics(), log), dict(models))

    with serving(whole, settings) as found:
        yield found


@contextmanager
def serving(make: Callable[[Log], App], settings: Settings) -> Iterator[Running]:
    """Serve an application that is made around a log."""
    written = io.StringIO()
    log = Log(written)
    sock = bind(settings.host, settings.port)
    port = sock.getsockname()[1]
    app = make(log)
    server = server_of(app, settings, log)
    thread = threading.Thread(target=lambda: run(server, sock), name="server")
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        found = Running(port, app, server, written)
        with found.http:
            yield found
    finally:
        server.should_exit = True
        thread.join(PATIENCE + settings.drain_seconds)
        sock.close()
        assert not thread.is_alive(), "the server does not end"


def post_head(path: str, length: int, *more: str) -> bytes:
    """The head of a POST of JSON, as bytes for a bare connection."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def wait_for(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Return as soon as ``true()`` is. Raises AssertionError when it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def events_of(text: str) -> list[tuple[str | None, Any]]:
    """(event, data) of a stream of server-sent events; data as JSON where it is, comments left out."""
    found: list[tuple[str | None, Any]] = []
    for block in text.split("\n\n"):
        name, data = None, None
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
        if data is not None:
            found.append((name, json.loads(data) if data[:1] in "{[" and data != "[DONE]" else data))
    return found
