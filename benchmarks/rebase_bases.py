"""Three updates of a base model, as folders or files that load like any other.

trained       its layers' weights trained on on other text (Python's own documentation), AdamW
requantised   written anew as Q4_0 by ``pocketgem quantize``
merged        another task's adapter merged into it
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from pydoc_data import topics
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketgem.adapters.peft import open_adapter
from pocketgem.checkpoint.names import hf_name
from pocketgem.convert.export import export_to_safetensors
from pocketgem.convert.groups import Format
from pocketgem.convert.quantize import Wishes, quantize_model
from pocketgem.llm import LLM
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import merge_
from pocketgem.tune.data import Example
from pocketgem.tune.loss import loss_of

STEPS, BATCH, LENGTH, RATE = 30, 4, 64, 1e-4
FAR = 6.0
HELD = 16  # pieces of text that are only measured


def write_requantised(old: str, target: Path) -> dict[str, object]:
    """Q4_0 from the old file's numbers."""
    made = quantize_model(old, target, Wishes(form=Format.Q4_0, check=False, threads=1))
    return {"bytes": target.stat().st_size, "kind": type(made).__name__}


def write_merged(old: str, target: Path, adapter: Path) -> dict[str, object]:
    """The old base with an adapter in its weights."""
    llm = LLM.load(old, dtype=torch.float32, kept=0)
    merge_(llm.model, open_adapter(adapter).deltas)
    _write(old, target, _changed(llm.model))
    return {"steps": 0}


def write_trained(old: str, target: Path) -> dict[str, object]:
    """The old base after some steps on other text; embeddings stay."""
    llm = LLM.load(old, dtype=torch.float32, kept=0)
    pieces = _pieces(llm)
    held, rest = pieces[:HELD], pieces[HELD:]
    before = _perplexity(llm.model, held)
    losses = _train(llm.model, rest)
    after = _perplexity(llm.model, held)
    _write(old, target, _changed(llm.model))
    return {"steps": STEPS, "perplexity": [before, after], "losses": losses, "rate": RATE}


def write_far(old: str, trained: str, target: Path) -> dict[str, object]:
    """Beyond the trained base, on the line from the old one."""
    llm = LLM.load(old, dtype=torch.float32, kept=0)
    before = _perplexity(llm.model, _pieces(llm)[:HELD])
    other = dict(LLM.load(trained, dtype=torch.float32, kept=0).model.named_parameters())
    for name, weight in _matrices(llm.model):
        weight.data.lerp_(other[name].data, FAR)
    _write(old, target, _changed(llm.model))
    return {"factor": FAR, "perplexity": [before, _perplexity(llm.model, _pieces(llm)[:HELD])]}


def _pieces(llm: LLM) -> list[Example]:
    """Documentation in pieces of ``LENGTH`` ids, every one of which is learned but the first."""
    ids = llm.tokenize("\n".join(topics.topics.values())[:400_000], add_bos=False)
    start = llm.tokenize("")[:1]
    pieces = [Example((*start, *ids[at : at + LENGTH]), 1) for at in range(0, len(ids) - LENGTH, LENGTH)]
    Random(5).shuffle(pieces)
    return pieces


def _perplexity(model: Gemma, pieces: list[Example]) -> float:
    with torch.inference_mode():
        return math.exp(sum(float(loss_of(model, [one])) for one in pieces) / len(pieces))


def _train(model: Gemma, pieces: list[Example]) -> list[float]:
    weights = [weight for name, weight in model.named_parameters() if name.startswith("layers.") and weight.ndim == 2]
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 4) * (0.1 + 0.9 * (1 - step / STEPS))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, pieces[step * BATCH : (step + 1) * BATCH])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        print(f"trained: step {step + 1}, loss {losses[-1]:.3f}", flush=True)
    for weight in weights:
        weight.requires_grad_(False)
    return losses


def _changed(model: Gemma) -> dict[str, Tensor]:
    """Matrices of the layers under Hugging Face's names."""
    named = ((name, weight) for name, weight in model.named_parameters() if name.startswith("layers."))
    return {f"model.{hf_name(name)}": weight.detach() for name, weight in named if weight.ndim == 2}


def _write(old: str, target: Path, changed: Mapping[str, Tensor]) -> None:
    """The old base as a folder in float32, some of its tensors other ones."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    export_to_safetensors(old, part, dtype="float32")
    tensors = load_file(part / "model.safetensors")
    if strange := changed.keys() - tensors.keys():
        raise ValueError(f"no such tensor: {sorted(strange)[0]}")
    save_file({**tensors, **{name: one.contiguous() for name, one in changed.items()}}, part / "model.safetensors")
    (part / "pocketgem.sha256").unlink()
    part.rename(target)


def drift_of(old: str, new: str) -> dict[str, float]:
    """``|W' - W| / |W|`` (Frobenius) of the layers' matrices, by kind."""
    one, other = (dict(_matrices(LLM.load(path, dtype=torch.float32, kept=0).model)) for path in (old, new))
    sums: dict[str, list[float]] = {}
    for name, weight in one.items():
        found = sums.setdefault(name.split(".")[-2], [0.0, 0.0])
        found[0] += float((other[name] - weight).pow(2).sum())
        found[1] += float(weight.pow(2).sum())
    return {kind: math.sqrt(change / whole) for kind, (change, whole) in sorted(sums.items())}


def _matrices(model: Gemma) -> list[tuple[str, Tensor]]:
    return [(name, w) for name, w in model.named_parameters() if name.startswith("layers.") and w.ndim == 2]
