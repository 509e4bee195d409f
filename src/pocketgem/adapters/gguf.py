"""Adapters as llama.cpp reads them: one GGUF file, ``TENSOR.lora_a`` ``[rank, in]``, ``TENSOR.lora_b`` ``[out, rank]``.

``adapter.lora.alpha`` holds for all, divided by each matrix's own rank; zero stands for a scale of one. Gate and up of
experts are stacks apart. Source: llama.cpp's ``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pocketgem.adapters.adapter import Adapter, checked_delta, identity_of, prefix_of, values_of
from pocketgem.adapters.fold import OURS, Notes, rescaled, unfolded
from pocketgem.checkpoint import names
from pocketgem.checkpoint.gguf import GGUFFile, metadata_float, metadata_list, metadata_str
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.write import write_gguf
from pocketgem.config.fields import Fields
from pocketgem.errors import FormatError, UnsupportedError, WeightsError
from pocketgem.model.lora import LowRank

_KEY = re.compile(r"(?P<tensor>.+)\.(?P<part>lora_a|lora_b)")
_HALVES = ("ffn_gate_exps.weight", "ffn_up_exps.weight")
_JOINED = "ffn_gate_up_exps.weight"
INVOCATION = "adapter.alora.invocation_tokens"
MOST_RECORD = 1 << 20  # characters


def read_gguf(path: Path) -> Adapter:
    """Raises FormatError, UnsupportedError and WeightsError as ``open_adapter`` does."""
    file, where = GGUFFile.open(path), str(path)
    kinds = tuple(metadata_str(file.metadata, key, "", where=where) for key in ("general.type", "adapter.type"))
    if kinds != ("adapter", "lora"):
        raise UnsupportedError(f"{path}: no LoRA adapter (general.type, adapter.type are {kinds})")
    alpha = metadata_float(file.metadata, "adapter.lora.alpha", 0.0, where=where)
    deltas = {name: _delta(name, parts, alpha) for name, parts in _grouped(file.tensors, where).items()}
    if not deltas:
        raise WeightsError(f"{path}: the adapter has no tensors")
    ours = _record(file.metadata, where)
    deltas = unfolded(_exact(deltas, ours), ours)
    base = file.metadata.get("general.base_model.0.name")
    prefix = prefix_of({ours.str("prefix", "")})
    kind = "rslora" if ours.str("kind", "") == "rslora" else "lora"
    ids = tuple(metadata_list(file.metadata, INVOCATION, int, (), where=where))
    name = base if isinstance(base, str) else None
    return Adapter(where, identity_of(deltas), deltas, name, kind, prefix, ids)


def _grouped(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, dict[str, Tensor]]:
    """A and B by our names of modules; experts' halves joined."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise WeightsError(f"{where}: tensor {name[:200]} is no part of a low-rank change")
        found.setdefault(match["tensor"], {})[match["part"]] = values_of(name, match["part"], tensor)
    for gate in [name for name in found if name.endswith(_HALVES[0])]:
        up = gate.replace(*_HALVES)
        if up not in found:
            raise WeightsError(f"{gate}: has no {up} beside it")
        found[gate.replace(_HALVES[0], _JOINED)] = _both(gate, found.pop(gate), found.pop(up))
    return {_module(name): parts for name, parts in found.items()}


