"""The most memory a model took, beside what the plan said before: every case in a process of its own.

python -m benchmarks.memory gemma-3-270m:4096 e2b.gguf:4096 e2b.gguf:16384 [--threads 2] [--dtype bfloat16]

A case is MODEL:TOKENS. The child loads the model with a context of TOKENS, reads a random prompt that fills it but for
a few tokens, writes these, and (without --once) does it all again with another prompt while the first past is kept. Its
parent made the plan before. What is compared is VmHWM of the child, the kernel's own count; Linux can also count anew
from a moment on (/proc/self/clear_refs), which tells the phases apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

DECODED = 8  # tokens written after a prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="MODEL:TOKENS")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=None)
    parser.add_argument("--no-keep-packed", action="store_true")
    parser.add_argument("--once", action="store_true", help="one answer; the plan then keeps no past")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    found = []
    print(f"{'case':32} {'predicted':>10} {'measured':>10} {'ratio':>7}   highest, by the plan", flush=True)
    for case in options.cases:
        model, _, tokens = case.rpartition(":")
        how = {"threads": options.threads, "dtype": options.dtype, "keep_packed": not options.no_keep_packed}
        found.append(compare(model, int(tokens), once=options.once, **how))
        print(drawn(found[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compare(
    model: str,
    tokens: int,
    *,
    threads: int | None = None,
    dtype: str | None = None,
    keep_packed: bool = True,
    once: bool = False,
) -> dict[str, Any]:
    """Plan, run, and set the two side by side; bytes."""
    from pocketgem.info.plan import held_by
    from pocketgem.memory.fit import Wish
    from pocketgem.memory.options import Options, plan_for
    from pocketgem.memory.plan import plan as planned
    from pocketgem.memory.program import base_of_a_new_process

    wanted = Options(threads=threads, dtype=dtype, keep_packed=keep_packed)
    plan = plan_for(held_by(model, offline=True), Wish(context=tokens), wanted, base_of_a_new_process())
    if once:
        plan = planned(plan.held, plan.setting, replace(plan.placement, kept=0), plan.base)
    options = {"model": model, "context": tokens, "threads": threads, "dtype": dtype, "keep_packed": keep_packed}
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps({**options, "once": once})]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    phases = {phase.name: phase.total for phase in plan.phases}
    return {
        "model": Path(model).name,
        "tokens": tokens,
        "predicted": plan.peak,
        "measured": max(measured["peaks"].values()),
        "phases": phases,
        "highest": plan.highest.name,
        **measured,
    }


def measure(
    model: str, context: int, threads: int | None, dtype: str | None, keep_packed: bool, once: bool = False
) -> dict[str, Any]:
    """In the child: peaks of loading, of a first answer and of a second one."""
    import torch

    from pocketgem.llm import LLM
    from pocketgem.memory.program import status

    type = None if dtype is None else getattr(torch, dtype)
    llm = LLM.load(model, context=context, threads=threads, dtype=type, keep_packed=keep_packed, offline=True)
    peaks = {"load": status()["VmHWM"]}
    anew()
    for name, first in (("first", 300), ("later", 301))[: 1 if once else 2]:
        ids = [first + (i * 7919) % (llm.model.config.vocab_size - 400) for i in range(context - DECODED)]
        for _ in llm.stream(ids, max_tokens=DECODED, temperature=0, stop_ids=frozenset()):
            pass
        peaks[name] = status()["VmHWM"]
    return {"peaks": peaks, "end": status()}


def anew() -> None:
    """Let the kernel count the peak from now on; where it does not, later peaks include the earlier ones."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def drawn(case: dict[str, Any]) -> str:
    name = f"{case['model']}:{case['tokens']}"
    ratio = case["predicted"] / case["measured"]
    mib = {key: f"{case[key] / 2**20:.0f} MiB" for key in ("predicted", "measured")}
    beside = ", ".join(f"{step} {size / 2**20:.0f}" for step, size in case["peaks"].items())
    plan = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in case["phases"].items())
    return (
        f"{name:32} {mib['predicted']:>10} {mib['measured']:>10} {ratio:7.3f}   {case['highest']}\n"
        f"{'':4}measured: {beside}; planned: {plan}"
    )


if __name__ == "__main__":
    main()
