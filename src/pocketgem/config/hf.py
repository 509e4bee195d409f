"""A model's shapes from a Hugging Face ``config.json``, in every spelling released checkpoints and transformers use."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import cast

from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.config.model import (
    AltUpConfig,
    ExpertsConfig,
    Family,
    LayerConfig,
    ModelConfig,
    PerLayerConfig,
    Rope,
)
from pocketgem.errors import FormatError, UnsupportedError

FAMILIES: Mapping[str, Family] = {
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma3n": "gemma3n",
    "gemma3n_text": "gemma3n",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "gemma4_unified": "gemma4",
    "gemma4_unified_text": "gemma4",
}
SLIDING, FULL = "sliding_attention", "full_attention"


def from_hf(config: Mapping[str, object], where: str = "config.json") -> ModelConfig:
    """Build a ModelConfig from a parsed ``config.json``.

    The text part may stand alone or under ``text_config``. Unknown keys are ignored: the file is data, and nothing in
    it can name code. Raises FormatError for a missing or absurd value, UnsupportedError for another architecture.
    """
    if not isinstance(config, Mapping):
        raise FormatError(f"{where}: expected a JSON object, found a {type(config).__name__}")
    top = Fields(config, where)
    model_type = top.str("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedError(f"{where}: model_type {model_type!r} is not one of {', '.join(sorted(FAMILIES))}")
    text = top.section("text_config") if top.has("text_config") else top
    family, unified = FAMILIES[model_type], model_type.startswith("gemma4_unified")
    _refuse_unsupported(text, family)
    layer_types = _layer_types(text, family)
    return ModelConfig(
        family=family,
        vocab_size=text.int("vocab_size", {"gemma3": 262_208, "gemma3n": 262_400, "gemma4": 262_144}[family]),
        hidden_size=text.int("hidden_size"),
        rms_norm_eps=text.float("rms_norm_eps", 1e-6, high=1.0),
        attention_scale=_attention_scale(text, family),
        max_position_embeddings=text.int("max_position_embeddings", _default_context(family, unified)),
        layers=_layers(text, family, unified, layer_types),
        final_logit_softcapping=_softcap(text, family),
        per_layer=None if unified else _per_layer(text, family),
        experts=_experts(text),
        altup=_altup(text) if family == "gemma3n" else None,
        tied_head=text.bool("tie_word_embeddings", top.bool("tie_word_embeddings", True)),
        bos_id=text.int("bos_token_id", 2, low=0),
        pad_id=text.int("pad_token_id", 0, low=0),
        eos_ids=_eos_ids(top, text),
        vision=_vision(top, family),
        audio=top.section("audio_config").data if top.has("audio_config") else None,
        unified=unified,
    )


def _vision(top: Fields, family: Family) -> Mapping[str, object] | None:
    """Gemma 3 says beside the tower's config, not in it, how many rows an image becomes."""
    if not top.has("vision_config"):
        return None
    section = top.section("vision_config").data
    if family != "gemma3" or not top.has("mm_tokens_per_image"):
        return section
    return {**section, "mm_tokens_per_image": top.raw("mm_tokens_per_image")}


def _default_context(family: Family, unified: bool) -> int:
    return 262_144 if unified else {"gemma3": 131_072, "gemma3n": 32_768, "gemma4": 131_072}[family]


