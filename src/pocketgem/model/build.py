"""A checkpoint becomes a model: build on meta, assign mapped or dequantised weights, attach the per-layer table."""

from __future__ import annotations

import re

import torch
from torch import nn

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import Progress
from pocketgem.config import ModelConfig, decoder_shapes
from pocketgem.errors import WeightsError
from pocketgem.memory.rows import MappedRows
from pocketgem.model.gemma import Gemma
from pocketgem.model.gemma3n import Gemma3n
from pocketgem.model.layers import RMSNorm


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, progress: Progress | None = None) -> Gemma:
    """Build the model a checkpoint describes and fill it with its weights, in ``dtype`` (norms stay float32).

    Raises WeightsError naming tensors that are missing, of the wrong shape, or that nothing in the model takes.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    check_tensors(checkpoint)
    with torch.device("meta"):
        model = Gemma3n(config) if config.family == "gemma3n" else Gemma(config)
    slots = [slot for slot in _slots(model) if not (slot[2] == "lm_head.weight" and config.tied_head)]
    total, done = sum(tensors[hf].nbytes for _, _, hf in slots), 0
    for module, key, hf in slots:
        module.register_parameter(key, _parameter(module, tensors[hf], checkpoint.norm_offset, dtype))
        done += tensors[hf].nbytes
        if progress is not None:
            progress(done, total)
    if config.tied_head:
        model.lm_head.weight = model.embed_tokens.weight
    if model.per_layer is not None:
        model.per_layer.table = MappedRows(_table(tensors[names.TABLE]), config.num_layers)
    return model.eval()


def check_tensors(checkpoint: Checkpoint) -> None:
    """Compare names and shapes with what the config asks for, before anything is built or read.

    Raises WeightsError for tensors that are missing, of the wrong shape, or that nothing in the model takes.
    """
    wanted, present, where = decoder_shapes(checkpoint.config), checkpoint.tensors, checkpoint.where
    if missing := sorted(wanted.keys() - present.keys()):
        raise WeightsError(f"{where}: {len(missing)} tensors are missing, first {missing[0]}")
    if surplus := sorted(name for name in present.keys() - wanted.keys() if not _ignorable(name, checkpoint.config)):
        raise WeightsError(f"{where}: {len(surplus)} tensors have no place in the model, first {surplus[0]}")
    for name, shape in wanted.items():
        if present[name].shape != shape:
            raise WeightsError(f"{where}: {name} is {list(present[name].shape)}, the config says {list(shape)}")


def _slots(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Every parameter's place (module, key), with Hugging Face's name for it."""
    return [
        (module, key, names.hf_name(f"{path}.{key}" if path else key))
        for path, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    ]


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Tensors a good checkpoint may carry unused: a copy of the tied head, and K/V of layers that share another's."""
    if name == "lm_head.weight":
        return config.tied_head
    match = re.fullmatch(r"layers\.(\d{1,6})\.self_attn\.[kv]_(proj|norm)\.weight", name)
    return match is not None and int(match[1]) < config.num_layers and not config.layers[int(match[1])].writes_kv


def _parameter(module: nn.Module, stored: TextTensor, norm_offset: float, dtype: torch.dtype) -> nn.Parameter:
    if isinstance(module, RMSNorm):
        return nn.Parameter(stored.dense(torch.float32) + norm_offset, requires_grad=False)
    tensor = stored.dense(dtype)  # a view of the mapped file where it holds that very type
    return nn.Parameter(tensor if tensor.ndim > 1 else tensor.clone(), requires_grad=False)


def _table(table: TextTensor) -> StoredTensor:
    if isinstance(table, JoinedTensor):
        raise WeightsError("the per-layer table must be one tensor, not two halves")
    return table
