"""Adapters as PEFT writes them: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

Every tensor becomes part of a change of some matrix, or reading fails: what is loaded and wired to nothing is the
commonest fault of adapters. Shapes and scales: PEFT's ``tuners/lora/layer.py``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pocketgem.checkpoint.load import read_json
from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.fields import Fields
from pocketgem.errors import FormatError, UnsupportedError, WeightsError
from pocketgem.model.lora import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 4096
_KEY = re.compile(r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
_PREFIXES = ("base_model.model.", "model.", "language_model.", "model.")  # taken off in this order, each where it is
_REFUSED = {
    "modules_to_save": "whole modules saved beside the low-rank parts",
    "layer_replication": "layers that are repeated",
    "bias": "trained biases",
    "lora_bias": "trained biases",
    "fan_in_fan_out": "transposed weights",
    "megatron_config": "Megatron's layers",
    "trainable_token_indices": "trained rows of the embedding",
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter changes, and 64 hex digits that name its content: its weights and what scales them."""

    where: str
    identity: str
    deltas: Mapping[str, LowRank]  # by module, as ``model/lora.py`` takes them
    base: str | None  # the name of the model it was trained on, as its config says
    kind: str = "lora"  # or rslora, dora: what its config calls it; the deltas say it all

    @property
    def nbytes(self) -> int:
        """Bytes of all values in memory."""
        return sum(delta.A.nbytes + delta.B.nbytes for delta in self.deltas.values())

    @property
    def rank(self) -> int:
        """The largest."""
        return max(delta.A.shape[-2] for delta in self.deltas.values())


@dataclass(frozen=True)
class _Recipe:
    """How ranks become scales."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool

    def scale(self, module: str, rank: int) -> float:
        """Of a module whose A has ``rank`` rows. Raises FormatError where the config says another rank."""
        said = next((value for pattern, value in self.ranks.items() if _matches(pattern, module)), self.rank)
        if said != rank:
            raise FormatError(f"{module}: rank {rank} in the weights, {said} in the config")
        alpha = next((value for pattern, value in self.alphas.items() if _matches(pattern, module)), self.alpha)
        return alpha / math.sqrt(rank) if self.stabilised else alpha / rank


def _matches(pattern: str, module: str) -> bool:
    """PEFT takes a key of its patterns for an expression about the end of a name; names are all we take."""
    return module == pattern.lstrip("^") or module.endswith(f".{pattern}")


def open_adapter(folder: str | Path, experts: int | None = None) -> Adapter:
    """Read an adapter. experts: how many the base has, for stacks of them.

    Raises FormatError for files that are damaged or disagree, UnsupportedError for kinds that are not run, WeightsError
    for tensors that belong to nothing or would change nothing. Nothing in them can name code.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder}: no {name}; an adapter in PEFT's format has {CONFIG} and {WEIGHTS}")
    config = read_json(folder / CONFIG)
    recipe = _recipe(Fields(config, str(folder / CONFIG)))
    stored = open_safetensors(folder / WEIGHTS)
    deltas = {name: _delta(name, parts, recipe, experts) for name, parts in _grouped(stored, str(folder)).items()}
    if not deltas:
        raise WeightsError(f"{folder}: the adapter has no tensors")
    base = config.get("base_model_name_or_path")
    kind = "dora" if config.get("use_dora") is True else "rslora" if recipe.stabilised else "lora"
    return Adapter(str(folder), identity_of(deltas), deltas, base if isinstance(base, str) else None, kind)


def _recipe(fields: Fields) -> _Recipe:
    kind = fields.str("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{fields.where}: peft_type {kind!r}; LORA is run, with or without use_dora, use_rslora")
    for key, what in _REFUSED.items():
        if fields.raw(key, None) not in (None, False, "none", [], {}):
            raise UnsupportedError(f"{fields.where}: {key} asks for {what}, which this version does not run")
    return _Recipe(
        rank=fields.int("r", high=MOST_RANK),
        alpha=fields.float("lora_alpha"),
        ranks={key: _rank(value, fields.where) for key, value in fields.section("rank_pattern").data.items()},
        alphas={key: _alpha(value, fields.where) for key, value in fields.section("alpha_pattern").data.items()},
        stabilised=fields.bool("use_rslora", False),
    )


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MOST_RANK:
        raise FormatError(f"{where}: a rank in rank_pattern is {str(value)[:40]!r}")
    return value


def _alpha(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FormatError(f"{where}: a number in alpha_pattern is {str(value)[:40]!r}")
    return float(value)


# ---- names -----------------------------------------------------------------------------------------------------------


def _grouped(stored: Mapping[str, StoredTensor], where: str) -> dict[str, dict[str, StoredTensor]]:
    """Tensors by the matrix they change. Raises WeightsError for a name that is no part of a low-rank change."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise WeightsError(f"{where}: tensor {name[:200]} is no part of a low-rank change")
        groups.setdefault(_module(match["module"]), {})[match["part"]] = tensor
    return groups


def _module(name: str) -> str:
    """PEFT's module path -> ours. Stacks of experts are wrapped one in the other: gate and up inside, down outside."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name.endswith(".experts.base_layer"):
        return name.removesuffix("base_layer") + "gate_up_proj"
    return f"{name}.down_proj" if name.endswith(".experts") else name


# ---- values ----------------------------------------------------------------------------------------------------------


def _delta(name: str, parts: Mapping[str, StoredTensor], recipe: _Recipe, experts: int | None) -> LowRank:
    if missing := {"lora_A", "lora_B"} - parts.keys():
        raise WeightsError(f"{name}: {', '.join(sorted(missing))} is missing from the adapter")
    a, b = (_values(name, key, parts[key]) for key in ("lora_A", "lora_B"))
    lengths = parts.get("lora_magnitude_vector")
    magnitude = None if lengths is None else _values(name, "lora_magnitude_vector", lengths).view(-1)
    if ".experts." in name:
        a, b = _stacked(name, a, b, experts)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-2] != b.shape[-1]:
        raise WeightsError(f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit each other")
    if not b.any() or not a.any():
        raise WeightsError(
            f"{name}: lora_{'A' if not a.any() else 'B'} is all zeros: the adapter changes nothing there"
        )
    return LowRank(a.contiguous(), b.contiguous(), recipe.scale(name, a.shape[-2]), magnitude)


def _values(name: str, part: str, stored: StoredTensor) -> Tensor:
    values = stored.dense(torch.float32).clone()
    if not bool(values.isfinite().all()):
        raise WeightsError(f"{name}: {part} holds a NaN or an infinity")
    return values


def _stacked(name: str, a: Tensor, b: Tensor, experts: int | None) -> tuple[Tensor, Tensor]:
    """``[experts * rank, in]``, ``[out, rank * experts]`` -> ``[experts, rank, in]``, ``[experts, out, rank]``."""
    if not experts or a.shape[0] % experts or b.shape[1] != a.shape[0]:
        count = "a model without experts" if not experts else f"{experts} experts"
        raise WeightsError(f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit {count}")
    return a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts).permute(2, 0, 1)


def identity_of(deltas: Mapping[str, LowRank]) -> str:
    """64 hex digits of what is changed and how."""
    digest = hashlib.sha256()
    for name, delta in sorted(deltas.items()):
        digest.update(f"{name} {delta.scale!r} {list(delta.A.shape)} {list(delta.B.shape)}".encode())
        for part in (delta.A, delta.B, *(() if delta.magnitude is None else (delta.magnitude,))):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()
