"""The released layouts by name: what each model's ``config.json`` says, built from the few numbers that differ.

Shapes from the model cards and reports and from transformers' config classes; ``eos_token_id`` is the config's own (1),
the turn-ending ids of the -it releases come with their tokenizer. A real checkpoint's config wins over this page.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType

from pocketgem.config.released_towers import (
    CONFORMER,
    MOBILENET,
    SIGLIP,
    UNIFIED_AUDIO,
    UNIFIED_VISION,
    USM,
    VISION_BIG,
    VISION_SMALL,
    JsonObject,
)
from pocketgem.errors import CheckpointError


def released_config(name: str) -> JsonObject:
    """A fresh Hugging Face style config of one released layout; case does not matter. Raises CheckpointError."""
    layouts = {known.lower(): config for known, config in RELEASED.items()}
    if name.lower() not in layouts:
        raise CheckpointError(f"no released layout is called {name[:60]!r}; known: {', '.join(RELEASED)}")
    return copy.deepcopy(layouts[name.lower()])


def _text(base: JsonObject, layers: int, period: int, widths: tuple[int, int, int, int], **own: object) -> JsonObject:
    """``widths``: hidden, MLP, query heads, K/V heads. Every ``period``-th layer sees all tokens, others a window."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    types = ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(layers)]
    return base | dict(zip(names, widths, strict=True)) | {"num_hidden_layers": layers, "layer_types": types} | own


def _model(architecture: str, model_type: str, text: JsonObject, **own: object) -> JsonObject:
    head: JsonObject = {"architectures": [architecture], "model_type": model_type, "text_config": text}
    return head | {"tie_word_embeddings": True, "dtype": "bfloat16"} | own


def _rope(**full: object) -> JsonObject:
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    return {"sliding_attention": sliding, "full_attention": {"rope_type": "default", "rope_theta": 1e6} | full}


_COMMON: JsonObject = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}

# --- Gemma 3: 270M and 1B read text only; 4B and up see images and stretch positions eightfold -----------------------

_GEMMA3: JsonObject = _COMMON | {"model_type": "gemma3_text", "query_pre_attn_scalar": 256}
_GEMMA3_SMALL: JsonObject = _GEMMA3 | {
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262_144,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "rope_parameters": _rope(),
    "dtype": "bfloat16",
}
_GEMMA3_LARGE: JsonObject = _GEMMA3 | {
    "vocab_size": 262_208,
    "sliding_window": 1024,
    "max_position_embeddings": 131_072,
    "rope_parameters": _rope(rope_type="linear", factor=8.0),
}


def _gemma3(layers: int, widths: tuple[int, int, int, int], **own: object) -> JsonObject:
    text = _text(_GEMMA3_LARGE, layers, 6, widths, **own)
    return _model("Gemma3ForConditionalGeneration", "gemma3", text, vision_config=SIGLIP, mm_tokens_per_image=256)


# --- Gemma 3n: E2B lies inside E4B, five layers fewer and the first half of each MLP ---------------------------------

_GEMMA3N: JsonObject = _COMMON | {
    "model_type": "gemma3n_text",
    "vocab_size": 262_400,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "laurel_rank": 64,
    "final_logit_softcapping": 30.0,
    "rope_parameters": _rope(),
}


def _gemma3n(layers: int, mlp: int) -> JsonObject:
    text = _text(_GEMMA3N, layers, 5, (2048, mlp, 8, 2), num_kv_shared_layers=layers - 20)
    text["intermediate_size"] = [mlp] * layers
    text["activation_sparsity_pattern"] = [0.95] * 10 + [0.0] * (layers - 10)
    return _model("Gemma3nForConditionalGeneration", "gemma3n", text, vision_config=MOBILENET, audio_config=USM)


# --- Gemma 4: E-models have per-layer embeddings and shared K/V; in 12B and up full layers use keys as values ---------

