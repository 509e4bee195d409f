"""A checkpoint becomes a model: build on meta, assign mapped or dequantised weights, attach the per-layer table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import Progress
from pocketgem.config import ModelConfig, decoder_shapes
from pocketgem.errors import WeightsError
from pocketgem.memory.place import Place
from pocketgem.memory.rows import row_source
from pocketgem.model.blocks import BLOCKABLE, BlockEmbedding, BlockLinear, block_module, in_blocks
from pocketgem.model.cache import CPU
from pocketgem.model.gemma import Gemma
from pocketgem.model.gemma3n import Gemma3n
from pocketgem.model.layers import RMSNorm


def build_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    progress: Progress | None = None,
    *,
    ple: Place = Place.AUTO,
    device: torch.device = CPU,
    blocks: bool = False,
) -> Gemma:
    """Build the model a checkpoint describes and fill it with its weights, in ``dtype`` (norms stay float32).

    ple: where rows of the per-layer table come from. device: where the layers run; one tensor at a time goes there.
    blocks: matrices stored in blocks stay so (see ``blocks.py``).

    Raises WeightsError naming tensors that are missing, of the wrong shape, or that nothing in the model takes.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    check_tensors(checkpoint)
    model = empty_model(config)
    slots = [slot for slot in slots_of(model) if not (slot.name == "lm_head.weight" and config.tied_head)]
    total, done = sum(tensors[slot.name].nbytes for slot in slots), 0
    for path, members in groupby(slots, lambda slot: slot.path):
        stored = {slot.key: tensors[slot.name] for slot in members}
        plain = model.get_submodule(path)
        if blocks and isinstance(plain, BLOCKABLE) and all(map(in_blocks, stored.values())):
            model.set_submodule(path, block_module(plain, stored, device, dtype))
        else:
            for key, tensor in stored.items():
                parameter = _parameter(plain, tensor, checkpoint.norm_offset, dtype)
                plain.register_parameter(key, _on(device, parameter))
        done += sum(tensor.nbytes for tensor in stored.values())
        if progress is not None:
            progress(done, total)
    if config.tied_head:
        _tie(model)
    if model.per_layer is not None:
        model.per_layer.table = row_source(table_of(checkpoint), ple, device=device, progress=progress)
    model.tables.to(device)
    return model.eval()


def _tie(model: Gemma) -> None:
    """The head is the embedding, whichever way it is kept."""
    table: nn.Module = model.embed_tokens
    if isinstance(table, BlockEmbedding):
        model.set_submodule("lm_head", BlockLinear(table.blocks))
    else:
        model.lm_head.weight = model.embed_tokens.weight


def empty_model(config: ModelConfig) -> Gemma:
    """The model's modules without memory behind them."""
    with torch.device("meta"):
        return Gemma3n(config) if config.family == "gemma3n" else Gemma(config)


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


@dataclass(frozen=True)
class Slot:
    """A parameter's place: a module of the model, by path, and the key in it; with Hugging Face's name for it."""

    path: str
    module: nn.Module
    key: str
    name: str


def slots_of(model: nn.Module) -> list[Slot]:
    """Every parameter's place."""
    return [
        Slot(path, module, key, names.hf_name(f"{path}.{key}" if path else key))
        for path, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    ]


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Tensors a good checkpoint may carry unused: a copy of the tied head, and K/V of layers that share another's."""
    if name == "lm_head.weight":
        return config.tied_head
    match = re.fullmatch(r"layers\.(\d{1,6})\.self_attn\.[kv]_(proj|norm)\.weight", name)
    return match is not None and int(match[1]) < config.num_layers and not config.layers[int(match[1])].writes_kv


def norm_or_number(module: nn.Module, stored: TextTensor, norm_offset: float) -> nn.Parameter:
    """A small parameter in float32; a norm's weight in the form that multiplies."""
    number = stored.dense(torch.float32)
    number = number + norm_offset if isinstance(module, RMSNorm) else number.clone()
    return nn.Parameter(number, requires_grad=False)


def _on(device: torch.device, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.to(device), requires_grad=False)


def _parameter(module: nn.Module, stored: TextTensor, norm_offset: float, dtype: torch.dtype) -> nn.Parameter:
    if isinstance(module, RMSNorm):
        return norm_or_number(module, stored, norm_offset)
    tensor = stored.dense(dtype)  # a view of the mapped file where it holds that very type
    return nn.Parameter(tensor if tensor.ndim > 1 else tensor.clone(), requires_grad=False)


def table_of(checkpoint: Checkpoint) -> StoredTensor:
    """The per-layer table. Raises WeightsError for one in two halves."""
    table = checkpoint.tensors[names.TABLE]
    if isinstance(table, JoinedTensor):
        raise WeightsError("the per-layer table must be one tensor, not two halves")
    return table
