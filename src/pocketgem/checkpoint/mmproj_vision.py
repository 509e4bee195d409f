"""The vision tower inside a GGUF ``mmproj`` file: llama.cpp's names, shapes and keys become Hugging Face's.

Its converter orders a patch's numbers by colour, row and column, as a convolution reads them; transformers by row,
column and colour. It turns the 12B's position table, and adds one to the weight of Gemma 3's norm. All of that is
undone here. Names: llama.cpp's ``conversion/gemma.py`` and the ``gguf`` package's tensor table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pocketgem.checkpoint.adapted import adapted
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

Projector = Literal["gemma3", "gemma4v", "gemma4uv"]
Tensors = Mapping[str, StoredTensor]
Undo = Callable[[StoredTensor], StoredTensor]
_BLOCK = re.compile(r"v\.blk\.(0|[1-9]\d{0,3})\.(\w+)\.(\w+)")
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


@dataclass(frozen=True)
class Names:
    """One projector's names.

    parts: what stands in a block, less ``.weight`` and ``.bias``. clipped: its linears are wrapped and may have bounds.
    """

    top: Mapping[str, str]
    parts: Mapping[str, str]
    clipped: bool


_GEMMA4 = Names(
    {
        "v.patch_embd.weight": "vision_tower.patch_embedder.input_proj.weight",
        "v.position_embd.weight": "vision_tower.patch_embedder.position_embedding_table",
        "v.std_bias": "vision_tower.std_bias",
        "v.std_scale": "vision_tower.std_scale",
        "mm.input_projection.weight": "embed_vision.embedding_projection.weight",
    },
    {
        "ln1": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_post_norm": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "ffn_post_norm": "post_feedforward_layernorm",
    },
    clipped=True,
)
_UNIFIED = Names(
    {
        "v.patch_embd.weight": "vision_embedder.patch_dense.weight",
        "v.patch_embd.bias": "vision_embedder.patch_dense.bias",
        "v.position_embd.weight": "vision_embedder.pos_embedding",
        "mm.input_projection.weight": "embed_vision.embedding_projection.weight",
    }
    | {
        f"v.patch_norm.{number}.{kind}": f"vision_embedder.{name}.{kind}"
        for number, name in ((1, "patch_ln1"), (2, "patch_ln2"), (3, "pos_norm"))
        for kind in ("weight", "bias")
    },
    {},
    clipped=False,
)
_SIGLIP = Names(
    {
        "v.patch_embd.weight": "vision_tower.embeddings.patch_embedding.weight",
        "v.patch_embd.bias": "vision_tower.embeddings.patch_embedding.bias",
        "v.position_embd.weight": "vision_tower.embeddings.position_embedding.weight",
        "v.post_ln.weight": "vision_tower.post_layernorm.weight",
        "v.post_ln.bias": "vision_tower.post_layernorm.bias",
        "mm.input_projection.weight": "multi_modal_projector.mm_input_projection_weight",
        "mm.soft_emb_norm.weight": "multi_modal_projector.mm_soft_emb_norm.weight",
    },
    {
        "ln1": "layer_norm1",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_out": "self_attn.out_proj",
        "ln2": "layer_norm2",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    },
    clipped=False,
)
_NAMES: Mapping[str, Names] = {"gemma3": _SIGLIP, "gemma4v": _GEMMA4, "gemma4uv": _UNIFIED}


def vision_projector(metadata: Mapping[str, object], where: str) -> Projector | None:
    """Which of the family's projectors the file holds, None for none. Raises UnsupportedError for another's."""
    fields = Fields(metadata, where)
    if not fields.has("clip.projector_type") and not fields.has("clip.vision.projector_type"):
        return None
    name = fields.str("clip.vision.projector_type", fields.raw("clip.projector_type", ""))
    if name == "gemma3nv":
        raise UnsupportedError(f"{where}: Gemma 3n's vision tower (a MobileNet) is not run by this version")
    if name not in _NAMES:
        raise UnsupportedError(f"{where}: vision projector {name!r} is not one of {', '.join(_NAMES)}")
    return name  # type: ignore[return-value]  # the keys of _NAMES are the literals


# ---- tensors ---------------------------------------------------------------------------------------------------------


def vision_tensors(projector: Projector, tensors: Tensors, where: str) -> dict[str, StoredTensor]:
    """The vision part of an mmproj file under Hugging Face's names and with its values; audio's is left out.

    Raises UnsupportedError for a tensor that no such tower has, FormatError for a shape that cannot be turned back.
    """
    names, found = _NAMES[projector], {}
    for gguf, tensor in tensors.items():
        if gguf.startswith(("v.", "mm.")) and not gguf.startswith("mm.a."):
            name = _hf_name(names, gguf, where)
            found[name] = _undone(name, tensor, where)
    return _in_order(found) if projector == "gemma3" else found


def _hf_name(names: Names, gguf: str, where: str) -> str:
    if gguf in names.top:
        return names.top[gguf]
    match = _BLOCK.fullmatch(gguf)
    part, kind = (names.parts.get(match[2]), match[3]) if match is not None else (None, "")
    if match is None or part is None or kind not in ("weight", "bias", *_BOUNDS):
        raise UnsupportedError(f"{where}: the vision tensor {gguf[:80]} belongs to no tower that is run here")
    wrapped = names.clipped and part.endswith("_proj") and kind == "weight"
    return f"vision_tower.encoder.layers.{match[1]}.{part}.{'linear.weight' if wrapped else kind}"


def _undone(name: str, tensor: StoredTensor, where: str) -> StoredTensor:
    """The tensor as Hugging Face has it."""
    if name.endswith(_BOUNDS) and tensor.shape == (1,):
        return replace(tensor, shape=())
    if name.endswith(("patch_embedder.input_proj.weight", "patch_dense.weight")) and len(tensor.shape) > 1:
        return _colours_last(tensor, tensor.shape[0], where)
    if ".patch_ln1." in name:
        return _colours_last(tensor, 1, where, shape=tensor.shape)
    if name.endswith("pos_embedding") and len(tensor.shape) == 3:
        axes, size, hidden = tensor.shape
        return adapted(tensor, (size, axes, hidden), lambda table: table.transpose(0, 1))
    if name.endswith("mm_soft_emb_norm.weight"):
        return adapted(tensor, tensor.shape, lambda weight: weight - 1.0)
    return tensor


def _colours_last(tensor: StoredTensor, rows: int, where: str, shape: tuple[int, ...] | None = None) -> StoredTensor:
    """Rows of ``colours x side x side`` numbers -> rows of ``side x side x colours``."""
    side = math.isqrt(tensor.numel // (3 * rows))
    if rows * 3 * side * side != tensor.numel:
        raise FormatError(f"{where}: {tensor.name} is {list(tensor.shape)}: no rows of square patches of three colours")

    def undo(weight: Tensor) -> Tensor:
        return weight.reshape(rows, 3, side, side).permute(0, 2, 3, 1)  # [rows, side, side, 3]

    return adapted(tensor, shape or (rows, 3 * side * side), undo)


def _in_order(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Early converters wrote Gemma 3's two MLP matrices under each other's names; the first one's shape tells."""
    first = tensors.get("vision_tower.encoder.layers.0.mlp.fc1.weight")
    if first is None or first.shape[0] >= first.shape[-1]:
        return tensors
    other = {".fc1.": ".fc2.", ".fc2.": ".fc1."}
    return {re.sub(r"\.fc[12]\.", lambda found: other[found[0]], name): tensor for name, tensor in tensors.items()}


