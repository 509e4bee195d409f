"""An adapter as PEFT reads it: a folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as as_safetensors

from pocketgem.adapters.peft import CONFIG, WEIGHTS
from pocketgem.checkpoint.durable import new_folder
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.errors import UnsupportedError
from pocketgem.model.lora import LowRank


@dataclass(frozen=True)
class Label:
    """What the config says beside the weights. base: the model's name. alpha and stabilised make the scale."""

    base: str
    rank: int
    alpha: float
    stabilised: bool = False
    prefix: str = "model."  # where the text model stands in transformers' class for the base


def save_adapter(
    folder: Path, deltas: Mapping[str, LowRank], label: Label, beside: Mapping[str, bytes] | None = None
) -> None:
    """Write float32 weights and the config. beside: more files, by name. What was at ``folder`` is replaced.

    Raises UnsupportedError for changes of stacks of experts, RunError for a full disk, CheckpointError for a bad place.
    """
    if stacks := [name for name, delta in deltas.items() if delta.A.ndim > 2]:
        raise UnsupportedError(f"{stacks[0]}: changes of stacks of experts are read, not written, by this version")
    weights = as_safetensors(_tensors(deltas, label.prefix), metadata={"format": "pt"})
    config = json.dumps(_config(deltas, label), indent=2).encode()
    files = {WEIGHTS: weights, CONFIG: config, **(beside or {})}
    with new_folder(folder, sum(map(len, files.values()))) as made:
        for name, content in files.items():
            write_synced(made / name, content)


def _tensors(deltas: Mapping[str, LowRank], prefix: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, delta in deltas.items():
        for part, values in (("lora_A", delta.A), ("lora_B", delta.B)):
            tensors[f"base_model.model.{prefix}{name}.{part}.weight"] = values.detach().float().cpu().contiguous()
    return tensors


def _config(deltas: Mapping[str, LowRank], label: Label) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": label.base,
        "r": label.rank,
        "lora_alpha": label.alpha,
        "use_rslora": label.stabilised,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [f"{label.prefix}{name}" for name in deltas],
        "inference_mode": True,
    }
