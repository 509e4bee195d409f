"""Streams of completions over bare sockets: a client light enough to run on the machine that it measures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Heard:
    """What came of one stream. ``times``: when each piece came, in seconds from the request, which ``began`` then."""

    began: float = 0.0
    text: str = ""
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    left: bool = False  # by us
    problem: str | None = None

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def stream(url: str, body: Mapping[str, object], *, leave_after: int | None = None) -> Heard:
    """Ask for a completion and read it to its end, or close the connection after so many pieces (0: at once)."""
    heard = Heard(began=time.perf_counter())
    try:
        reader, writer = await ask(url, {**body, "stream": True, "stream_options": {"include_usage": True}})
    except OSError as error:
        heard.problem = f"no connection: {error}"
        return heard
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            heard.problem = (status + await reader.read(2000)).decode("utf-8", "replace")
            return heard
        while leave_after is None or len(heard.times) < leave_after:
            line = await reader.readline()
            if not line:
                heard.problem = "the stream broke off"
                return heard
            if line.startswith(b"data: ") and _note(heard, line[6:]):
                return heard
        heard.left = True
        return heard
    except OSError as error:
        heard.problem = f"the connection broke: {error}"
        return heard
    finally:
        writer.close()


async def ask(
    url: str, body: Mapping[str, object], **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked, with nothing read of the answer."""
    address, payload = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 24, **options)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
    await writer.drain()
    return reader, writer


def _note(heard: Heard, data: bytes) -> bool:
    """One event; whether it was the last."""
    if data.startswith(b"[DONE]"):
        return True
    event = json.loads(data)
    if "error" in event:
        heard.problem = str(event["error"])
        return True
    if usage := event.get("usage"):
        heard.tokens = usage["completion_tokens"]
    for choice in event["choices"]:
        heard.text += choice["text"]
        if choice["text"]:
            heard.times.append(time.perf_counter() - heard.began)
    return False


def percentile(values: list[float], share: float) -> float:
    """By rank, as every latency is told; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def in_ms(values: list[float]) -> dict[str, float]:
    return {name: round(1e3 * percentile(values, share), 2) for name, share in (("p50", 0.5), ("p99", 0.99))}
