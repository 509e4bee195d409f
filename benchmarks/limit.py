"""A model answers under a memory limit that the kernel enforces; the numbers printed are the kernel's.

    python -m benchmarks.limit MODEL.gguf --limit 1792MiB [--context 4096] [--ple disk] [--prompt 4000] [--steps 64]

The model's files leave the page cache first: the kernel charges a page to the group that first reads it, so pages that
others had brought would be free. Uses the memory cgroup of ``benchmarks/limited.py``; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.limited import Group
from pocketgem.sizes import parse_size


def answer(args: argparse.Namespace) -> None:
    """The child: load, read a prompt of random ids, write some tokens."""
    import torch

    from pocketgem import LLM

    began = time.perf_counter()
    llm = LLM.load(args.model, ple=args.ple, context=args.context, threads=args.threads, offline=True)
    loaded = time.perf_counter() - began
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, llm.tokenizer.vocab_size, (args.prompt,), generator=generator).tolist()
    stats = llm.generate(ids, max_tokens=args.steps, temperature=1.0, seed=1).stats
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {key: int(status[key].split()[0]) >> 10 for key in ("VmHWM", "RssAnon", "RssFile")}
    rates = {"prefill_tokens_per_s": round(stats.prefill_rate, 1), "decode_tokens_per_s": round(stats.decode_rate, 2)}
    print(json.dumps({"load_s": round(loaded, 1), **rates, "tokens": stats.completion_tokens, "MiB": memory}))


def forget(model: str) -> None:
    """Take the pages of the model's file, and of its packed weights, out of the page cache."""
    for path in (Path(model), Path(f"{model}.pocketgem")):
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--limit", default="1792MiB")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--ple", default="disk")
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        answer(args)
        return 0
    forget(args.model)
    with Group(parse_size(args.limit)) as group:
        held = group.run([sys.executable, "-m", "benchmarks.limit", "--child", *sys.argv[1:]])
    print(json.dumps({"model": Path(args.model).name, "context": args.context, "ple": args.ple, **asdict(held)}))
    return held.rc


if __name__ == "__main__":
    sys.exit(main())
