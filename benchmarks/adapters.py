"""Sixteen adapters in one batch beside none: decode, prompts and switching on the real gemma-3-270m.

    python -m benchmarks.adapters [--adapters 16] [--rank 8] [--steps 24] [--rounds 3] [--threads N]
                                  [--clock wall|cpu] [--json]

The adapters are synthetic: random numbers of the shapes a trained one has, on the seven usual kinds of matrices. What
is measured does not depend on the numbers. Ways of running are measured in turn, each as often, and the median is given
with the least and the most. ``--clock cpu`` counts the process's own seconds: with one thread that is what a quiet
machine's wall would say, on a busy one too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pocketgem import LLM
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.model.low_rank import LowRank, fused_layers, targets

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT, LONG = 16, 512  # tokens


Clock = Callable[[], float]  # seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("adapters", 16), ("rank", 8), ("steps", 24), ("rounds", 3)):
        options.add_argument(f"--{name}", type=int, default=usual)
    options.add_argument("--threads", type=int)
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    found = measured(given.adapters, given.rank, given.steps, given.rounds, given.threads, clock)
    print(json.dumps(found, indent=2) if given.json else table(found))


def measured(count: int, rank: int, steps: int, rounds: int, threads: int | None, clock: Clock) -> dict[str, object]:
    """Everything, by name: [median, least, most]."""
    llm = LLM.load("gemma-3-270m", threads=threads, kept=0)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"synthetic-{number}" for number in range(count)]
        loading = [timed(lambda n=number: load(llm, Path(folder), names[n], n, rank), clock) for number in range(count)]
    nobody, everybody, one = [""] * count, names, [names[0]] * count
    ways: dict[str, Callable[[], float]] = {
        "decode tok/s, no adapter": lambda: decode(llm, nobody, steps, clock),
        f"decode tok/s, {count} adapters": lambda: decode(llm, everybody, steps, clock),
        "decode tok/s, one adapter": lambda: decode(llm, one, steps, clock),
        "decode tok/s, half without": lambda: decode(llm, [*names[: count // 2], *nobody[count // 2 :]], steps, clock),
        "one request tok/s, no adapter": lambda: decode(llm, [""], steps, clock),
        "one request tok/s, an adapter": lambda: decode(llm, names[:1], steps, clock),
        "prompt tok/s, no adapter": lambda: LONG / timed(lambda: first(llm, "", LONG), clock),
        "prompt tok/s, an adapter": lambda: LONG / timed(lambda: first(llm, names[0], LONG), clock),
        "first token ms, same adapter again": lambda: 1000 * again(llm, names[:1], clock),
        "first token ms, another each time": lambda: 1000 * again(llm, names, clock),
        "take ms, loaded": lambda: 1000 * timed(lambda: llm.adapters.take(names[-1]), clock),
    }
    decode(llm, everybody, 2, clock)  # the first pass of a shape takes its memory
    numbers = {name: list[float]() for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            numbers[name].append(way())
            print(f"{name}: {numbers[name][-1]:.1f}", file=sys.stderr, flush=True)
    spread = {name: [statistics.median(all), min(all), max(all)] for name, all in numbers.items()}
    base, mixed = (spread[name][0] for name in list(ways)[:2])
    compute = fused_layers(llm.model)[0].compute
    return {
        "what": f"{count} synthetic adapters of rank {rank}, {count} requests",
        "kernels": f"{compute.name}, {compute.threads} threads",
        "ids as alone": f"{same(llm, names)} of {count}",
        "bytes an adapter": llm.adapters.nbytes // count,
        "load and prove ms": [1000 * statistics.median(loading), 1000 * min(loading), 1000 * max(loading)],
        **spread,
        "decode ratio": mixed / base,
    }


def load(llm: LLM, folder: Path, name: str, seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for target, (out, inside) in ((t, s) for t, s in targets(llm.model).items() if t.split(".")[-1] in KINDS):
        a, b = torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
        deltas[target] = LowRank(a / inside**0.5, b * 0.02, 1.0)
    save_adapter(folder / name, deltas, Label("gemma-3-270m", rank, float(rank)))
    llm.adapters.add(name, folder / name)


def decode(llm: LLM, names: list[str], steps: int, clock: Clock) -> float:
    """Tokens a second of all requests together, from when all of them write."""
    params = SamplingParams(max_tokens=steps + 8)
    sequences = [llm.engine.submit(request) for request in requests(llm, names, params)]
    while any(not sequence.output_ids for sequence in sequences):
        llm.engine.step()
    began = clock()
    made = sum(len([one for one in llm.engine.step() if one.sampled]) for _ in range(steps))
    seconds = clock() - began
    for sequence in sequences:
        llm.engine.abort(sequence)
    return made / seconds


def same(llm: LLM, names: list[str], tokens: int = 16) -> int:
    """How many of the requests have in one batch the ids that they have alone, sampled with a seed."""
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=tokens)
    texts = [list(request.prompt_ids) for request in requests(llm, names, params)]
    together = llm.generate_many(texts, adapter=names, params=params)
    alone = [llm.generate(text, adapter=name, params=params) for text, name in zip(texts, names, strict=True)]
    return sum(one.ids == other.ids for one, other in zip(together, alone, strict=True))


def requests(llm: LLM, names: list[str], params: SamplingParams, length: int = PROMPT) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(1000, 200_000, (length,), generator=generator).tolist() for _ in names]
    return [llm.request(text, adapter=name, params=params) for text, name in zip(texts, names, strict=True)]


def first(llm: LLM, name: str, length: int) -> None:
    """Read a prompt and write one token."""
    (request,) = requests(llm, [name], SamplingParams(max_tokens=1), length)
    for _ in llm.flights.outputs(llm.flights.start(request)):
        pass


def again(llm: LLM, names: list[str], clock: Clock) -> float:
    """Seconds to the first token of a short prompt, the median over requests one after the other."""
    return statistics.median(timed(lambda at=at: first(llm, names[at % len(names)], PROMPT), clock) for at in range(8))


def timed(work: Callable[[], object], clock: Clock) -> float:
    began = clock()
    work()
    return clock() - began


def table(found: dict[str, object]) -> str:
    lines = []
    for name, value in found.items():
        shown = f"{value[0]:.1f} ({value[1]:.1f} to {value[2]:.1f})" if isinstance(value, list) else value
        lines.append(f"{name:38} {shown:.3f}" if isinstance(shown, float) else f"{name:38} {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
