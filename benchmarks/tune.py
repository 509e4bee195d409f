"""A training step here beside PEFT over transformers: the same weights, batch, start and optimizer, in turn.

    python -m benchmarks.tune gemma-3-270m [--threads 2] [--steps 4] [--rounds 3] [--batch 8] [--json FILE]
    python -m benchmarks.tune gemma-3-270m --parity     20 losses and the adapter's logits, side by side in one process

Every run is a process of its own, in turn. Steps are timed one by one after a first that is not counted;
the memory is VmHWM, counted anew once the model is loaded. Theirs is a padded batch with labels, as its trainers make.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import anew

LENGTHS = (40, 43, 46, 49, 52, 55, 58, 61)  # tokens; the answers are 20
ANSWER = 20
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Gemma 3 GGUF file, or a name as for run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--options", default="{}", help="JSON: more fields of our recipe, and dtype")
    parser.add_argument("--only", choices=("ours", "peft"))
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of --parity's 20 steps")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.parity:
        found: Any = parity(options)
    elif options.child:
        print(json.dumps(measured(options)))
        return
    else:
        found = in_turn(options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# ---- what both learn -------------------------------------------------------------------------------------------------


def batch_of(count: int) -> list[Any]:
    """Examples of random ids: what they say does not change what a step costs."""
    from pocketgem.tune.data import Example

    generator = torch.Generator().manual_seed(4)
    lengths = [LENGTHS[at % len(LENGTHS)] for at in range(count)]
    rows = [torch.randint(300, 200_000, (length,), generator=generator).tolist() for length in lengths]
    return [Example((2, *row[1:]), len(row) - ANSWER) for row in rows]


def trainer_of(options: argparse.Namespace, steps: int, **more: Any) -> Any:
    from pocketgem.llm import LLM
    from pocketgem.tune.loop import Trainer
    from pocketgem.tune.recipe import Recipe, plan_training

    extra = json.loads(options.options)
    dtype = extra.pop("dtype", torch.float32)
    dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    llm = LLM.load(options.model, dtype=dtype, threads=options.threads, offline=True)
    recipe = Recipe(rank=options.rank, alpha=16, steps=steps, batch=options.batch, clip=1e6, **extra, **more)
    return Trainer(llm.model, plan_training(llm.model, recipe), recipe, batch_of(options.batch))


class Peft:
    """The same training by PEFT, from the parts of one of our trainers: theirs to the number."""

    def __init__(self, model: str, rank: int, start: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        from pocketgem.checkpoint.resolve import resolve

        (file,) = resolve(model, offline=True).files
        base = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        config = peft.LoraConfig(r=rank, lora_alpha=16, target_modules=list(MODULES))
        self.model = peft.get_peft_model(base, config).train()
        parts = dict(self.model.named_parameters())
        for name, pair in start.items():
            for part, value in zip(("lora_A", "lora_B"), pair, strict=True):
                (key,) = (key for key in parts if key.endswith(f".{name}.{part}.default.weight"))
                parts[key].data.copy_(value)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], weight_decay=0.0)

    def step(self, batch: list[Any], rate: float) -> float:
        self.optimizer.param_groups[0]["lr"] = rate
        loss = self.model(**padded(batch)).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def padded(batch: list[Any]) -> dict[str, torch.Tensor]:
    most = max(len(one.ids) for one in batch)
    ids, mask = torch.zeros(len(batch), most, dtype=torch.int64), torch.zeros(len(batch), most, dtype=torch.int64)
    labels = torch.full((len(batch), most), -100)
    for row, one in enumerate(batch):
        size = len(one.ids)
        ids[row, :size], mask[row, :size] = torch.tensor(one.ids), 1
        labels[row, one.answer : size] = torch.tensor(one.ids[one.answer :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# ---- speed and memory ------------------------------------------------------------------------------------------------


def in_turn(options: argparse.Namespace) -> dict[str, Any]:
    who = [options.only] if options.only else ["ours", "peft"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in who}
    for _ in range(options.rounds):
        for name in who:
            command = [sys.executable, "-m", "benchmarks.tune", *sys.argv[1:], "--child", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name:5} {drawn(runs[name][-1])}", flush=True)
    found = {name: summed_up(rows) for name, rows in runs.items()}
    for name, one in found.items():
        low, high = one["spread"]
        print(f"{name:5} {one['steps_per_s']:.3f} steps/s ({low:.3f} to {high:.3f}), peak {one['peak'] >> 20} MiB")
    if len(found) == 2:
        print(f"ours / peft: {found['ours']['steps_per_s'] / found['peft']['steps_per_s']:.2f} x the steps, "
              f"{found['ours']['peak'] / found['peft']['peak']:.2f} x the memory")  # fmt: skip
    return {"runs": runs, **found}


def drawn(run: dict[str, Any]) -> str:
    seconds = ", ".join(f"{one:.2f}" for one in run["seconds"])
    worked = ", ".join(f"{one:.2f}" for one in run["cpu_seconds"])
    clock = f"{seconds} s a step ({worked} of the processors)"
    return f"{clock}, peak {run['peak'] >> 20} MiB, first losses {run['losses'][:2]}"


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median step, and the slowest and fastest process's."""
    each = [1 / statistics.median(run["seconds"]) for run in runs]
    every = statistics.median(second for run in runs for second in run["seconds"])
    return {"steps_per_s": 1 / every, "spread": [min(each), max(each)], "peak": max(run["peak"] for run in runs)}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from pocketgem.memory.program import status

    steps = options.steps + 1
    losses, seconds, worked = [], [], []
    begin, work = time.perf_counter(), time.process_time()
    for loss in ours(options, steps) if options.child == "ours" else theirs(options, steps):
        if loss is None:
            anew()  # loaded
        else:
            losses.append(round(loss, 5))
            seconds.append(time.perf_counter() - begin)
            worked.append(time.process_time() - work)
        begin, work = time.perf_counter(), time.process_time()
    return {"seconds": seconds[1:], "cpu_seconds": worked[1:], "losses": losses, "peak": status()["VmHWM"]}


