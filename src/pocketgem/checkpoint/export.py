"""A checkpoint under Hugging Face's names becomes a GGUF file that this package and llama.cpp read.

Key names and conventions: llama.cpp's ``conversion/gemma.py`` (Gemma 3's norms carry their +1, Gemma 3n's AltUp
matrices are stacked, Gemma 4's partial rope is a tensor of divisors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.write import write_gguf
from pocketgem.config import LayerConfig, ModelConfig

STANDS_STILL = 1e30  # divisor of a rope frequency whose pair does not turn


def export_gguf(
    checkpoint: Checkpoint,
    path: Path,
    type: StoredType = StoredType.BF16,
    *,
    vocabulary: Mapping[str, object] | None = None,
) -> None:
    """Write a checkpoint as GGUF: matrices in ``type``, vectors in float32, ``vocabulary`` as the tokenizer's keys.

    Matrices whose rows do not fill whole blocks of the type stay float32. Raises CheckpointError for tensors that
    cannot be read.
    """
    metadata = {**metadata_of(checkpoint.config), **(vocabulary or {})}
    write_gguf(path, checkpoint.config.family, metadata, _tensors(checkpoint, type))


def metadata_of(config: ModelConfig) -> dict[str, object]:
    """The shapes of a model as GGUF metadata, keys with their architecture's prefix."""
    layers = config.layers
    meta: dict[str, object] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": _scalar_or_list([layer.intermediate_size for layer in layers]),
        "attention.head_count": layers[0].num_heads,
        "attention.head_count_kv": _scalar_or_list([layer.num_kv_heads for layer in layers]),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window_pattern": [layer.window is not None for layer in layers],
        **_optional(config),
        **_full_attention(config),
        **_sliding_attention(config),
    }
    return {f"{config.family}.{key}": value for key, value in meta.items()}


def _scalar_or_list(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _optional(config: ModelConfig) -> dict[str, object]:
    """What only some layouts have."""
    meta: dict[str, object] = {"attention.shared_kv_layers": sum(not layer.writes_kv for layer in config.layers)}
    if config.family == "gemma3":
        meta = {"attention.scale": config.attention_scale}
    if config.final_logit_softcapping is not None:
        meta["final_logit_softcapping"] = config.final_logit_softcapping
    if config.family != "gemma3":  # llama.cpp refuses a Gemma 4 file without it, so files without the table say 0
        meta["embedding_length_per_layer_input"] = 0 if config.per_layer is None else config.per_layer.hidden_size
    if config.experts is not None:
        meta["expert_count"] = config.experts.num_experts
        meta["expert_used_count"] = config.experts.top_k
        meta["expert_feed_forward_length"] = config.experts.intermediate_size
    if config.altup is not None:
        meta["altup.active_idx"] = config.altup.active_index
        meta["altup.num_inputs"] = config.altup.num_inputs
        meta["activation_sparsity_scale"] = [layer.sparsity_cutoff or 0.0 for layer in config.layers]
    return meta


def _full_attention(config: ModelConfig) -> dict[str, object]:
    layer = _last(config, sliding=False)
    if layer is None:
        return {}
    meta: dict[str, object] = {
        "attention.key_length": layer.head_dim,
        "attention.value_length": layer.head_dim,
        "rope.dimension_count": layer.head_dim,
        "rope.freq_base": layer.rope.theta,
    }
    if layer.rope.factor != 1.0:
        meta |= {"rope.scaling.type": "linear", "rope.scaling.factor": layer.rope.factor}
    return meta


def _sliding_attention(config: ModelConfig) -> dict[str, object]:
    layer = _last(config, sliding=True)
    if layer is None:
        return {}
    return {
        "attention.sliding_window": layer.window,
        "attention.key_length_swa": layer.head_dim,
        "attention.value_length_swa": layer.head_dim,
        "rope.dimension_count_swa": layer.head_dim,
        "rope.freq_base_swa": layer.rope.theta,
    }


def _last(config: ModelConfig, *, sliding: bool) -> LayerConfig | None:
    return next((layer for layer in reversed(config.layers) if (layer.window is not None) == sliding), None)


def _tensors(checkpoint: Checkpoint, type: StoredType) -> Iterator[tuple[str, Tensor, StoredType]]:
    stacks: dict[str, dict[int, Tensor]] = {}
    for hf, stored in checkpoint.tensors.items():
        if hf == "lm_head.weight" and checkpoint.config.tied_head:
            continue
        tensor, name, index = stored.dense(), names.gguf_name(hf), names.stack_index(hf)
        if checkpoint.norm_offset and "norm" in hf:
            tensor = tensor + checkpoint.norm_offset
        if index is None:
            yield name, tensor, _fitting(type, tensor)
        else:
            stacks.setdefault(name, {})[index] = tensor
    for name, members in stacks.items():
        stack = torch.stack([members[index] for index in sorted(members)])
        yield name, stack, _fitting(type, stack)
    yield from rope_divisors(checkpoint.config)


def unused_keys(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """K/V of layers that share another's: released Gemma 3n files carry them unused, and llama.cpp asks for them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in config.layers if config.family == "gemma3n" else ():
        if not layer.writes_kv:
            keys = (layer.num_kv_heads * layer.head_dim, config.hidden_size)
            prefix = f"layers.{layer.index}.self_attn"
            shapes |= {f"{prefix}.k_proj.weight": keys, f"{prefix}.v_proj.weight": keys}
            shapes[f"{prefix}.k_norm.weight"] = (layer.head_dim,)
    return shapes


def _fitting(type: StoredType, tensor: Tensor) -> StoredType:
    return type if tensor.ndim > 1 and tensor.shape[-1] % type.block_size == 0 else StoredType.F32


def rope_divisors(config: ModelConfig) -> Iterator[tuple[str, Tensor, StoredType]]:
    """Gemma 4's partial rope as llama.cpp stores it: ones, then divisors so large that a pair stands still."""
    layer = _last(config, sliding=False)
    if config.family == "gemma4" and layer is not None:
        divisors = torch.ones(layer.head_dim // 2)
        divisors[layer.rope.rotated_pairs :] = STANDS_STILL
        yield "rope_freqs.weight", divisors, StoredType.F32
