"""A port, signals, and uvicorn between them and the application."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn

from pocketgem.errors import InputError
from pocketgem.serve.app import App
from pocketgem.serve.guard import MAX_HEAD
from pocketgem.serve.log import Bridge, Log
from pocketgem.serve.protocol import protocol_class
from pocketgem.serve.settings import Settings

BACKLOG = 1024
KEEP_ALIVE = 30  # seconds an idle connection stays open


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where the port is taken or the address is not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} on {host} is taken by another program; give --port") from error
        raise InputError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error


def address_of(sock: socket.socket) -> str:
    """``http://host:port`` for a person."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


class Server(uvicorn.Server):
    """Ends by itself after SIGTERM or Ctrl-C: requests may finish for a while. A second Ctrl-C ends at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again afterwards: a server that was asked to end ends well."""
        usual = {}
        with contextlib.suppress(ValueError):  # not in the main thread: somebody else looks after signals
            usual = {name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in usual.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            raise KeyboardInterrupt
        self.should_exit = True


def run(server: Server, sock: socket.socket) -> None:
    """Serve until something asks the server to end."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(server.serve([sock]))


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one, which is not on Windows: a token on its way out takes a sixth less of a core."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def server_of(app: App, settings: Settings, log: Log) -> Server:
    """uvicorn with nothing left to chance: which protocol, which limits, whose log."""
    config = uvicorn.Config(
        app,
        http=protocol_class(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        backlog=BACKLOG,
    )
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [Bridge(log)], False
    return Server(config)
