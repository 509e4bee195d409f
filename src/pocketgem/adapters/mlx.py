"""Adapters as mlx-lm reads and writes them: ``adapter_config.json`` and ``adapters.safetensors`` in one folder.

Matrices lie the other way round: lora_a ``[in, rank]``, lora_b ``[rank, out]``; DoRA's lengths are called m. Experts
are stacks ``[experts, rank, in]`` and ``[experts, out, rank]`` as here, gate and up apart. One rank and one scale hold
for all. Source: mlx-lm's ``tuner/lora.py``, ``tuner/dora.py`` and ``tuner/utils.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as as_safetensors
from torch import Tensor

from pocketgem.adapters.adapter import (
    MOST_RANK,
    Adapter,
    checked_delta,
    grouped,
    identity_of,
    values_of,
)
from pocketgem.adapters.fold import OURS, Notes, equal_ranks, one_scale, unfolded
from pocketgem.checkpoint.durable import new_folder
from pocketgem.checkpoint.load import read_json
from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.errors import FormatError, UnsupportedError, WeightsError
from pocketgem.model.lora import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_SWITCH = ".switch_glu."


def read_mlx(folder: Path) -> Adapter:
    """Raises FormatError, UnsupportedError and WeightsError as ``open_adapter`` does."""
    config = read_json(folder / CONFIG)
    fields = Fields(config, str(folder / CONFIG))
    kind = fields.str("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedError(f"{fields.where}: fine_tune_type {kind!r}; lora and dora are run")
    numbers = fields.section("lora_parameters")
    rank, scale = numbers.int("rank", high=MOST_RANK), numbers.float("scale", low=-1e12)
    found, prefix = grouped(open_safetensors(folder / WEIGHTS), _KEY, str(folder))
    if not found:
        raise WeightsError(f"{folder}: the adapter has no tensors")
    deltas = _joined({name: _delta(name, parts, rank, scale) for name, parts in found.items()})
    deltas = unfolded(deltas, fields.section(OURS))
    base = config.get("model")
    return Adapter(str(folder), identity_of(deltas), deltas, base if isinstance(base, str) else None, kind, prefix)


def _delta(name: str, parts: Mapping[str, StoredTensor], rank: int, scale: float) -> LowRank:
    if missing := {"lora_a", "lora_b"} - parts.keys():
        raise WeightsError(f"{name}: {', '.join(sorted(missing))} is missing from the adapter")
    a, b = (values_of(name, key, parts[key]) for key in ("lora_a", "lora_b"))
    if a.ndim == 2:
        a, b = a.T, b.T
    if a.ndim >= 2 and a.shape[-2] != rank:
        raise FormatError(f"{name}: rank {a.shape[-2]} in the weights, {rank} in the config")
    magnitude = None if "m" not in parts else values_of(name, "m", parts["m"])
    return checked_delta(name, a, b, scale, magnitude)


def _joined(deltas: dict[str, LowRank]) -> dict[str, LowRank]:
    """Gate and up of experts are one stack here; down keeps its own."""
    found: dict[str, LowRank] = {}
    for name, delta in deltas.items():
        before, switch, leaf = name.partition(_SWITCH)
        if not switch:
            found[name] = delta
        elif leaf == "down_proj":
            found[f"{before}.down_proj"] = delta
        elif leaf in ("gate_proj", "up_proj"):
            halves = [deltas.get(f"{before}{_SWITCH}{half}") for half in ("gate_proj", "up_proj")]
            found[f"{before}.gate_up_proj"] = _one(halves)
        else:
            raise WeightsError(f"{name[:200]}: no matrix of experts")
    return found


def _one(halves: list[LowRank | None]) -> LowRank:
    """Halves with the same A share it; others stand side by side, with twice the rank."""
    there = [half for half in halves if half is not None]
    filled = [
        LowRank(there[0].A, torch.zeros_like(there[0].B), there[0].scale) if one is None else one for one in halves
    ]
    gate, up = filled
    if gate.B.shape != up.B.shape or gate.A.shape != up.A.shape:
        raise WeightsError("gate_proj and up_proj of experts have different shapes")
    if torch.equal(gate.A, up.A):
        return LowRank(gate.A, torch.cat((gate.B, up.B), dim=-2), gate.scale)
    none = torch.zeros_like(gate.B)
    b = torch.cat((torch.cat((gate.B, none), dim=-1), torch.cat((none, up.B), dim=-1)), dim=-2)
    return LowRank(torch.cat((gate.A, up.A), dim=-2), b, gate.scale)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_mlx(folder: Path, adapter: Adapter, *, layers: int | None = None) -> Notes:
    """Write ``adapter`` as mlx-lm loads it. layers: how many the base has, where that is known.

    Returns what was folded or padded. Raises UnsupportedError for what mlx-lm cannot say, and as ``new_folder``.
    """
    if adapter.invocation:
        raise UnsupportedError("mlx-lm knows no activated LoRA: it would act on the whole prompt")
    if len({delta.magnitude is None for delta in adapter.deltas.values()}) > 1:
        raise UnsupportedError("mlx-lm knows DoRA for all changed matrices or for none; this adapter has both")
    ranked, notes = equal_ranks(adapter.deltas)
    scaled, scale, folded = one_scale(ranked)
    rank = next(iter(scaled.values())).A.shape[-2]
    config = {
        "fine_tune_type": "dora" if adapter.kind == "dora" else "lora",
        "model": adapter.base or "",
        "num_layers": layers or MAX_LAYERS,  # counted from the last; more than there are is all of them
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": _keys(adapter)},
        OURS: {**notes.record, **folded.record},
    }
    weights = as_safetensors(_tensors(scaled, adapter.prefix), metadata={"format": "mlx"})
    with new_folder(folder, len(weights)) as made:
        write_synced(made / WEIGHTS, weights)
        write_synced(made / CONFIG, json.dumps(config, indent=2).encode())
    return notes + folded


def _keys(adapter: Adapter) -> list[str]:
    """Within a block for what is in one; the whole path for what is not."""
    names = [part for module in adapter.deltas for part in _mlx_names(module)]
    outside = _outer(adapter.prefix)
    return sorted({".".join(one.split(".")[2:]) if one.startswith("layers.") else f"{outside}{one}" for one in names})


def _outer(prefix: str) -> str:
    return "language_model.model." if "language_model." in prefix else "model."


def _mlx_names(module: str) -> list[str]:
    if module.endswith(".experts.gate_up_proj"):
        before = module.removesuffix("gate_up_proj")
        return [f"{before}switch_glu.gate_proj", f"{before}switch_glu.up_proj"]
    if module.endswith(".experts.down_proj"):
        return [module.removesuffix("down_proj") + "switch_glu.down_proj"]
    return [module]


def _tensors(deltas: Mapping[str, LowRank], prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for module, delta in deltas.items():
        names = _mlx_names(module)
        for name, b in zip(names, delta.B.chunk(len(names), dim=-2), strict=True):
            full = name if name == "lm_head" else f"{_outer(prefix)}{name}"
            turned = delta.A.ndim == 2
            found[f"{full}.lora_a"] = (delta.A.T if turned else delta.A).contiguous().clone()
            found[f"{full}.lora_b"] = (b.T if turned else b).contiguous().clone()
            if delta.magnitude is not None:
                found[f"{full}.m"] = delta.magnitude.contiguous()
    return found
