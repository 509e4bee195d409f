"""What it costs to leave the per-layer table on disk: decode and prefill beside the same model with it in RAM.

    python -m benchmarks.rows MODEL.gguf --threads 2 [--runs 3] [--llama-bench PATH]

Every place has a process of its own; they take turns, row by row, so that a busy minute hits all alike. ``cold``: the
table's and the embedding's pages leave the page cache before the row (``posix_fadvise``), and what the disk had to read
is the kernel's number (``/proc/self/io``). Each prompt is another one: no row is at hand from the run before. The last
line is JSON. ``llama-bench`` is llama.cpp's own program, run with its lazy mode off and on in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pocketgem import LLM
from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.engine.request import Request, SamplingParams

PLACES = ("ram", "disk")
DEPTH = 128  # prompt tokens before the decode steps


class Side:
    """One model, in a process of its own, driven step by step."""

    def __init__(self, model: str, place: str, threads: int) -> None:
        self.checkpoint = open_checkpoint(resolve(model, offline=True))
        self.llm = LLM.load(self.checkpoint, ple=place, threads=threads)
        self.engine = self.llm.engine
        self.engine.prefixes.budget = 0  # every prompt is read whole

    def measure(self, kind: str, size: int, seed: int, cold: bool) -> dict[str, float]:
        """Seconds: of a prompt of ``size`` tokens, or the median of ``size`` steps; and bytes the disk read."""
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self.llm.tokenizer.vocab_size
        ids = torch.randint(0, vocabulary, (size if kind == "prefill" else DEPTH,), generator=generator).tolist()
        sequence = self.engine.submit(Request(f"{seed}", tuple(ids), SamplingParams(temperature=1.0, seed=seed)))
        if kind == "decode":
            self._until_first(sequence)
        if cold:
            forget(self.checkpoint)
        before, seconds = bytes_read(), []
        for _ in range(1 if kind == "prefill" else size):
            began = time.perf_counter()
            self._until_first(sequence) if kind == "prefill" else self.engine.step()
            seconds.append(time.perf_counter() - began)
        found = (bytes_read() - before) / size
        self.engine.abort(sequence)
        return {"seconds": sum(seconds) / len(seconds), "disk_bytes_per_token": found}

    def _until_first(self, sequence: Any) -> None:
        while not sequence.output_ids:
            self.engine.step()


def forget(checkpoint: Checkpoint) -> None:
    """Take the pages of the tables out of the page cache."""
    for name in (names.TABLE, "embed_tokens.weight"):
        tensor = checkpoint.tensors[name]
        if isinstance(tensor, StoredTensor):
            with tensor.source.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_DONTNEED)


def warm(checkpoint: Checkpoint) -> None:
    """Bring the pages of the tables into the page cache."""
    for name in (names.TABLE, "embed_tokens.weight"):
        tensor = checkpoint.tensors[name]
        if isinstance(tensor, StoredTensor):
            buffer = memoryview(bytearray(16 << 20))
            for start in range(tensor.start, tensor.end, len(buffer)):
                tensor.source.read_into(buffer[: tensor.end - start], start)


def bytes_read() -> int:
    """What this process had the disk read, so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


# ---- processes taking turns ------------------------------------------------------------------------------------------


def serve(model: str, place: str, threads: int) -> None:
    """The child: a line of JSON in, a line out."""
    side = Side(model, place, threads)
    side.measure("decode", 4, -1, False)
    print(json.dumps({"ready": place}), flush=True)
    for line in sys.stdin:
        print(json.dumps(side.measure(**json.loads(line))), flush=True)


@contextmanager
def child(model: str, place: str, threads: int) -> Iterator[Any]:
    command = [sys.executable, "-m", "benchmarks.rows", model, "--serve", place, "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def ask(**command: object) -> dict[str, float]:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            yield ask
        finally:
            process.stdin.close()


def rows_of(args: argparse.Namespace) -> list[tuple[str, str, int, bool]]:
    sizes = [int(size) for size in args.prefill.split(",")]
    plain = [("decode", args.steps), *(("prefill", size) for size in sizes)]
    return [
        (f"{kind} {size}{' cold' if cold else ''}", kind, size, cold) for cold in (False, True) for kind, size in plain
    ]


def compare(args: argparse.Namespace) -> list[dict[str, object]]:
    """Each row, by both places in turn, ``runs`` times."""
    rows, seconds, read = rows_of(args), dict[tuple[str, str], list[float]](), dict[tuple[str, str], list[float]]()
    checkpoint = open_checkpoint(resolve(args.model, offline=True))
    with ExitStack() as stack:
        asks = {place: stack.enter_context(child(args.model, place, args.threads)) for place in PLACES}
        for run in range(args.runs):
            warm(checkpoint)  # the cold rows of a run come last
            for number, (name, kind, size, cold) in enumerate(rows):
                for place in PLACES if (run + number) % 2 else reversed(PLACES):
                    time.sleep(0.2)
                    found = asks[place](kind=kind, size=size, seed=run * len(rows) + number, cold=cold)
                    seconds.setdefault((name, place), []).append(found["seconds"])
                    read.setdefault((name, place), []).append(found["disk_bytes_per_token"])
                    print(f"run {run}, {name}, {place}: {found}", file=sys.stderr, flush=True)
    return [row_of(name, size if kind == "prefill" else 1, seconds, read) for name, kind, size, _ in rows]


def row_of(name: str, tokens: int, seconds: Any, read: Any) -> dict[str, object]:
    ratios = [ram / disk for ram, disk in zip(seconds[name, "ram"], seconds[name, "disk"], strict=True)]
    rates = {f"{place}_tokens_per_s": round(tokens / median(seconds[name, place]), 2) for place in PLACES}
    ratio = {"ratio": round(median(ratios), 3), "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)]}
    return {"row": name, **rates, **ratio, "disk_bytes_read_per_token": round(median(read[name, "disk"]))}


def llama(args: argparse.Namespace) -> list[dict[str, object]]:
    """llama.cpp with its lazy mode off and on, in turn; its own mmap holds the rest of the file in both."""
    found = dict[tuple[str, str], list[float]]()
    for _ in range(args.runs):
        for mode in ("off", "on"):
            command = [
                args.llama_bench,
                "-m",
                args.model,
                "-t",
                str(args.threads),
                "-lzm",
                mode,
                "-r",
                "1",
                "-o",
                "json",
            ]
            command += ["-p", args.prefill.split(",")[0], "-n", str(args.steps), "-ub", "512", "-b", "2048"]
            for test in json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout):
                name = f"prefill {test['n_prompt']}" if test["n_prompt"] else f"decode {test['n_gen']}"
                found.setdefault((name, mode), []).append(test["avg_ts"])
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        ratios = [on / off for on, off in zip(found[name, "on"], found[name, "off"], strict=True)]
        rates = {f"lazy_{mode}_tokens_per_s": round(median(found[name, mode]), 2) for mode in ("off", "on")}
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        lines.append({"row": name, **rates, "ratio": round(median(ratios), 3), "ratio_spread": spread})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prefill", default="512,2048")
    parser.add_argument("--llama-bench", default=None)
    parser.add_argument("--serve", choices=PLACES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.model, args.serve, args.threads)
    report = {"model": Path(args.model).name, "threads": args.threads, "runs": args.runs, "rows": compare(args)}
    if args.llama_bench:
        report["llama.cpp"] = llama(args)
    for row in [*report["rows"], *report.get("llama.cpp", [])]:
        print(row)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