def _both(name: str, gate: Mapping[str, Tensor], up: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if {"lora_a", "lora_b"} - (gate.keys() & up.keys()) or not torch.equal(gate["lora_a"], up["lora_a"]):
        raise UnsupportedError(f"{name}: gate and up of experts are changed through different A")
    return {"lora_a": gate["lora_a"], "lora_b": torch.cat((gate["lora_b"], up["lora_b"]), dim=-2)}


def _module(tensor: str) -> str:
    found = names.hf_names(tensor, 0)
    if len(found) != 1:
        raise WeightsError(f"tensor {tensor[:200]} is none of a model's matrices that an adapter can change")
    return found[0].removesuffix(".weight")


def _delta(name: str, parts: Mapping[str, Tensor], alpha: float) -> LowRank:
    if missing := {"lora_a", "lora_b"} - parts.keys():
        raise WeightsError(f"{name}: {', '.join(sorted(missing))} is missing from the adapter")
    rank = parts["lora_b"].shape[-1]
    return checked_delta(name, parts["lora_a"], parts["lora_b"], alpha / rank if alpha else 1.0)


# ---- what our own files say beside that ------------------------------------------------------------------------------


def _record(metadata: Mapping[str, object], where: str) -> Fields:
    text = metadata.get(f"{OURS}.adapter", "{}")
    try:
        content = json.loads(text) if isinstance(text, str) and len(text) <= MOST_RECORD else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise FormatError(f"{where}: {OURS}.adapter is not a JSON object")
    return Fields(content, f"{where}: {OURS}.adapter")


def _exact(deltas: Mapping[str, LowRank], ours: Fields) -> dict[str, LowRank]:
    """alpha is float32 in the file: where it rounds a scale, the scale itself stands beside it."""
    exact = ours.section("exact")
    found = dict(deltas)
    for name in exact.data.keys() & found.keys():
        scale = exact.float(name, low=-1e12)
        if abs(scale - found[name].scale) > 1e-6 * abs(scale):
            raise FormatError(f"{exact.where}: {name} has the scale {scale}, alpha says {found[name].scale}")
        found[name] = LowRank(found[name].A, found[name].B, scale)
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_gguf_adapter(path: Path, adapter: Adapter, family: str, *, type: StoredType = StoredType.F32) -> Notes:
    """Write ``adapter`` for llama.cpp. family: the base's general.architecture. Returns what was folded.

    Raises UnsupportedError for what GGUF cannot say, CheckpointError and RunError as ``write_gguf``.
    """
    if any(delta.magnitude is not None for delta in adapter.deltas.values()):
        raise UnsupportedError("llama.cpp knows no DoRA; merge the adapter into a model instead (adapters merge)")
    if adapter.invocation:
        raise UnsupportedError("an activated LoRA is read from GGUF, not written to it")
    tensors = {name: _tensor_names(name) for name in adapter.deltas}
    alpha, said = _alpha(adapter.deltas)
    near = {
        name: one.scale
        for name, one in adapter.deltas.items()
        if 0 < abs(one.scale - said[name]) <= 1e-6 * abs(said[name])
    }
    wanted = {name: near.get(name, said[name]) for name in said}
    deltas, notes = rescaled(adapter.deltas, wanted)
    record = {**notes.record, "exact": near, "kind": adapter.kind, "prefix": adapter.prefix}
    metadata = {
        "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha,
        **({"general.base_model.count": 1, "general.base_model.0.name": adapter.base} if adapter.base else {}),
        f"{OURS}.adapter": json.dumps(record),
    }  # fmt: skip
    parts = [part for name, delta in deltas.items() for part in _parts(tensors[name], delta, type)]
    write_gguf(path, family, metadata, parts)
    return notes


def _alpha(deltas: Mapping[str, LowRank]) -> tuple[float, dict[str, float]]:
    """One alpha for all, as float32 holds it, and the scales it means. The commonest needs the fewest changes."""
    counted = Counter(delta.scale * delta.A.shape[-2] for delta in deltas.values())
    (alpha,) = struct.unpack("<f", struct.pack("<f", counted.most_common(1)[0][0]))
    return alpha, {name: alpha / delta.A.shape[-2] for name, delta in deltas.items()}


def _tensor_names(module: str) -> list[str]:
    hf = module if module.endswith((".experts.gate_up_proj", ".experts.down_proj")) else f"{module}.weight"
    if names.stack_index(hf) is not None or module == "lm_head":
        raise UnsupportedError(f"{module}: llama.cpp takes no adapter of this matrix")
    try:
        name = names.gguf_name(hf)
    except KeyError:
        raise UnsupportedError(f"{module}: GGUF has no name for this matrix") from None
    return [name.replace(_JOINED, half) for half in _HALVES] if name.endswith(_JOINED) else [name]


def _parts(tensors: list[str], delta: LowRank, type: StoredType) -> list[tuple[str, Tensor, StoredType]]:
    found = []
    for name, b in zip(tensors, delta.B.chunk(len(tensors), dim=-2), strict=True):
        found += [(f"{name}.lora_a", delta.A, type), (f"{name}.lora_b", b.contiguous(), type)]
    return found