def ours(options: argparse.Namespace, steps: int) -> Iterator[float | None]:
    trainer = trainer_of(options, steps)
    yield None
    for taken in trainer.run():
        yield taken.loss


def theirs(options: argparse.Namespace, steps: int) -> Iterator[float | None]:
    from pocketgem.tune.recipe import Recipe

    other, recipe = Peft(options.model, options.rank, {}), Recipe(steps=steps)
    batch = batch_of(options.batch)
    yield None
    for step in range(steps):
        yield other.step(batch, recipe.rate(step))


# ---- the same numbers ------------------------------------------------------------------------------------------------


def parity(options: argparse.Namespace) -> dict[str, Any]:
    """20 steps from one start, then the logits of both adapters on both bases."""
    steps = 20
    trainer = trainer_of(options, steps, learning_rate=options.learning_rate)
    start = {name: (one.A.detach().clone(), one.B.detach().clone()) for name, one in trainer.deltas.items()}
    other = Peft(options.model, options.rank, start)
    losses = []
    for step, taken in enumerate(trainer.run()):
        losses.append((taken.loss, other.step(trainer.batch(step), trainer.recipe.rate(step))))
        print(f"step {step + 1:2}: {losses[-1][0]:.6f} here, {losses[-1][1]:.6f} there", flush=True)
    apart = max(abs(one - two) for one, two in losses)
    print(f"losses are at most {apart:.1e} apart; logits of our adapter in PEFT {logits_apart(trainer, other):.1e}")
    return {"losses": losses, "apart": apart}


@torch.no_grad()
def logits_apart(trainer: Any, other: Peft) -> float:
    """Largest difference of a logit with our trained parts on both bases."""
    from pocketgem.model.cache import Step

    parts = dict(other.model.named_parameters())
    for name, delta in trainer.deltas.items():
        for part, value in (("lora_A", delta.A), ("lora_B", delta.B)):
            (key,) = (key for key in parts if key.endswith(f".{name}.{part}.default.weight"))
            parts[key].data.copy_(value)
    other.model.eval()
    ids, model = list(trainer.examples[0].ids), trainer.model
    step = Step.packed([model.new_cache()], [len(ids)], logits=[len(ids)])
    here = model.logits(model(model.embed(torch.tensor(ids)), step))
    there = other.model(input_ids=torch.tensor([ids])).logits[0]
    return float((here - there).abs().max())


if __name__ == "__main__":
    main()
