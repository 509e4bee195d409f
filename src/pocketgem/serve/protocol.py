"""uvicorn's HTTP/1.1 with an end to patience: heads that do not come, too many connections, stalled readers."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from pocketgem.serve.settings import Settings

HIGH_WATER = 64 << 10  # bytes that wait for a slow reader before the application waits too
KERNEL_BYTES = 64 << 10  # the same in the system's buffer of a connection


def protocol_class(settings: Settings) -> type[H11Protocol]:
    """The protocol for ``uvicorn.Config(http=...)``."""

    class Bounded(Protocol):
        patience, most, stall = settings.header_seconds, settings.max_connections, settings.stall_seconds

    return Bounded


class Protocol(H11Protocol):
    """One connection. ``scope["state"]["abort"]`` drops it, ``["paused"]`` tells whether what is sent now must wait."""

    patience, most, stall = 10.0, 4096, 60.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "abort": self._abort, "paused": self._paused}, _loop)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._expect_head()
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._abort()  # a second request before the first is answered: behind it nobody sees the client leave

    def on_response_complete(self) -> None:
        """What is left of an answer may wait for its reader, but not for ever."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.stall, self._abort_unsent)

    def _abort_unsent(self) -> None:
        if self.transport.get_write_buffer_size():
            self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has a head that is too large, in the same form as every other error."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._abort()  # in the middle of an answer there is no place for another
            return
        error = {"message": "the request is not valid HTTP/1.1", "type": "invalid_request_error"}
        body = json.dumps({"error": {**error, "param": None, "code": "bad_request"}}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.patience, self._abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _paused(self) -> bool:
        return self.flow.write_paused

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
