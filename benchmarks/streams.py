"""Streams of completions over bare sockets: a client light enough to run on the machine that it measures.

While a stream runs, its bytes are only counted and timed; what they say is read when somebody asks for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlsplit

EVENT = b"data: "
DONE = b"data: [DONE]"


@dataclass
class Heard:
    """What came of one stream, which ``began`` then. ``pieces``: seconds from the request, and the bytes that came."""

    began: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    left: bool = False  # by us
    lost: str | None = None  # no connection, or no longer one

    @cached_property
    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """What was sent, each with the time when its last byte came. For a stream that is over."""
        found, rest = [], b""
        for when, data in self.pieces:
            *lines, rest = (rest + data).split(b"\n")
            sent = (line for line in lines if line.startswith(EVENT) and not line.startswith(DONE))
            found += [(when, json.loads(line.removeprefix(EVENT))) for line in sent]
        return found

    @property
    def refused(self) -> bool:
        """Whether nothing but trouble came: to be known while others run."""
        return self.lost is not None or not (self.left or (self.pieces and b" 200 " in self.pieces[0][1]))

    @cached_property
    def problem(self) -> str | None:
        raw = b"".join(data for _, data in self.pieces)
        if self.lost is not None or (self.left and not raw):
            return self.lost
        if b" 200 " not in raw.partition(b"\n")[0]:
            return raw[:2000].decode("utf-8", "replace")
        failed = next((str(event["error"]) for _, event in self.events if "error" in event), None)
        return failed if failed or self.left or DONE in raw else "the stream broke off"

    @cached_property
    def text(self) -> str:
        return "".join(text for _, text in self._texts())

    @cached_property
    def times(self) -> list[float]:
        """When each piece of text came."""
        return [when for when, text in self._texts() if text]

    def settle(self) -> Self:
        """Read it, and keep no more than what was read."""
        _ = self.problem, self.text, self.times
        self.pieces = []
        self.__dict__.pop("events")
        return self

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def _texts(self) -> list[tuple[float, str]]:
        return [(when, choice["text"]) for when, event in self.events for choice in event.get("choices", ())]


class Ear(asyncio.Protocol):
    """Listens until the stream ends, or, with ``leave_after``, until so many events have come (0: the first byte)."""

    def __init__(self, heard: Heard, leave_after: int | None) -> None:
        self.heard, self.left = heard, leave_after
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.heard.pieces.append((time.perf_counter() - self.heard.began, data))
        if DONE in data:
            self._end()
        elif self.left is not None:
            self.left -= data.count(EVENT)
            if self.left <= 0:
                self.heard.left = True
                self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.lost = None if exc is None else f"the connection broke: {exc}"
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def stream(url: str, body: Mapping[str, object], *, leave_after: int | None = None) -> Heard:
    """Ask for a completion and hear it to its end, or close the connection after so many events (0: at once)."""
    heard, address = Heard(began=time.perf_counter()), urlsplit(url)
    asked = request(url, {**body, "stream": True, "stream_options": {"include_usage": True}})
    try:
        transport, ear = await asyncio.get_running_loop().create_connection(
            lambda: Ear(heard, leave_after), address.hostname, address.port
        )
    except OSError as error:
        heard.lost = f"no connection: {error}"
        return heard
    transport.write(asked)
    await ear.over
    transport.close()
    return heard


def request(url: str, body: Mapping[str, object]) -> bytes:
    """One POST on a connection of its own."""
    address, payload = urlsplit(url), json.dumps(body).encode()
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload


def percentile(values: list[float], share: float) -> float:
    """By rank, as every latency is told; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def in_ms(values: list[float]) -> dict[str, float]:
    return {name: round(1e3 * percentile(values, share), 2) for name, share in (("p50", 0.5), ("p99", 0.99))}
