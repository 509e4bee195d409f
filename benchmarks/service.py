"""A crowd on one engine: streams that begin, share their beginnings, and are given up; no HTTP between.

    python -m benchmarks.service gemma-3-270m --streams 32 --minutes 10

Reports tokens a second, times to the first token and between tokens, resident memory before and after, and how many
answers were not those of a solo run (there must be none).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

from pocketgem import LLM, SamplingParams
from pocketgem.engine.request import Request
from pocketgem.service import Service

TALKS, TURN, ANSWER = 24, (20, 120), (8, 64)  # conversations, tokens of a question, tokens of an answer
LEAVES = 0.2  # of the requests are given up on the way


@dataclass
class Seen:
    """What was measured, in seconds and tokens."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    reused: int = 0
    prompted: int = 0
    left: int = 0
    answers: dict[tuple[tuple[int, ...], int], list[int]] = field(default_factory=dict)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def conversations(llm: LLM, draw: random.Random) -> Iterator[Request]:
    """Endless requests: each goes on with one of the conversations, or begins it anew."""
    talks: list[list[int]] = [[2] for _ in range(TALKS)]
    vocabulary = range(1000, min(200_000, llm.tokenizer.vocab_size))
    for number in count():
        talk = draw.randrange(TALKS)
        talks[talk] += draw.choices(vocabulary, k=draw.randint(*TURN))
        if len(talks[talk]) > 800:
            talks[talk] = [2, *draw.choices(vocabulary, k=draw.randint(*TURN))]
        params = SamplingParams(max_tokens=draw.randint(*ANSWER))
        yield Request(f"r{number}", tuple(talks[talk]), params, owner=str(talk))


async def stream(service: Service, requests: Iterator[Request], draw: random.Random, seen: Seen, until: float) -> None:
    while time.perf_counter() < until:
        request = next(requests)
        leaves = draw.randint(0, 30) if draw.random() < LEAVES else None
        began, times, ids = time.perf_counter(), list[float](), list[int]()
        run = service.submit(request)
        outputs = service.outputs(run)
        async for output in outputs:
            if output.sampled is not None:
                times.append(time.perf_counter())
                ids.append(output.sampled.id)
            if leaves is not None and len(ids) >= leaves:
                seen.left += 1
                break
        await outputs.aclose()
        seen.tokens += len(ids)
        seen.prompted, seen.reused = seen.prompted + run.stats.prompt_tokens, seen.reused + run.stats.reused_tokens
        if times:
            seen.first.append(times[0] - began)
            seen.between += [b - a for a, b in pairwise(times)]
            seen.answers[request.prompt_ids, request.params.max_tokens or 0] = ids


async def crowd(llm: LLM, streams: int, seconds: float, seed: int) -> tuple[Seen, list[int]]:
    """Let them run; returns what was seen and the resident memory at ten moments."""
    draw, seen, memory = random.Random(seed), Seen(), list[int]()
    requests, service = conversations(llm, draw), Service(llm, max_waiting=streams)
    service.start()
    until = time.perf_counter() + seconds
    tasks = [asyncio.create_task(stream(service, requests, draw, seen, until)) for _ in range(streams)]
    for _ in range(10):
        await asyncio.sleep(seconds / 10)
        memory.append(resident())
    await asyncio.gather(*tasks)
    await service.close(None)
    if llm.engine.states or llm.engine.scheduler.used:
        raise SystemExit("something is still held")
    return seen, memory


def wrong(llm: LLM, seen: Seen, most: int) -> int:
    """How many of the answers differ from a solo run that reuses nothing."""
    llm.engine.prefixes.clear()
    llm.engine.prefixes.budget = 0
    found = 0
    for (prompt, tokens), ids in list(seen.answers.items())[:: max(1, len(seen.answers) // most)]:
        found += list(llm.generate(prompt, params=SamplingParams(max_tokens=tokens)).ids)[: len(ids)] != ids
    return found


def share(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--checked", type=int, default=40, help="answers compared with solo runs")
    parser.add_argument("--kept", default="256MiB")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    llm = LLM.load(options.model, context=2048, kept=options.kept)
    llm.engine.scheduler.max_running = options.streams
    began = time.perf_counter()
    seen, memory = asyncio.run(crowd(llm, options.streams, 60 * options.minutes, options.seed))
    seconds = time.perf_counter() - began
    report = {
        "requests": len(seen.first), "given_up": seen.left, "tokens_per_s": seen.tokens / seconds,
        "prompt_reused": seen.reused / max(seen.prompted, 1),
        "first_s": [share(seen.first, 0.5), share(seen.first, 0.99)],
        "between_s": [share(seen.between, 0.5), share(seen.between, 0.99)],
        "resident_mib": [size >> 20 for size in memory],
        "wrong": wrong(llm, seen, options.checked),
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
