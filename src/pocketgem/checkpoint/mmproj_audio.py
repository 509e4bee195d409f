"""The audio tower inside a GGUF ``mmproj`` file: llama.cpp's names and shapes become Hugging Face's.

Two things are stored differently. ``per_dim_scale`` has its softplus already applied, so it gets a name of its own
(``SCALE_AS_IS``). Scalars and the depthwise convolution have a dimension more or less. Names are those of llama.cpp's
converter; its ``conv_norm`` and ``norm_conv`` stand for each other's place, and files depend on that by now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import UnsupportedError

SCALE_AS_IS = "self_attn.per_dim_scale_as_is"  # in the place of per_dim_scale: numbers that multiply as they are

_TOP = {
    "a.conv1d.0.weight": "subsample_conv_projection.layer0.conv.weight",
    "a.conv1d.1.weight": "subsample_conv_projection.layer1.conv.weight",
    "a.conv1d.0.norm.weight": "subsample_conv_projection.layer0.norm.weight",
    "a.conv1d.1.norm.weight": "subsample_conv_projection.layer1.norm.weight",
    "a.input_projection.weight": "subsample_conv_projection.input_proj_linear.weight",
    "a.pre_encode.out.weight": "output_proj.weight",
    "a.pre_encode.out.bias": "output_proj.bias",
}
_PROJECTION = "mm.a.input_projection.weight"
_LINEARS = {
    "ffn_up": "feed_forward1.ffw_layer_1",
    "ffn_down": "feed_forward1.ffw_layer_2",
    "ffn_up_1": "feed_forward2.ffw_layer_1",
    "ffn_down_1": "feed_forward2.ffw_layer_2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.post",
    "conv_pw1": "lconv1d.linear_start",
    "conv_pw2": "lconv1d.linear_end",
}
_PLAIN = {
    "ffn_norm": "feed_forward1.pre_layer_norm.weight",
    "ffn_post_norm": "feed_forward1.post_layer_norm.weight",
    "ffn_norm_1": "feed_forward2.pre_layer_norm.weight",
    "ffn_post_norm_1": "feed_forward2.post_layer_norm.weight",
    "attn_pre_norm": "norm_pre_attn.weight",
    "attn_post_norm": "norm_post_attn.weight",
    "attn_k_rel": "self_attn.relative_k_proj.weight",
    "per_dim_scale": SCALE_AS_IS,
    "conv_norm": "lconv1d.pre_layer_norm.weight",  # the converter's names for these two are exchanged
    "norm_conv": "lconv1d.conv_norm.weight",
    "conv_dw": "lconv1d.depthwise_conv1d.weight",
    "ln2": "norm_out.weight",
}
_BLOCK = re.compile(r"a\.blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|input_min|input_max|output_min|output_max)")


def is_audio(name: str) -> bool:
    """Whether a tensor of an mmproj file belongs to its audio part."""
    return name.startswith(("a.", "mm.a."))


def audio_tensors(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """The audio part of an mmproj file's tensors, under Hugging Face's names (``audio_tower...``, ``embed_audio...``).

    Tensors of other parts are left out. Raises UnsupportedError for an audio tensor that no Gemma 4 tower has.
    """
    named = {audio_name(name, where): tensor for name, tensor in tensors.items() if is_audio(name)}
    return {name: _reshaped(name, tensor) for name, tensor in named.items()}


def audio_name(name: str, where: str) -> str:
    """One name of an mmproj file -> Hugging Face's. Raises UnsupportedError."""
    if name == _PROJECTION:
        return "embed_audio.embedding_projection.weight"
    inner = _TOP.get(name) or _block_name(name)
    if inner is None:
        raise UnsupportedError(f"{where}: the audio tensor {name[:80]} belongs to no tower that is run here")
    return f"audio_tower.{inner}"


def _block_name(name: str) -> str | None:
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    layer, part, kind = match.groups()
    if part in _LINEARS:
        return f"layers.{layer}.{_LINEARS[part]}.{'linear.weight' if kind == 'weight' else kind}"
    return f"layers.{layer}.{_PLAIN[part]}" if part in _PLAIN and kind == "weight" else None


def _reshaped(name: str, tensor: StoredTensor) -> StoredTensor:
    """The same bytes under the shape that Hugging Face gives them."""
    shape = tensor.shape
    if name.endswith(("put_min", "put_max")) and shape == (1,):
        return replace(tensor, shape=())
    if name.endswith("depthwise_conv1d.weight") and len(shape) == 2:
        return replace(tensor, shape=(shape[0], 1, shape[1]))
    return tensor


def audio_config(metadata: Mapping[str, object], tensors: Mapping[str, StoredTensor]) -> dict[str, object] | None:
    """``audio_config`` in the released config's spelling, from an mmproj file's metadata and what ``audio_tensors``
    gave; None without audio. Sizes that the metadata leave out are the tensors'; the rest is the same in all releases.
    """
    projection = tensors.get("embed_audio.embedding_projection.weight")
    if projection is None:
        return None
    if not any(name.startswith("audio_tower.") for name in tensors):
        width = projection.shape[-1]
        return {"model_type": "gemma4_unified_audio", "audio_embed_dim": width, "audio_samples_per_token": width}
    return {"model_type": "gemma4_audio"} | _sizes(metadata, tensors)


def _sizes(metadata: Mapping[str, object], tensors: Mapping[str, StoredTensor]) -> dict[str, object]:
    channels = [_first_size(tensors, f"subsample_conv_projection.layer{i}.conv.weight") for i in (0, 1)]
    clipped = any(name.endswith(".input_min") for name in tensors)
    sizes: dict[str, object] = {
        "hidden_size": metadata.get("clip.audio.embedding_length"),
        "num_hidden_layers": metadata.get("clip.audio.block_count"),
        "num_attention_heads": metadata.get("clip.audio.attention.head_count"),
        "subsampling_conv_channels": channels if None not in channels else None,
        "conv_kernel_size": _kernel(tensors),
        "output_proj_dims": _first_size(tensors, "output_proj.weight"),
        "use_clipped_linears": clipped,
    }
    return {key: value for key, value in sizes.items() if value is not None}


def _first_size(tensors: Mapping[str, StoredTensor], name: str) -> int | None:
    tensor = tensors.get(f"audio_tower.{name}")
    return tensor.shape[0] if tensor is not None and tensor.shape else None


def _kernel(tensors: Mapping[str, StoredTensor]) -> int | None:
    convolution = tensors.get("audio_tower.layers.0.lconv1d.depthwise_conv1d.weight")
    return convolution.shape[-1] if convolution is not None and convolution.shape else None