_GEMMA4: JsonObject = _COMMON | {
    "model_type": "gemma4_text",
    "vocab_size": 262_144,
    "global_head_dim": 512,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "vocab_size_per_layer_input": 262_144,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
    "final_logit_softcapping": 30.0,
    "rope_parameters": _rope(rope_type="proportional", partial_rotary_factor=0.25),
}
_GEMMA4_EDGE: JsonObject = _GEMMA4 | {
    "num_global_key_value_heads": None,
    "sliding_window": 512,
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131_072,
    "use_bidirectional_attention": None,
}
_GEMMA4_LARGE: JsonObject = _GEMMA4 | {
    "sliding_window": 1024,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262_144,
    "use_bidirectional_attention": "vision",
}
_GEMMA4_UNIFIED: JsonObject = _GEMMA4_LARGE | {"model_type": "gemma4_unified_text"}
_EXPERTS: JsonObject = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
_MEDIA_IDS: JsonObject = {
    "boi_token_id": 255_999,
    "eoi_token_id": 258_882,
    "image_token_id": 258_880,
    "video_token_id": 258_884,
    "boa_token_id": 256_000,
    "eoa_token_index": 258_883,  # the released spelling: "index" here, "id" elsewhere
    "audio_token_id": 258_881,
}


def _gemma4(text: JsonObject, vision: JsonObject, audio: JsonObject | None) -> JsonObject:
    towers: JsonObject = {"vision_config": vision, "audio_config": audio, "vision_soft_tokens_per_image": 280}
    return _model("Gemma4ForConditionalGeneration", "gemma4", text, **towers, **_MEDIA_IDS)


def _gemma4_unified(text: JsonObject) -> JsonObject:
    towers: JsonObject = {"vision_config": UNIFIED_VISION, "audio_config": UNIFIED_AUDIO}
    return _model("Gemma4UnifiedForConditionalGeneration", "gemma4_unified", text, **towers, **_MEDIA_IDS)


def _large(
    base: JsonObject, layers: int, widths: tuple[int, int, int, int], full_kv_heads: int, **own: object
) -> JsonObject:
    return _text(base, layers, 6, widths, num_global_key_value_heads=full_kv_heads, **own)


RELEASED: Mapping[str, JsonObject] = MappingProxyType(
    {
        "gemma-3-270m": _text(_GEMMA3_SMALL, 18, 6, (640, 2048, 4, 1)),
        "gemma-3-1b": _text(_GEMMA3_SMALL, 26, 6, (1152, 6912, 4, 1)),
        "gemma-3-4b": _gemma3(34, (2560, 10_240, 8, 4)),
        "gemma-3-12b": _gemma3(48, (3840, 15_360, 16, 8)),
        "gemma-3-27b": _gemma3(62, (5376, 21_504, 32, 16), head_dim=128, query_pre_attn_scalar=168),
        "gemma-3n-E2B": _gemma3n(30, 8192),
        "gemma-3n-E4B": _gemma3n(35, 16_384),
        "gemma-4-E2B": _gemma4(
            _text(_GEMMA4_EDGE, 35, 5, (1536, 6144, 8, 1), num_kv_shared_layers=20, use_double_wide_mlp=True),
            VISION_SMALL,
            CONFORMER,
        ),
        "gemma-4-E4B": _gemma4(
            _text(_GEMMA4_EDGE, 42, 6, (2560, 10_240, 8, 2), num_kv_shared_layers=18), VISION_SMALL, CONFORMER
        ),
        "gemma-4-12B": _gemma4_unified(_large(_GEMMA4_UNIFIED, 48, (3840, 15_360, 16, 8), 1)),
        "gemma-4-26B-A4B": _gemma4(_large(_GEMMA4_LARGE, 30, (2816, 2112, 16, 8), 2, **_EXPERTS), VISION_BIG, None),
        "gemma-4-31B": _gemma4(_large(_GEMMA4_LARGE, 60, (5376, 21_504, 32, 16), 4), VISION_BIG, None),
    }
)
