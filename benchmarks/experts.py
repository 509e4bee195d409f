"""Experts under a memory limit the kernel enforces, beside llama.cpp's mapping of the same file under the same limit.

    python -m benchmarks.experts MODEL.gguf --limit 6GiB --experts 4.2GiB --peer-python PYTHON --runs 2

Runs alternate, a fresh process in a fresh memory cgroup each. The model's files are dropped from the page cache before
each, so that every run starts cold and is charged for its own pages. A run reads a prompt, then writes random tokens,
the same for both: ``--warm`` of them fill the cache, the next ``--measure`` count. A line of JSON for each run, with
what the kernel saw (peak with page cache, times the limit was met, kills), then a summary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.limited import Group
from pocketgem.sizes import parse_size

VOCABULARY = 262_144
HERE = Path(__file__).resolve().parents[1]


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(subject: str, arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    """One cold process."""
    packed = arguments.model.with_name(f"{arguments.model.name}.pocketgem")
    drop([path for path in (arguments.model, packed) if path.exists()])
    with tempfile.TemporaryDirectory() as folder, Group(parse_size(arguments.limit)) as group:
        result = Path(folder) / "result"
        options = {
            "subject": subject,
            "model": str(arguments.model),
            "threads": arguments.threads,
            "context": arguments.prompt + arguments.warm + arguments.measure + 8,
            "vocabulary": VOCABULARY,
            "experts": parse_size(arguments.experts) if arguments.experts else None,
            "prompt": arguments.prompt,
            "warm": arguments.warm,
            "measure": arguments.measure,
            "seed": seed,
            "result": str(result),
        }
        python = arguments.peer_python if subject == "llama.cpp" else sys.executable
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE / "src")])}
        command = [python, "-m", "benchmarks.experts_worker", json.dumps(options)]
        with open(arguments.log or os.devnull, "ab") as log:
            held = group.run(command, environment, stdout=subprocess.DEVNULL, stderr=log)
        found = json.loads(result.read_text()) if result.exists() else {"failed": held.rc}
    return {"subject": subject, "seed": seed, **found, "kernel": asdict(held)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", default="6GiB")
    parser.add_argument("--experts", default="4GiB", help="the budget; empty: all in memory")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python; left out: pocketgem alone")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first run's tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--warm", type=int, default=8)
    parser.add_argument("--measure", type=int, default=16)
    parser.add_argument("--log", help="a file for what the workers say on stderr")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        for subject in ("pocketgem", *(["llama.cpp"] if arguments.peer_python else [])):
            found = run(subject, arguments, seed)
            print(json.dumps(found), flush=True)
            if "measure" in found:
                rates.setdefault(subject, []).append(found["measure"]["tokens_per_s"])  # type: ignore[index]
    summary = {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}
    print(json.dumps({"model": arguments.model.name, "limit": arguments.limit, "tokens_per_s": summary}))


if __name__ == "__main__":
    main()
