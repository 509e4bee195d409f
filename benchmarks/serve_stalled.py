"""What readers that stopped reading cost: memory of the server for each, and the time between others' tokens.

python -m benchmarks.serve_stalled MODEL [--readers 500] [--seconds 20]

Each asks for a stream with log-probabilities and reads nothing of it. A few others read as they should, before and
while the first hold their connections open. A last line of JSON has the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.serve_load import bodies, held
from benchmarks.served import Served, served
from benchmarks.streams import in_ms, stream

HEALTHY = 4
PLACES = 16  # answers that are made side by side: their caches are there before memory is measured
MOST_BYTES = 256 << 10
SLOWER = 1.1


def asked(tokens: int) -> dict[str, Any]:
    return {"prompt": "Once upon a time", "max_tokens": tokens, "min_tokens": tokens, "logprobs": 20}


def stop_reading(server: Served, stack: ExitStack, tokens: int) -> socket.socket:
    """A connection that has asked and whose buffer is as small as the system allows."""
    payload = json.dumps({**asked(tokens), "stream": True}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return sock


async def healthy(server: Served, seconds: float, tokens: int) -> list[float]:
    """Seconds between tokens of streams that are read, while nothing else runs."""

    async def visit(number: int) -> list[float]:
        gaps, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            heard = await stream(f"{server.url}/v1/completions", bodies(HEALTHY, 8, tokens)[number])
            if heard.problem:
                raise RuntimeError(heard.problem)
            gaps += heard.gaps
        return gaps

    return [gap for gaps in await asyncio.gather(*map(visit, range(HEALTHY))) for gap in gaps]


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    options = ["--max-requests", str(args.readers + 50), "--context", "1024", *args.option]
    with served(args.model, *options) as server, ExitStack() as stack:
        await healthy(server, args.seconds / 4, 64)
        await asyncio.gather(*(stream(f"{server.url}/v1/completions", asked(args.tokens)) for _ in range(PLACES)))
        before = await healthy(server, args.seconds, 64)
        size = server.rss()
        for _ in range(args.readers):
            stop_reading(server, stack, args.tokens)
        peak = await _until_made(server)
        while_stalled = await healthy(server, args.seconds, 64)
        peak = max(peak, server.rss())
        last = {"before": in_ms(before), "while": in_ms(while_stalled)}
        slower = last["while"]["p99"] / last["before"]["p99"] if last["before"]["p99"] else 0.0
        each = (peak - size) / args.readers
        return {"readers": args.readers, "bytes_each": round(each), "between_tokens_ms": last,
                "p99_ratio": round(slower, 3)}  # fmt: skip


async def _until_made(server: Served) -> int:
    """Wait until all answers are made or ended; the most memory meanwhile."""
    peak, end = server.rss(), time.monotonic() + 600
    while time.monotonic() < end:
        now = held(server)
        peak = max(peak, server.rss())
        if not now["running"] and not now["waiting"]:
            break
        await asyncio.sleep(0.05)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_stalled")
    parser.add_argument("model")
    parser.add_argument("--readers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=80, help="of an answer that nobody reads, about 2 KB each")
    parser.add_argument("--option", action="append", default=[], help="one more word for pocketgem serve; repeatable")
    args = parser.parse_args()
    found = asyncio.run(measure(args))
    found["broken"] = [name for name, wrong in {
        "bytes_each": found["bytes_each"] > MOST_BYTES, "p99_ratio": found["p99_ratio"] > SLOWER,
    }.items() if wrong]  # fmt: skip
    print(json.dumps(found))
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
