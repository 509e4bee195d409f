"""How fast one model loads, reads and writes on this machine: medians of several runs, with their spread.

    python -m benchmarks.speed [MODEL] [--prompt 512] [--new 64] [--runs 5] [--dtype bfloat16] [--threads 2]

Prints a table, then one JSON line. Decode is also given in GB/s of weights read, and as a share of the bandwidth that a
plain sum over a large array reaches here. Memory is the kernel's own high-water mark of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pocketgem import LLM, SamplingParams
from pocketgem.kernels import status

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
BYTES = 1 << 30


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    llm = LLM.load(options.model, dtype=DTYPES[options.dtype])
    loaded = time.perf_counter() - began
    llm.engine.prefixes.capacity = 0  # every run reads its whole prompt
    runs = [measure(llm, options.prompt, options.new, seed) for seed in range(options.runs + 1)][
        1:
    ]  # the first warms up
    bandwidth = spread([read_bandwidth() for _ in range(3)])
    report = summary(llm, runs, bandwidth, loaded, options)
    show(report)
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="gemma-3-270m")
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    return parser.parse_args()


def measure(llm: LLM, prompt: int, new: int, seed: int) -> dict[str, float]:
    """One request: random ids in, exactly ``new`` ids out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, llm.model.config.vocab_size, (prompt,), generator=generator).tolist()
    stats = llm.generate(ids, params=SamplingParams(max_tokens=new)).stats
    return {
        "first_token_s": stats.prefill_seconds,
        "prefill_tok_s": stats.prefill_rate or 0.0,
        "decode_tok_s": stats.decode_rate or 0.0,
    }


def read_bandwidth() -> float:
    """GB/s of summing 1 GiB of int64, all threads: what reading weights could reach at best."""
    data = torch.ones(BYTES // 8, dtype=torch.int64)
    return BYTES / timed(data.sum) / 1e9


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def weight_bytes(llm: LLM) -> int:
    """Bytes of weights one decode step reads: every parameter once; of the embedding the head's pass."""
    return sum(tensor.nbytes for tensor in {id(p): p for p in llm.model.parameters()}.values())


def peak_memory(options: argparse.Namespace) -> float:
    """VmHWM in MiB of a fresh process that loads the model and answers once."""
    code = (
        "import sys, torch; from pocketgem import LLM, SamplingParams\n"
        "torch.set_num_threads(int(sys.argv[3])); dtype = getattr(torch, sys.argv[2], None)  # 'auto' is no type\n"
        "LLM.load(sys.argv[1], dtype=dtype).generate(list(range(300, 812)), params=SamplingParams(max_tokens=8))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    call = [sys.executable, "-c", code, options.model, options.dtype, str(options.threads)]
    return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout) / 1024


def summary(
    llm: LLM, runs: list[dict[str, float]], bandwidth: list[float], loaded: float, options: argparse.Namespace
) -> dict[str, object]:
    read = weight_bytes(llm) / 1e9
    decode = spread([run["decode_tok_s"] for run in runs])
    return {
        "model": Path(options.model).name,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "threads": options.threads,
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "kernels": status.reason,
        "torch": torch.__version__,
        "load_s": round(loaded, 2),
        "first_token_s": spread([run["first_token_s"] for run in runs]),
        "prefill_tok_s": spread([run["prefill_tok_s"] for run in runs]),
        "decode_tok_s": decode,
        "weights_read_GB_per_token": round(read, 3),
        "decode_GB_s": [round(rate * read, 2) for rate in decode],
        "read_bandwidth_GB_s": bandwidth,
        "share_of_bandwidth": round(decode[1] * read / bandwidth[1], 2),
        "peak_memory_MiB": round(peak_memory(options)),
    }


def spread(values: list[float]) -> list[float]:
    """[least, median, most]"""
    return [round(value, 3) for value in (min(values), statistics.median(values), max(values))]


def show(report: dict[str, object]) -> None:
    for key, value in report.items():
        shown = f"{value[1]}  ({value[0]} to {value[2]})" if isinstance(value, list) else value
        print(f"{key:>26}  {shown}")


if __name__ == "__main__":
    main()
