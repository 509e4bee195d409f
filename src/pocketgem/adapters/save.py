"""An adapter as PEFT reads it: a folder that appears whole or not at all."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as as_safetensors
from torch import Tensor

from pocketgem.adapters.adapter import TEXT_PREFIX, Adapter
from pocketgem.adapters.peft import CONFIG, WEIGHTS
from pocketgem.checkpoint.durable import new_folder
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.errors import UnsupportedError
from pocketgem.model.lora import STACKS, LowRank

_STACKS = tuple(f".experts.{key}" for key in STACKS)


@dataclass(frozen=True)
class Label:
    """What the config says beside the weights. base: the model's name. alpha and stabilised make the scale.

    ranks, alphas   of modules that have others      invocation   ids from which on an activated LoRA acts
    """

    base: str
    rank: int
    alpha: float
    stabilised: bool = False
    prefix: str = TEXT_PREFIX  # where the text model stands in transformers' class for the base
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    invocation: tuple[int, ...] = ()


def save_adapter(
    folder: Path,
    deltas: Mapping[str, LowRank],
    label: Label,
    beside: Mapping[str, bytes] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write weights and config. beside: more files, by name. What was at ``folder`` is replaced.

    dtype: of the weights; float16 and bfloat16 round them, and then the adapter has another identity when it is read.
    Raises UnsupportedError for what PEFT cannot say, RunError for a full disk, CheckpointError for a bad place.
    """
    if len({delta.magnitude is None for delta in deltas.values()}) > 1:
        raise UnsupportedError("PEFT knows DoRA for all changed matrices or for none; this adapter has both")
    weights = as_safetensors(_tensors(deltas, label.prefix, dtype), metadata={"format": "pt"})
    config = json.dumps(_config(deltas, label), indent=2).encode()
    files = {WEIGHTS: weights, CONFIG: config, **(beside or {})}
    with new_folder(folder, sum(map(len, files.values()))) as made:
        for name, content in files.items():
            write_synced(made / name, content)


def _tensors(deltas: Mapping[str, LowRank], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {}
    for name, delta in deltas.items():
        a, b = (delta.A, delta.B) if delta.A.ndim == 2 else _unstacked(delta)
        parts = {"lora_A.weight": a, "lora_B.weight": b}
        if delta.magnitude is not None:
            parts["lora_magnitude_vector"] = delta.magnitude
        for part, values in parts.items():
            full = f"base_model.model.{_path(name, deltas, prefix)}.{part}"
            tensors[full] = values.detach().to("cpu", dtype).contiguous().clone()
    return tensors


def _unstacked(delta: LowRank) -> tuple[Tensor, Tensor]:
    """``[experts, rank, in]``, ``[experts, out, rank]`` -> ``[experts * rank, in]``, ``[out, rank * experts]``."""
    return delta.A.reshape(-1, delta.A.shape[-1]), delta.B.permute(1, 2, 0).reshape(delta.B.shape[1], -1)


def _path(name: str, deltas: Mapping[str, LowRank], prefix: str) -> str:
    """PEFT wraps both stacks of experts one in the other, down outside; a stack alone is wrapped once."""
    if name.endswith(_STACKS):
        experts, _, leaf = name.rpartition(".")
        inside = leaf == "gate_up_proj" and f"{experts}.down_proj" in deltas
        return f"{prefix}{experts}.base_layer" if inside else f"{prefix}{experts}"
    return name if name == "lm_head" else f"{prefix}{name}"


def _config(deltas: Mapping[str, LowRank], label: Label) -> dict[str, object]:
    full = {name: name if name == "lm_head" else f"{label.prefix}{name}" for name in deltas}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": label.base,
        "r": label.rank,
        "lora_alpha": label.alpha,
        "rank_pattern": {full[name]: rank for name, rank in label.ranks.items()},
        "alpha_pattern": {full[name]: alpha for name, alpha in label.alphas.items()},
        "use_rslora": label.stabilised,
        "use_dora": any(delta.magnitude is not None for delta in deltas.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [full[name] for name in deltas if not name.endswith(_STACKS)],
        "target_parameters": [full[name] for name in deltas if name.endswith(_STACKS)] or None,
        "alora_invocation_tokens": list(label.invocation) or None,
        "inference_mode": True,
    }


# ---- the label of an adapter that came from somewhere ----------------------------------------------------------------


def label_of(adapter: Adapter) -> Label:
    """Ranks and alphas that give its very scales. The commonest of each stand for all, the others in patterns.

    A scale that no alpha gives (possible only for one that PEFT never wrote) is off by one part in 2^52.
    """
    ranks = {name: delta.A.shape[-2] for name, delta in adapter.deltas.items()}
    plain, stabilised = (_alphas(adapter.deltas, power) for power in (1.0, 0.5))
    found, is_stabilised = (stabilised, True) if plain is None and stabilised is not None else (plain, False)
    alphas = found or {name: delta.scale * ranks[name] for name, delta in adapter.deltas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return Label(
        adapter.base or "",
        int(rank),
        float(alpha),
        is_stabilised,
        adapter.prefix,
        {name: value for name, value in ranks.items() if value != rank},
        {name: value for name, value in alphas.items() if value != alpha},
        adapter.invocation,
    )


def _alphas(deltas: Mapping[str, LowRank], power: float) -> dict[str, float] | None:
    """The alpha of each scale, to be divided by rank or its square root; None where one cannot be said so."""
    found: dict[str, float] = {}
    for name, delta in deltas.items():
        rank = delta.A.shape[-2]
        divisor = float(rank) if power == 1.0 else math.sqrt(rank)
        alpha = _dividend(delta.scale, divisor)
        if alpha is None:
            return None
        found[name] = alpha
    return found


def _dividend(quotient: float, divisor: float) -> float | None:
    """The shortest number that divided by ``divisor`` is ``quotient`` to the last bit."""
    near = [quotient * divisor]
    for way in (-math.inf, math.inf):
        one = near[0]
        for _ in range(2):
            one = math.nextafter(one, way)
            near.append(one)
    return min((one for one in near if one / divisor == quotient), key=lambda one: len(repr(one)), default=None)