def _refuse_unsupported(text: Fields, family: Family) -> None:
    activation = text.str("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise UnsupportedError(f"{text.where}: hidden_activation {activation!r}; the family uses gelu_pytorch_tanh")
    if text.bool("attention_bias", False):
        raise UnsupportedError(f"{text.where}: attention_bias is true; the family has no biases")
    bidirectional = text.raw("use_bidirectional_attention", None)
    if bidirectional not in (None, False, "vision"):
        raise UnsupportedError(f"{text.where}: bidirectional attention over text (an encoder) cannot generate")
    if family == "gemma3" and text.has("attn_logit_softcapping"):
        raise UnsupportedError(f"{text.where}: attn_logit_softcapping is Gemma 2's; Gemma 3 has none")


def _sees_whole(text: Fields, family: Family, unified: bool) -> bool:
    """Whether the rows of an image see each other: the 12B's do where its config says nothing, and do not for null."""
    usual = "vision" if unified else None
    return family == "gemma3" or text.data.get("use_bidirectional_attention", usual) == "vision"


def _layer_types(text: Fields, family: Family) -> list[str]:
    count = text.int("num_hidden_layers", 26 if family == "gemma3" else None, high=MAX_LAYERS)
    types = text.raw("layer_types", None)
    if types is None:
        pattern = text.int("sliding_window_pattern", 5 if family == "gemma3n" else 6, high=MAX_LAYERS)
        types = [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
    if not isinstance(types, list) or len(types) != count or any(kind not in (SLIDING, FULL) for kind in types):
        raise FormatError(f"{text.where}: layer_types must name {count} layers, each {SLIDING} or {FULL}")
    if family == "gemma4":
        types = [*types[:-1], FULL]  # the reference forces the last layer to see everything
    return cast(list[str], types)


def _layers(text: Fields, family: Family, unified: bool, types: list[str]) -> tuple[LayerConfig, ...]:
    count = len(types)
    shared = text.int("num_kv_shared_layers", 15 if family == "gemma3n" else 0, low=0, high=count - 1)
    widths = _mlp_widths(text, types, count - shared)
    cutoffs = _sparsity_cutoffs(text, count) if family == "gemma3n" else [None] * count
    window = text.int("sliding_window", 1024 if unified else {"gemma3": 4096, "gemma3n": 512, "gemma4": 512}[family])
    heads = _heads(text, family, types)
    value_is_key = text.bool("attention_k_eq_v", False)
    whole = _sees_whole(text, family, unified)
    layers = []
    for index, kind in enumerate(types):
        kv_heads, head_dim = heads[index]
        layers.append(
            LayerConfig(
                index=index,
                window=window if kind == SLIDING else None,
                num_heads=text.int("num_attention_heads", 8),
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                intermediate_size=widths[index],
                kv_layer=kv_source(types, index, count - shared),
                rope=_rope(text, family, kind, head_dim),
                value_is_key=value_is_key and kind == FULL,
                both_ways=both_ways(family, kind, whole),
                sparsity_cutoff=cutoffs[index],
            )
        )
    return tuple(layers)


def both_ways(family: Family, kind: str, whole: bool) -> bool:
    """Whether rows of one image see each other in a layer, of a model that sees images ``whole``: Gemma 3 everywhere,
    Gemma 4 in its sliding layers."""
    return whole and (family == "gemma3" or (family == "gemma4" and kind == SLIDING))


def kv_source(types: list[str], index: int, first_shared: int) -> int:
    """The layer whose K/V layer ``index`` reads: itself, or the last writer of its own kind. Raises FormatError."""
    if index < first_shared:
        return index
    writers = [i for i in range(first_shared) if types[i] == types[index]]
    if not writers:
        shared = len(types) - first_shared
        raise FormatError(f"layer {index} is one of {shared} that share keys, but no {types[index]} layer writes any")
    return writers[-1]


def _heads(text: Fields, family: Family, types: list[str]) -> list[tuple[int, int]]:
    """(num_kv_heads, head_dim) of each layer."""
    kv_heads, head_dim = text.int("num_key_value_heads", 2 if family == "gemma3n" else 4), text.int("head_dim", 256)
    heads = [(kv_heads, head_dim)] * len(types)
    if family != "gemma4":
        return heads
    if text.has("per_layer_config"):
        for index, own in _overrides(text, len(types)).items():
            heads[index] = own.int("num_key_value_heads", kv_heads), own.int("head_dim", head_dim)
        return heads
    return [_full_heads(text, kv_heads) if kind == FULL else own for own, kind in zip(heads, types, strict=True)]


def _full_heads(text: Fields, kv_heads: int) -> tuple[int, int]:
    """Gemma 4's full layers, as released: a head size of their own, and K/V heads too where their values are keys."""
    if text.bool("attention_k_eq_v", False):
        kv_heads = text.int("num_global_key_value_heads", kv_heads)
    return kv_heads, text.int("global_head_dim", 512)


def _overrides(text: Fields, count: int) -> Mapping[int, Fields]:
    """transformers' spelling: layer number, as zero-padded text ("04") -> what that layer has of its own."""
    section = text.section("per_layer_config")
    overrides = {}
    for key in section.data:
        if not (key.isascii() and key.isdigit() and len(key) <= 4 and int(key) < count):
            raise FormatError(f"{section.where}: {key[:60]!r} is not a layer number below {count}")
        overrides[int(key)] = section.section(key)
    return overrides


def _mlp_widths(text: Fields, types: list[str], first_shared: int) -> tuple[int, ...]:
    widths = text.ints("intermediate_size", len(types))
    if text.bool("use_double_wide_mlp", False):
        return tuple(width * (2 if i >= first_shared else 1) for i, width in enumerate(widths))
    return widths


def _sparsity_cutoffs(text: Fields, count: int) -> list[float | None]:
    """Standard deviations above the mean that keep the top ``1 - sparsity`` of a Gaussian."""
    sparse = 10 if count > 10 else 0
    default = [0.95] * sparse + [0.0] * (count - sparse)
    levels = text.floats("activation_sparsity_pattern", count, default)
    if any(not 0.0 <= level < 1.0 for level in levels):
        raise FormatError(f"{text.where}: activation_sparsity_pattern must lie between 0 and 1")
    return [statistics.NormalDist().inv_cdf(level) if level > 0 else None for level in levels]


def _rope(text: Fields, family: Family, kind: str, head_dim: int) -> Rope:
    parameters = text.section("rope_parameters").section(kind)
    if kind == FULL and not text.has("rope_parameters"):
        parameters = _old_rope(text, family)
    old_key, default = ("rope_theta", 1e6) if kind == FULL else ("rope_local_base_freq", 1e4)
    theta = parameters.float("rope_theta", text.float(old_key, default))
    rope_type = parameters.str("rope_type", parameters.str("type", "default"))  # "type": the oldest spelling
    if rope_type not in ("default", "linear", "proportional"):
        raise UnsupportedError(f"{parameters.where}: rope_type {rope_type!r}")
    partial = parameters.float("partial_rotary_factor", 1.0, high=1.0) if rope_type == "proportional" else 1.0
    factor = parameters.float("factor", 1.0) if rope_type != "default" else 1.0
    return Rope(theta=theta, head_dim=head_dim, rotated_pairs=int(partial * head_dim // 2), factor=factor)


def _old_rope(text: Fields, family: Family) -> Fields:
    """Before ``rope_parameters``: ``rope_scaling`` on full layers, or Gemma 4's defaults."""
    if family == "gemma4":
        return Fields({"rope_type": "proportional", "partial_rotary_factor": 0.25}, text.where)
    return text.section("rope_scaling")


def _attention_scale(text: Fields, family: Family) -> float:
    return float(text.float("query_pre_attn_scalar", 256) ** -0.5) if family == "gemma3" else 1.0


def _softcap(text: Fields, family: Family) -> float | None:
    default = 30.0 if family == "gemma3n" else None
    return text.float("final_logit_softcapping", default) if text.has("final_logit_softcapping") or default else None


def _per_layer(text: Fields, family: Family) -> PerLayerConfig | None:
    size = text.int("hidden_size_per_layer_input", 0 if family == "gemma3" else 256, low=0)
    if size == 0 or family == "gemma3":
        return None
    return PerLayerConfig(vocab_size=text.int("vocab_size_per_layer_input", 262_144), hidden_size=size)


def _experts(text: Fields) -> ExpertsConfig | None:
    if not text.bool("enable_moe_block", False):
        return None
    count = text.int("num_experts", high=4096)
    return ExpertsConfig(
        num_experts=count,
        top_k=text.int("top_k_experts", high=count),
        intermediate_size=text.int("moe_intermediate_size"),
    )


def _altup(text: Fields) -> AltUpConfig:
    if not text.bool("altup_correct_scale", True):
        raise UnsupportedError(f"{text.where}: altup_correct_scale false was never released")
    inputs = text.int("altup_num_inputs", 4, low=2, high=16)
    return AltUpConfig(
        num_inputs=inputs,
        active_index=text.int("altup_active_idx", 0, low=0, high=inputs - 1),
        laurel_rank=text.int("laurel_rank", 64),
    )


def _eos_ids(top: Fields, text: Fields) -> tuple[int, ...]:
    value = top.raw("eos_token_id", text.raw("eos_token_id", 1))
    items = value if isinstance(value, list) else [value]
    return Fields({"eos_token_id": items}, text.where).ints("eos_token_id", len(items), low=0)
