"""A checkpoint becomes a model: build on meta, assign mapped or dequantised weights, attach the per-layer table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config import ModelConfig
from pocketgem.errors import WeightsError
from pocketgem.memory.rows import MappedRows
from pocketgem.model.gemma import Gemma
from pocketgem.model.gemma3n import Gemma3n
from pocketgem.model.layers import RMSNorm

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, progress: Progress | None = None) -> Gemma:
    """Build the model a checkpoint describes and fill it with its weights, in ``dtype`` (norms stay float32).

    Raises WeightsError naming tensors that are missing, of the wrong shape, or that nothing in the model takes.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    with torch.device("meta"):
        model = Gemma3n(config) if config.family == "gemma3n" else Gemma(config)
    wanted = {ours: names.hf_name(ours) for ours, _ in model.named_parameters() if not _tied(ours, config)}
    _check_names(set(wanted.values()) | _table_names(config), checkpoint)
    total, done = sum(tensors[hf].nbytes for hf in wanted.values()), 0
    for module, key, ours in _slots(model):
        if _tied(ours, config):
            continue
        module.register_parameter(key, _parameter(module, key, wanted[ours], checkpoint, dtype))
        done += tensors[wanted[ours]].nbytes
        if progress is not None:
            progress(done, total)
    if config.tied_head:
        model.lm_head.weight = model.embed_tokens.weight
    if model.per_layer is not None:
        model.per_layer.table = _table(checkpoint)
    return model.eval()


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every (module, parameter key, full name) of the model."""
    for path, module in list(model.named_modules()):
        for key, _ in list(module.named_parameters(recurse=False)):
            yield module, key, f"{path}.{key}" if path else key


def _tied(ours: str, config: ModelConfig) -> bool:
    return ours == "lm_head.weight" and config.tied_head


def _table_names(config: ModelConfig) -> set[str]:
    return {names.TABLE} if config.per_layer else set()


def _check_names(wanted: set[str], checkpoint: Checkpoint) -> None:
    present = checkpoint.tensors.keys()
    missing = sorted(wanted - present)
    if missing:
        raise WeightsError(f"{checkpoint.where}: {len(missing)} tensors are missing, first {missing[0]}")
    surplus = sorted(name for name in present - wanted if not _ignorable(name, checkpoint.config))
    if surplus:
        raise WeightsError(f"{checkpoint.where}: {len(surplus)} tensors have no place in the model, first {surplus[0]}")


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Tensors a good checkpoint may carry unused: a copy of the tied head, and K/V of layers that share another's."""
    if name == "lm_head.weight":
        return config.tied_head
    match = re.fullmatch(r"layers\.(\d{1,6})\.self_attn\.[kv]_(proj|norm)\.weight", name)
    return match is not None and int(match[1]) < config.num_layers and not config.layers[int(match[1])].writes_kv


def _parameter(module: nn.Module, key: str, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Parameter:
    norm, stored = isinstance(module, RMSNorm), checkpoint.tensors[name]
    shape = tuple(module.get_parameter(key).shape)
    if stored.shape != shape:  # before anything is read: a lying shape must not cost memory
        raise WeightsError(f"{checkpoint.where}: {name} is {list(stored.shape)}, the model needs {list(shape)}")
    tensor = stored.dense(torch.float32 if norm else dtype)
    if norm and checkpoint.norm_offset:
        tensor = tensor + checkpoint.norm_offset
    return nn.Parameter(tensor, requires_grad=False)


def _table(checkpoint: Checkpoint) -> MappedRows:
    table, config = checkpoint.tensors[names.TABLE], checkpoint.config
    per_layer = config.per_layer
    if per_layer is None or table.shape != (per_layer.vocab_size, config.num_layers * per_layer.hidden_size):
        raise WeightsError(f"{checkpoint.where}: the per-layer table is {list(table.shape)}, the config disagrees")
    if not isinstance(table, StoredTensor):
        raise WeightsError(f"{checkpoint.where}: the per-layer table must be one tensor")
    return MappedRows(table, config.num_layers)