# ---- config ----------------------------------------------------------------------------------------------------------


def vision_config(
    projector: Projector, metadata: Mapping[str, object], tensors: Tensors, where: str
) -> dict[str, object]:
    """``vision_config`` in the released config's spelling. Sizes without a key are the tensors' (``vision_tensors``).

    Raises FormatError for a key that is missing or absurd, or a tensor without which a size is unknown.
    """
    fields = Fields(metadata, where, prefix="clip.vision.")
    make = {"gemma3": _siglip, "gemma4v": _gemma4, "gemma4uv": _unified}[projector]
    return make(fields, tensors)


def _gemma4(fields: Fields, tensors: Tensors) -> dict[str, object]:
    layer = "vision_tower.encoder.layers.0"
    head_dim = _size(fields, tensors, f"{layer}.self_attn.q_norm.weight", 0)
    return _encoder(fields) | {
        "model_type": "gemma4_vision",
        "head_dim": head_dim,
        "num_key_value_heads": _size(fields, tensors, f"{layer}.self_attn.k_proj.linear.weight", 0) // head_dim,
        "pooling_kernel_size": fields.int("projector.scale_factor", 3),
        "position_embedding_size": _size(fields, tensors, _GEMMA4.top["v.position_embd.weight"], 1),
        "rms_norm_eps": fields.float("attention.layer_norm_epsilon", 1e-6, high=1.0),
        "use_clipped_linears": any(name.endswith("input_min") for name in tensors),
        "standardize": "vision_tower.std_bias" in tensors,
    }


def _siglip(fields: Fields, tensors: Tensors) -> dict[str, object]:
    size, scale = fields.int("image_size"), fields.int("projector.scale_factor", 4)
    side = size // (fields.int("patch_size") * scale)
    return _encoder(fields) | {
        "model_type": "siglip_vision_model",
        "image_size": size,
        "layer_norm_eps": fields.float("attention.layer_norm_epsilon", 1e-6, high=1.0),
        "mm_tokens_per_image": side * side,
    }


def _encoder(fields: Fields) -> dict[str, object]:
    return {
        "hidden_size": fields.int("embedding_length"),
        "num_hidden_layers": fields.int("block_count", high=MAX_LAYERS),
        "num_attention_heads": fields.int("attention.head_count"),
        "intermediate_size": fields.int("feed_forward_length"),
        "patch_size": fields.int("patch_size"),
    }


def _unified(fields: Fields, tensors: Tensors) -> dict[str, object]:
    """The 12B: no layers, so what its keys say of layers is zero and stays unread."""
    return {
        "model_type": "gemma4_unified_vision",
        "patch_size": fields.int("patch_size", 16),
        "pooling_kernel_size": fields.int("projector.scale_factor", 3),
        "mm_embed_dim": fields.int("embedding_length"),
        "mm_posemb_size": _size(fields, tensors, "vision_embedder.pos_embedding", 0),
        "output_proj_dims": _size(fields, tensors, "embed_vision.embedding_projection.weight", 1),
        "rms_norm_eps": fields.float("attention.layer_norm_epsilon", 1e-6, high=1.0),
    }


def _size(fields: Fields, tensors: Tensors, name: str, axis: int) -> int:
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) <= axis:
        raise FormatError(f"{fields.where}: tensor {name} is missing or has too few dimensions")
    return tensor.shape[axis]
