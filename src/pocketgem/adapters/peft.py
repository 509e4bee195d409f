"""Adapters as PEFT writes them: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

Every tensor becomes part of a change of some matrix, or reading fails: what is loaded and wired to nothing is the
commonest fault of adapters. Shapes and scales: PEFT's ``tuners/lora/layer.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pocketgem.adapters.adapter import (
    MOST_RANK,
    Adapter,
    checked_delta,
    grouped,
    identity_of,
    split_name,
    values_of,
)
from pocketgem.adapters.gguf import read_gguf
from pocketgem.adapters.mlx import WEIGHTS as MLX_WEIGHTS
from pocketgem.adapters.mlx import read_mlx
from pocketgem.checkpoint.load import read_json
from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.fields import MAX_SIZE, Fields
from pocketgem.errors import FormatError, UnsupportedError, WeightsError
from pocketgem.model.lora import STACKS, LowRank

__all__ = ["CONFIG", "MOST_RANK", "WEIGHTS", "Adapter", "identity_of", "open_adapter"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MOST_INVOCATION = 4096  # ids
_KEY = re.compile(r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
_REFUSED = {
    "modules_to_save": "whole modules saved beside the low-rank parts",
    "layer_replication": "layers that are repeated",
    "bias": "trained biases",
    "lora_bias": "trained biases",
    "fan_in_fan_out": "transposed weights",
    "megatron_config": "Megatron's layers",
    "trainable_token_indices": "trained rows of the embedding",
    "use_qalora": "pooled inputs",
    "use_bdlora": "block-diagonal parts",
    "arrow_config": "routing between adapters",
    "kasa_config": "trained singular values",
    "monteclora_config": "sampled weights",
}


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
    name = split_name(pattern.lstrip("^"))[1]
    return module == name or module.endswith(f".{name}")


def open_adapter(folder: str | Path, experts: int | None = None) -> Adapter:
    """Read an adapter: a folder of PEFT's or of mlx-lm's, or llama.cpp's GGUF file. experts: how many the base has, for
    PEFT's stacks of them.

    Raises FormatError for files that are damaged or disagree, UnsupportedError for kinds that are not run, WeightsError
    for tensors that belong to nothing or would change nothing. Nothing in them can name code.
    """
    folder = Path(folder)
    if folder.is_file():
        return read_gguf(folder)
    if (folder / MLX_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file():
        return read_mlx(folder)
    _check_there(folder)
    return _read_peft(folder, experts)


def _check_there(folder: Path) -> None:
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise UnsupportedError(
            f"{folder}: {PICKLE} is a pickle, which can run anything when it is read; save the adapter as safetensors "
            "(PEFT: save_pretrained(..., safe_serialization=True)) where it was made"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder}: no {name}; an adapter in PEFT's format has {CONFIG} and {WEIGHTS}")


def _read_peft(folder: Path, experts: int | None) -> Adapter:
    config = read_json(folder / CONFIG)
    fields = Fields(config, str(folder / CONFIG))
    recipe = _recipe(fields)
    stored = open_safetensors(folder / WEIGHTS)
    groups, prefix = grouped(stored, _KEY, str(folder), _stack)
    groups = _single_stacks(groups, fields)
    deltas = {name: _delta(name, parts, recipe, experts) for name, parts in groups.items()}
    if not deltas:
        raise WeightsError(f"{folder}: the adapter has no tensors")
    base = config.get("base_model_name_or_path")
    kind = "dora" if config.get("use_dora") is True else "rslora" if recipe.stabilised else "lora"
    name = base if isinstance(base, str) else None
    return Adapter(str(folder), identity_of(deltas), deltas, name, kind, prefix, _invocation(fields))


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


def _invocation(fields: Fields) -> tuple[int, ...]:
    """Ids from which on an activated LoRA acts; none for one that always does."""
    given = fields.raw("alora_invocation_tokens", [])
    if not isinstance(given, list) or len(given) > MOST_INVOCATION:
        raise FormatError(f"{fields.where}: alora_invocation_tokens is no list of at most {MOST_INVOCATION} ids")
    ids = fields.ints("alora_invocation_tokens", len(given), [], low=0)
    if any(id >= MAX_SIZE for id in ids):
        raise FormatError(f"{fields.where}: an id of alora_invocation_tokens is too large")
    return ids


# ---- names -----------------------------------------------------------------------------------------------------------


def _stack(name: str) -> str:
    """Stacks of experts are wrapped one in the other: gate and up inside, down outside."""
    if name.endswith(".experts.base_layer"):
        return name.removesuffix("base_layer") + "gate_up_proj"
    return f"{name}.down_proj" if name.endswith(".experts") else name


def _single_stacks(groups: dict[str, dict[str, StoredTensor]], fields: Fields) -> dict[str, dict[str, StoredTensor]]:
    """A stack alone is wrapped once, whichever it is: then the config says which."""
    named = fields.raw("target_parameters", [])
    wanted = [split_name(one)[1] for one in named if isinstance(one, str)] if isinstance(named, list) else []
    found = {}
    for name, parts in groups.items():
        experts, _, leaf = name.rpartition(".")
        alone = name.endswith(".experts.down_proj") and f"{experts}.gate_up_proj" not in groups
        asked = {key for key in STACKS if any(f".{experts}.{key}".endswith(f".{one}") for one in wanted)}
        found[f"{experts}.gate_up_proj" if alone and asked == {"gate_up_proj"} else f"{experts}.{leaf}"] = parts
    return {name.removeprefix("."): parts for name, parts in found.items()}


# ---- values ----------------------------------------------------------------------------------------------------------


def _delta(name: str, parts: Mapping[str, StoredTensor], recipe: _Recipe, experts: int | None) -> LowRank:
    if missing := {"lora_A", "lora_B"} - parts.keys():
        raise WeightsError(f"{name}: {', '.join(sorted(missing))} is missing from the adapter")
    a, b = (values_of(name, key, parts[key]) for key in ("lora_A", "lora_B"))
    lengths = parts.get("lora_magnitude_vector")
    magnitude = None if lengths is None else values_of(name, "lora_magnitude_vector", lengths).view(-1)
    if ".experts." in name:
        a, b = _stacked(name, a, b, experts)
    found = checked_delta(name, a, b, 1.0, magnitude)
    return LowRank(found.A, found.B, recipe.scale(name, found.A.shape[-2]), magnitude)


def _stacked(name: str, a: Tensor, b: Tensor, experts: int | None) -> tuple[Tensor, Tensor]:
    """``[experts * rank, in]``, ``[out, rank * experts]`` -> ``[experts, rank, in]``, ``[experts, out, rank]``."""
    if not experts or a.ndim != 2 or b.ndim != 2 or a.shape[0] % experts or b.shape[1] != a.shape[0]:
        count = "a model without experts" if not experts else f"{experts} experts"
        raise WeightsError(f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit {count}")
    return a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts).permute(2, 0, 1)
