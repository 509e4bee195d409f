"""Many streams at once, some of whose clients leave, for minutes: errors, leaks, cross-talk, memory, speed.

python -m benchmarks.serve_load MODEL [--streams 32] [--minutes 10] [--leave 0.25] [--vs-llama-server PATH] ...

First every prompt is asked alone; a stream under load must say the same. A last line of JSON
has the figures; the exit status is 1 when something that must hold did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.served import Served, process, served
from benchmarks.streams import Heard, in_ms, percentile, stream
from pocketgem.engine.scheduler import Scheduler
from pocketgem.serve.server import new_loop

WORDS = ("river", "stone", "window", "garden", "letter", "market", "winter", "engine", "harbour", "candle", "forest")
SAMPLE_SECONDS = 1.0
FLAT = 0.03  # of resident memory, from the end of the first third on
FREED_SECONDS = 0.25
PLACES = Scheduler().max_running


@dataclass
class Load:
    """What is asked, and how."""

    streams: int
    seconds: float
    leave: float
    prompts: list[dict[str, Any]]
    tokens: int
    rounds: int = 1


@dataclass
class Seen:
    """What came of it."""

    whole: list[Heard] = field(default_factory=list)
    left: list[Heard] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    crossed: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0  # that came within them


def bodies(count: int, numbers: int, tokens: int) -> list[dict[str, Any]]:
    """Different prompts whose answers no rounding changes, and none of which is another's: rows of numbers.

    How many rows a step has changes the last bits of a result, and with them what is drawn or where two ids are as
    likely; who goes on counting from 4,200 has only one way.
    """
    found = []
    for start in range(1000, 1000 * (count + 1), 1000):
        text = ", ".join(str(start + number) for number in range(numbers)) + ","
        found.append({"prompt": text, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0})
    return found


async def alone(server: Served, load: Load) -> list[Heard]:
    return [(await stream(f"{server.url}/v1/completions", body)).settle() for body in load.prompts]


async def together(server: Served, load: Load, expected: list[Heard]) -> Seen:
    """The load for one round. What is written after its end, by fewer and fewer streams, is not counted."""
    seen, began = Seen(seconds=load.seconds / load.rounds), time.perf_counter()
    end = began + seen.seconds
    watch = asyncio.ensure_future(_watch(server, seen, began))
    visits = await asyncio.gather(*(_visitor(server, load, number, end) for number in range(load.streams)))
    watch.cancel()
    for which, heard in (one for found in visits for one in found):
        _judge(seen, heard.settle(), expected[which].text)
    seen.tokens = sum(one.began + when <= end for one in (*seen.whole, *seen.left) for when in one.times)
    return seen


async def _visitor(server: Served, load: Load, number: int, end: float) -> list[tuple[int, Heard]]:
    """What one of the streams heard, and to which prompts. It is read when the round is over."""
    dice, found = random.Random(number), []
    while time.perf_counter() < end:
        which = dice.randrange(len(load.prompts))
        leave_after = dice.randrange(load.tokens) if dice.random() < load.leave else None
        heard = await stream(f"{server.url}/v1/completions", load.prompts[which], leave_after=leave_after)
        found.append((which, heard))
        if heard.refused:
            await asyncio.sleep(0.1)
    return found


def _judge(seen: Seen, heard: Heard, expected: str) -> None:
    if heard.problem:
        seen.problems.append(heard.problem)
    else:
        (seen.left if heard.left else seen.whole).append(heard)
        seen.crossed += not expected.startswith(heard.text)


async def _watch(server: Served, seen: Seen, began: float) -> None:
    while True:
        seen.memory.append((time.perf_counter() - began, server.rss()))
        await asyncio.sleep(SAMPLE_SECONDS)


def rate(seen: Seen) -> float:
    """Tokens a second, of streams that were left too: numbers, of which every token is a piece."""
    return seen.tokens / seen.seconds


def joined(rounds: list[Seen]) -> Seen:
    """All rounds as if they had been one."""
    found = Seen()
    for seen in rounds:
        found.whole += seen.whole
        found.left += seen.left
        found.problems += seen.problems
        found.crossed += seen.crossed
        found.memory += [(found.seconds + when, size) for when, size in seen.memory]
        found.seconds += seen.seconds
        found.tokens += seen.tokens
    return found


def growth(memory: list[tuple[float, int]]) -> float:
    """The share by which memory grows over the last two thirds, along the straight line that fits best."""
    late = memory[len(memory) // 3 :]
    if len(late) < 3:
        return 0.0
    mean_time = sum(when for when, _ in late) / len(late)
    mean = sum(size for _, size in late) / len(late)
    spread = sum((when - mean_time) ** 2 for when, _ in late)
    slope = sum((when - mean_time) * (size - mean) for when, size in late) / spread
    return slope * (late[-1][0] - late[0][0]) / mean


# ---- ours alone: what its metrics tell ------------------------------------------------------------------------------


def held(server: Served) -> dict[str, float]:
    """Requests that run and wait, and bytes of cache that running requests hold."""
    text = server.get("/metrics")
    names = {"running": "pocketgem_running{", "waiting": "pocketgem_waiting{"}
    found = {name: _sum(text, re.escape(start)) for name, start in names.items()}
    return {**found, "cache_bytes": _sum(text, r'pocketgem_cache_bytes\{[^}]*of="running"')}


def _sum(text: str, start: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(start, line))


async def settled(server: Served, seconds: float = 10.0) -> dict[str, float]:
    """What is still held once there is nothing to do."""
    end = time.monotonic() + seconds
    while any((now := held(server)).values()) and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return now


async def freed(server: Served, load: Load, times: int) -> dict[str, list[float]]:
    """Seconds from a closed connection to a server that holds nothing: within an answer, and within a long prompt."""
    found: dict[str, list[float]] = {"answer": [], "prompt": []}
    for number in range(times):
        if number % 4 == 0:  # in the midst of a prompt that nobody has read before
            text, leave_after = f"{number} " + " ".join(WORDS * 100), 0
        else:
            text, leave_after = load.prompts[number % len(load.prompts)]["prompt"], 3
        body = {"prompt": text, "max_tokens": 2000, "min_tokens": 2000}
        await stream(f"{server.url}/v1/completions", body, leave_after=leave_after)
        began = time.perf_counter()
        while any(held(server).values()):
            if time.perf_counter() - began > 30:
                break
            await asyncio.sleep(0.001)
        found["answer" if leave_after else "prompt"].append(time.perf_counter() - began)
    return found


# ---- figures --------------------------------------------------------------------------------------------------------


def figures(seen: Seen) -> dict[str, Any]:
    gaps = [gap for heard in (*seen.whole, *seen.left) for gap in heard.gaps]
    first = [heard.times[0] for heard in (*seen.whole, *seen.left) if heard.times]
    sizes = [size for _, size in seen.memory]
    return {
        "seconds": round(seen.seconds, 1),
        "answers": len(seen.whole),
        "left": len(seen.left),
        "problems": len(seen.problems),
        "first_problems": seen.problems[:3],
        "crossed": seen.crossed,
        "tokens_per_second": round(rate(seen), 2),
        "first_token_ms": in_ms(first),
        "between_tokens_ms": in_ms(gaps),
        "rss_mb": [round(size / 1e6, 1) for size in (*sizes[:: max(1, len(sizes) // 12)], max(sizes))],  # then the peak
        "rss_growth": round(growth(seen.memory), 4),
    }


async def ours(args: argparse.Namespace, load: Load) -> dict[str, Any]:
    options = ["--context", str(args.context), "--max-requests", str(2 * load.streams + 8)]
    with served(args.model, *options, *args.option) as server:
        expected = await alone(server, load)
        solo = [gap for heard in expected for gap in heard.gaps]
        rounds, bench = [], []
        for _ in range(load.rounds):
            if args.bench:  # beside each round, as the machine is then
                bench.append(await asyncio.to_thread(batch_figure, args, load.streams))
            rounds.append(await together(server, load, expected))
        seen = joined(rounds)
        left_over = await settled(server)
        again = await alone(server, load)
        times = await freed(server, load, args.disconnects)
        changed = sum(one.text != other.text for one, other in zip(expected, again, strict=True))
        return {
            **figures(seen),
            **beside(rounds, bench),
            "alone_between_tokens_ms": in_ms(solo),
            "held_afterwards": left_over,
            "changed_afterwards": changed,
            "disconnect_to_freed_ms": {name: in_ms(seconds) for name, seconds in times.items()},
            "step_alone_ms": round(1e3 * percentile(solo, 0.5), 2),
        }


async def llama(args: argparse.Namespace, load: Load) -> dict[str, Any]:
    """llama-server on the same file, as many slots as we have places."""
    slots = min(load.streams, PLACES)
    command = [args.vs_llama_server, "-m", args.llama_model or args.model, "-c", str(args.context * slots), "-np",
               str(slots), "--host", "127.0.0.1", "-t", str(args.threads or os.cpu_count())]  # fmt: skip
    os.environ["LD_LIBRARY_PATH"] = str(Path(args.vs_llama_server).resolve().parent)
    bodies = [{**one, "ignore_eos": True} for one in load.prompts]
    for one in bodies:
        one.pop("min_tokens")
    load = Load(load.streams, load.seconds, load.leave, bodies, load.tokens)
    with process(command) as server:
        expected = await alone(server, load)
        seen = await together(server, load, expected)
        solo = [gap for heard in expected for gap in heard.gaps]
        return {**figures(seen), "alone_between_tokens_ms": in_ms(solo)}


def batch_figure(args: argparse.Namespace, streams: int) -> float:
    """Tokens a second that ``pocketgem bench`` makes of as many conversations as the server runs at once."""
    sequences = str(min(streams, PLACES))
    command = [sys.executable, "-m", "pocketgem", "bench", args.model, "--prefill", "64", "--depth", "64", "--decode",
               "64", "--sequences", sequences, "--runs", "1", "--json"]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    row = next(row for row in found["rows"] if row["row"] == f"{sequences} sequences")
    return float(row["decode_tokens_per_s"])


def beside(rounds: list[Seen], bench: list[float]) -> dict[str, Any]:
    """What share of ``bench``'s figure the server reaches, round by round."""
    if not bench:
        return {}
    shares = [rate(seen) / figure for seen, figure in zip(rounds, bench, strict=True)]
    rates = {"round_tokens_per_second": [round(rate(seen), 1) for seen in rounds], "bench_tokens_per_second": bench}
    spread = [round(min(shares), 3), round(max(shares), 3)]
    return {**rates, "share_of_bench": round(statistics.median(shares), 3), "share_of_bench_spread": spread}


