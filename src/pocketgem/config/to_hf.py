"""A model's shapes as the ``config.json`` of a text model: the other way of ``hf.py``.

Where releases changed a spelling, both are written: transformers 5 reads ``rope_parameters``, older versions, vLLM and
MLX read ``rope_theta`` and its like. Released spellings are used where transformers has one of its own besides.
"""

from __future__ import annotations

import math
import statistics

from pocketgem.config.hf import FULL, SLIDING
from pocketgem.config.model import Family, LayerConfig, ModelConfig, Rope
from pocketgem.errors import UnsupportedError

ARCHITECTURES: dict[Family, str] = {
    "gemma3": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
}
Json = dict[str, object]


def to_hf(config: ModelConfig, dtype: str) -> Json:
    """The config of the text model alone, weights stored as ``dtype``.

    Raises UnsupportedError for shapes that no ``config.json`` can say.
    """
    first = config.layers[0]
    common: Json = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": f"{config.family}_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": _alike(config, [layer.num_heads for layer in config.layers], "query heads"),
        "num_key_value_heads": _of(config, SLIDING).num_kv_heads,
        "head_dim": _of(config, SLIDING).head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": _short(config.rms_norm_eps),
        "sliding_window": next((layer.window for layer in config.layers if layer.window is not None), 512),
        "layer_types": [FULL if layer.window is None else SLIDING for layer in config.layers],
        "rope_parameters": _ropes(config),
        "final_logit_softcapping": _optional(config.final_logit_softcapping),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied_head,
        "pad_token_id": 0,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids),
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    own = {"gemma3": _gemma3, "gemma3n": _gemma3n, "gemma4": _gemma4}[config.family](config, first)
    return common | own


def _of(config: ModelConfig, kind: str) -> LayerConfig:
    """The last layer of a kind that is there, for what its kind has in common."""
    wanted = "full" if kind == FULL else "sliding"
    return next((layer for layer in reversed(config.layers) if layer.kind == wanted), config.layers[-1])


def _short(value: float) -> float:
    """The shortest number that is the same in float32: what was written before a file made it 32 bits."""
    return float(f"{value:.7g}")


def _optional(value: float | None) -> float | None:
    return None if value is None else _short(value)


def _alike(config: ModelConfig, values: list[int], what: str) -> int:
    if len(set(values)) != 1:
        raise UnsupportedError(f"layers with different numbers of {what} have no config.json in family {config.family}")
    return values[0]


def _ropes(config: ModelConfig) -> Json:
    return {SLIDING: _rope(_of(config, SLIDING).rope), FULL: _rope(_of(config, FULL).rope)}


def _rope(rope: Rope) -> Json:
    theta: Json = {"rope_theta": _short(rope.theta)}
    if rope.rotated_pairs < rope.head_dim // 2:
        share = 2 * rope.rotated_pairs / rope.head_dim
        return theta | {"rope_type": "proportional", "partial_rotary_factor": share}
    if rope.factor != 1.0:
        return theta | {"rope_type": "linear", "factor": _short(rope.factor)}
    return theta | {"rope_type": "default"}


def _old_rope(config: ModelConfig) -> Json:
    full, sliding = _of(config, FULL).rope, _of(config, SLIDING).rope
    scaling = {"rope_type": "linear", "factor": _short(full.factor)} if full.factor != 1.0 else None
    old: Json = {"rope_theta": _short(full.theta), "rope_local_base_freq": _short(sliding.theta)}
    return old | {"rope_scaling": scaling}


def _shared(config: ModelConfig) -> int:
    return sum(not layer.writes_kv for layer in config.layers)


def _gemma3(config: ModelConfig, first: LayerConfig) -> Json:
    scalar = config.attention_scale**-2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-4):
        raise UnsupportedError(f"an attention scale of {config.attention_scale:g} is no whole query_pre_attn_scalar")
    own: Json = {
        "intermediate_size": _alike(config, [layer.intermediate_size for layer in config.layers], "MLP widths"),
        "query_pre_attn_scalar": round(scalar),
        "attn_logit_softcapping": None,
    }
    return own | _old_rope(config) | _period(config)


def _period(config: ModelConfig) -> Json:
    """Older readers know only "every n-th layer is full"."""
    full = [layer.index + 1 for layer in config.layers if layer.window is None]
    period = full[0] if full else config.num_layers + 1
    regular = full == list(range(period, config.num_layers + 1, period))
    return {"sliding_window_pattern": period} if regular else {}


def _gemma3n(config: ModelConfig, first: LayerConfig) -> Json:
    altup, per_layer = config.altup, config.per_layer
    if altup is None or per_layer is None:
        raise UnsupportedError("a Gemma 3n model without AltUp or per-layer embeddings was never released")
    own: Json = {
        "intermediate_size": [layer.intermediate_size for layer in config.layers],
        "activation_sparsity_pattern": [_sparsity(layer.sparsity_cutoff) for layer in config.layers],
        "num_kv_shared_layers": _shared(config),
        "vocab_size_per_layer_input": per_layer.vocab_size,
        "hidden_size_per_layer_input": per_layer.hidden_size,
        "altup_num_inputs": altup.num_inputs,
        "altup_active_idx": altup.active_index,
        "altup_correct_scale": True,
        "altup_coef_clip": 120.0,
        "laurel_rank": altup.laurel_rank,
    }
    return own | _old_rope(config)


def _sparsity(cutoff: float | None) -> float:
    return 0.0 if cutoff is None else round(statistics.NormalDist().cdf(cutoff), 6)


def _gemma4(config: ModelConfig, first: LayerConfig) -> Json:
    full, experts, per_layer = _of(config, FULL), config.experts, config.per_layer
    widths = [layer.intermediate_size for layer in config.layers]
    writers = config.num_layers - _shared(config)
    doubled = widths[-1] == 2 * widths[0]
    if widths != [widths[0]] * writers + [widths[0] * (1 + doubled)] * _shared(config):
        raise UnsupportedError("MLP widths differ by layer in a way that no Gemma 4 config.json can say")
    keys_are_values = any(layer.value_is_key for layer in config.layers)
    return {
        "intermediate_size": widths[0],
        "use_double_wide_mlp": doubled,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_kv_heads if keys_are_values else None,
        "attention_k_eq_v": keys_are_values,
        "num_kv_shared_layers": _shared(config),
        "hidden_size_per_layer_input": per_layer.hidden_size if per_layer else 0,
        "vocab_size_per_layer_input": per_layer.vocab_size if per_layer else config.vocab_size,
        "enable_moe_block": experts is not None,
        "num_experts": experts.num_experts if experts else None,
        "top_k_experts": experts.top_k if experts else None,
        "moe_intermediate_size": experts.intermediate_size if experts else None,
        "use_bidirectional_attention": "vision" if config.sees_images_whole else None,
    }
