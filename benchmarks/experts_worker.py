"""One cold run of ``benchmarks.experts``: load, read the prompt, then write tokens that are given, not chosen.

Random weights repeat one token for ever, and its experts with it; random ids ask for new experts at every step.

    python -m benchmarks.experts_worker '{"subject": "pocketgem", "model": ..., "result": FILE, ...}'
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pocketgem.bench.protocol import memory, prompt_ids


def pocketgem(options: dict[str, Any]) -> tuple[Callable[[Sequence[int]], None], Callable[[], dict[str, object]]]:
    from dataclasses import asdict

    import torch

    from pocketgem.llm import LLM
    from pocketgem.model.cache import Step
    from pocketgem.model.quant import store_of

    llm = LLM.load(
        options["model"], threads=options["threads"], context=options["context"], expert_memory=options["experts"]
    )
    cache, store = llm.model.new_cache(), store_of(llm.model)
    last = llm.expert_use

    @torch.inference_mode()
    def read(ids: Sequence[int]) -> None:
        step = Step.packed([cache], [len(ids)], logits=[1])
        llm.model.logits(llm.model(llm.model.embed(torch.tensor(ids)), step)).argmax(-1)
        step.commit()

    def use() -> dict[str, object]:
        nonlocal last
        now = llm.expert_use
        if now is None or last is None or store is None:
            return {}
        spent, last = now - last, now
        return {**asdict(spent), "hit_rate": spent.hit_rate, "slots": store.slots, "arena_bytes": store.arena_bytes}

    return read, use


def llama_cpp(options: dict[str, Any]) -> tuple[Callable[[Sequence[int]], None], Callable[[], dict[str, object]]]:
    from pocketgem.bench.peers.llama_cpp import LlamaCpp

    model, position = LlamaCpp({**options, "mapped": True}), 0

    def read(ids: Sequence[int]) -> None:
        nonlocal position
        rows = [(id, position + index, 0) for index, id in enumerate(ids)]
        model._run(rows, wanted=range(len(rows) - 1, len(rows)))
        model._choose(len(rows) - 1)
        position += len(rows)

    return read, lambda: {}


def main() -> None:
    options = json.loads(sys.argv[1])
    began = time.perf_counter()
    read, use = {"pocketgem": pocketgem, "llama.cpp": llama_cpp}[options["subject"]](options)
    found: dict[str, object] = {"load_s": round(time.perf_counter() - began, 2)}
    ids = prompt_ids(options["seed"], options["prompt"] + options["warm"] + options["measure"], options["vocabulary"])
    began = time.perf_counter()
    read(ids[: options["prompt"]])
    found |= {"prompt_s": round(time.perf_counter() - began, 2), "prompt": use()}
    at = options["prompt"]
    for name in ("warm", "measure"):
        seconds = []
        for id in ids[at : at + options[name]]:
            began = time.perf_counter()
            read([id])
            seconds.append(time.perf_counter() - began)
        at += options[name]
        rate = len(seconds) / sum(seconds) if seconds else None
        found[name] = {"tokens_per_s": rate, "slowest_s": max(seconds, default=None), **use()}
    Path(options["result"]).write_text(json.dumps({**found, "memory": memory()}))


if __name__ == "__main__":
    main()