def broken(found: dict[str, Any]) -> list[str]:
    """What must hold and does not."""
    wrong = [name for name in ("problems", "crossed", "changed_afterwards") if found[name]]
    wrong += ["held_afterwards"] if any(found["held_afterwards"].values()) else []
    wrong += ["rss_growth"] if found["rss_growth"] > FLAT else []
    slow = found["disconnect_to_freed_ms"]["answer"]["p99"] > 1e3 * FREED_SECONDS  # of a prompt one chunk may be longer
    return wrong + (["disconnect_to_freed_ms"] if slow else [])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--leave", type=float, default=0.25, help="share of streams whose client leaves early")
    parser.add_argument("--prompts", type=int, default=24, help="different ones")
    parser.add_argument("--numbers", type=int, default=12, help="of a prompt, about six tokens each")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--disconnects", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--option", action="append", default=[], help="one more word for pocketgem serve; repeatable")
    parser.add_argument("--bench", action="store_true", help="run pocketgem bench too, before each round")
    parser.add_argument("--rounds", type=int, default=1, help="parts of the minutes")
    parser.add_argument("--vs-llama-server", metavar="PATH")
    parser.add_argument("--llama-model", metavar="FILE", help="where MODEL is no file that llama-server can open")
    args = parser.parse_args()
    prompts = bodies(args.prompts, args.numbers, args.tokens)
    load = Load(args.streams, 60 * args.minutes, args.leave, prompts, args.tokens, args.rounds)
    if args.threads:
        args.option += ["--threads", str(args.threads)]
    found: dict[str, Any] = {"streams": args.streams, "tokens": args.tokens}
    with asyncio.Runner(loop_factory=new_loop) as runner:  # a light one: it takes from the cores that it measures
        found["ours"] = runner.run(ours(args, load))
        if args.vs_llama_server:
            found["llama_server"] = runner.run(llama(args, load))
    found["broken"] = broken(found["ours"])
    print(json.dumps(found))
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
