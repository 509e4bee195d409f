"""Experts under a memory limit the kernel enforces, beside llama.cpp's mapping of the same file under the same limit.

    python -m benchmarks.experts MODEL.gguf --limit 6GiB --experts 4.2GiB --peer-python PYTHON --runs 2

Runs alternate, a fresh process and a fresh memory cgroup each; the model's files are dropped from the page cache before
each run, so that every run starts cold and pays for its own pages. A run reads a prompt, then writes tokens; the last
``--measure`` of them count, after ``--warm`` that fill the cache. One JSON line a run, then a summary. What the kernel
saw is printed with each: the group's peak (page cache included), times it met its limit, and kills.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.limited import Group
from pocketgem.sizes import parse_size

WORKERS = {"pocketgem": "pocketgem.bench.worker", "llama.cpp": "pocketgem.bench.peers.llama_cpp"}
VOCABULARY = 262_144


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_rate(path: Path, size: int, threads: int, total: int = 1 << 30) -> float:
    """GB/s of direct reads of ``size`` bytes at spread-out places, or one after another if ``threads`` is 0."""
    import mmap
    import random

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    length, dice = os.fstat(descriptor).st_size, random.Random(size)
    count = total // size
    places = iter(
        [i * size for i in range(count)]
        if threads == 0
        else [dice.randrange((length - size) // 4096) * 4096 for _ in range(count)]
    )
    lock = threading.Lock()

    def work() -> None:
        buffer = mmap.mmap(-1, size)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            os.preadv(descriptor, [buffer], place)

    began = time.perf_counter()
    readers = [threading.Thread(target=work) for _ in range(threads or 4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.close(descriptor)
    return count * size / (time.perf_counter() - began) / 1e9


def run(subject: str, arguments: argparse.Namespace, number: int) -> dict[str, object]:
    """One cold process: load, read the prompt, warm the cache, measure."""
    packed = arguments.model.with_name(f"{arguments.model.name}.pocketgem")
    drop([path for path in (arguments.model, packed) if path.exists()])
    options: dict[str, object] = {
        "model": str(arguments.model),
        "threads": arguments.threads,
        "context": arguments.prompt + arguments.warm + arguments.measure + 8,
        "vocabulary": VOCABULARY,
    }
    if subject == "pocketgem":
        options |= {"keep_packed": True, "expert_memory": parse_size(arguments.experts)}
    else:  # its own second form of the weights would not fit
        options |= {"mapped": True}
    command = {"decode": arguments.warm + arguments.measure, "depth": arguments.prompt, "seed": number}
    python = sys.executable if subject == "pocketgem" else arguments.peer_python
    home = str(Path(__file__).resolve().parents[1] / "src")
    with Group(parse_size(arguments.limit)) as group:
        began = time.perf_counter()
        answers: list[dict[str, object]] = []
        read_end, write_end = os.pipe()
        os.write(write_end, json.dumps(command).encode() + b"\n")
        os.close(write_end)
        log = open(arguments.log, "ab") if arguments.log else subprocess.DEVNULL  # noqa: SIM115
        out_read, out_write = os.pipe()

        def listen() -> None:
            with os.fdopen(out_read) as lines:
                for line in lines:
                    answers.append({**json.loads(line), "at": time.perf_counter() - began})

        listener = threading.Thread(target=listen)
        listener.start()
        held = group.run(
            [python, "-m", WORKERS[subject], json.dumps(options)],
            {**os.environ, "PYTHONPATH": home},
            stdin=read_end,
            stdout=out_write,
            stderr=log,
        )
        os.close(read_end)
        os.close(out_write)
        listener.join()
    found: dict[str, object] = {"subject": subject, "run": number, "kernel": asdict(held)}
    if len(answers) < 2 or "seconds" not in answers[1]:
        return found | {"failed": answers[-1] if answers else "no answer"}
    seconds = answers[1]["seconds"]
    assert isinstance(seconds, list)
    measured = seconds[arguments.warm :]
    return (
        found
        | {
            "load_s": answers[0]["load_s"],
            "prompt_s": answers[1]["at"] - answers[0]["at"] - sum(seconds),  # type: ignore[operator]
            "warm_tokens_per_s": round(arguments.warm / sum(seconds[: arguments.warm]), 3) if arguments.warm else None,
            "tokens_per_s": round(len(measured) / sum(measured), 3),
            "slowest_s": max(measured),
            "costs": answers[1].get("costs"),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", default="6GiB")
    parser.add_argument("--experts", default="4GiB")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python; left out: pocketgem alone")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--warm", type=int, default=8)
    parser.add_argument("--measure", type=int, default=16)
    parser.add_argument("--disk", action="store_true", help="measure the disk first")
    parser.add_argument("--log", help="a file for what the workers say on stderr")
    arguments = parser.parse_args()
    if arguments.disk:
        for size, threads in ((4 << 20, 0), (1114112, 4), (3342336, 4), (9924608, 4)):
            drop([arguments.model])
            rate = disk_rate(arguments.model, size, threads)
            how = "one after another" if threads == 0 else "here and there"
            print(json.dumps({"disk_read_bytes": size, "how": how, "GB_per_s": round(rate, 3)}), flush=True)
    rates: dict[str, list[float]] = {}
    for number in range(arguments.runs):
        for subject in ("pocketgem", *(["llama.cpp"] if arguments.peer_python else [])):
            found = run(subject, arguments, number)
            print(json.dumps(found), flush=True)
            if "tokens_per_s" in found:
                rates.setdefault(subject, []).append(float(str(found["tokens_per_s"])))
    summary = {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}
    print(json.dumps({"model": arguments.model.name, "limit": arguments.limit, "tokens_per_s": summary}))


if __name__ == "__main__":
    main()
