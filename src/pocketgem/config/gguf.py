"""A model's shapes from GGUF metadata. What it leaves out (head layout, ranks) the tensors' own shapes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pocketgem.config.fields import MAX_LAYERS, MAX_SIZE, Fields
from pocketgem.config.hf import FULL, SLIDING, both_ways, kv_source
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

ARCHITECTURES: Mapping[str, Family] = {"gemma3": "gemma3", "gemma3n": "gemma3n", "gemma4": "gemma4"}
UNROTATED = 1e29  # rope_freqs divides the frequency; 1e30 stands for "does not turn"
Shapes = Mapping[str, tuple[int, ...]]


def from_gguf(
    metadata: Mapping[str, object],
    shapes: Shapes,
    rope_freqs: Sequence[float] | None = None,
    where: str = "GGUF metadata",
) -> ModelConfig:
    """Build a ModelConfig from GGUF metadata.

    ``shapes`` are the tensors' shapes by GGUF name (torch order); ``rope_freqs`` the values of the tensor of that name.
    Key names: llama.cpp's ``conversion/gemma.py``. Raises FormatError or UnsupportedError.
    """
    architecture = Fields(metadata, where).str("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(f"{where}: architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    family = ARCHITECTURES[architecture]
    meta = Fields(metadata, where, prefix=f"{architecture}.")
    layers = _layers(meta, family, shapes, rope_freqs)
    return ModelConfig(
        family=family,
        vocab_size=_rows(shapes, "token_embd.weight", where),
        hidden_size=meta.int("embedding_length"),
        rms_norm_eps=meta.float("attention.layer_norm_rms_epsilon", 1e-6, high=1.0),
        attention_scale=_attention_scale(meta, family, layers),
        max_position_embeddings=meta.int("context_length", 131_072),
        layers=layers,
        final_logit_softcapping=_softcap(meta, family),
        per_layer=_per_layer(meta, shapes),
        experts=_experts(meta),
        altup=_altup(meta, shapes) if family == "gemma3n" else None,
        tied_head="output.weight" not in shapes,
        bos_id=Fields(metadata, where).int("tokenizer.ggml.bos_token_id", 2, low=0),
        eos_ids=(Fields(metadata, where).int("tokenizer.ggml.eos_token_id", 1, low=0),),
    )


def _layers(
    meta: Fields, family: Family, shapes: Shapes, rope_freqs: Sequence[float] | None
) -> tuple[LayerConfig, ...]:
    count = meta.int("block_count", high=MAX_LAYERS)
    types = _layer_types(meta, family, count)
    # Early Gemma 3n files lack the key; both released sizes write K/V in exactly their first 20 layers.
    unwritten = max(count - 20, 0) if family == "gemma3n" else 0
    shared = meta.int("attention.shared_kv_layers", unwritten, low=0, high=count - 1)
    heads = meta.ints("attention.head_count", count)
    kv_heads = meta.ints("attention.head_count_kv", count, meta.raw("attention.head_count"))
    widths = meta.ints("feed_forward_length", count)
    cutoffs = _sparsity_cutoffs(meta, count) if family == "gemma3n" else [None] * count
    window = meta.int("attention.sliding_window", {"gemma3": 4096, "gemma3n": 512, "gemma4": 512}[family])
    value_is_key = _values_are_keys(meta, types[: count - shared], shapes) if family == "gemma4" else False
    # No key says so; of the released Gemma 4 those without per-layer embeddings see images whole.
    whole = not meta.int("embedding_length_per_layer_input", 0, low=0)
    layers = []
    for index, kind in enumerate(types):
        head_dim = _head_dim(meta, kind)
        kv_layer = kv_source(types, index, count - shared)
        layers.append(
            LayerConfig(
                index=index,
                window=window if kind == SLIDING else None,
                num_heads=heads[index],
                num_kv_heads=kv_heads[index],
                head_dim=head_dim,
                intermediate_size=widths[index],
                kv_layer=kv_layer,
                rope=_rope(meta, family, kind, head_dim, rope_freqs),
                value_is_key=value_is_key and kind == FULL,
                both_ways=both_ways(family, kind, whole),
                sparsity_cutoff=cutoffs[index],
            )
        )
    return tuple(layers)


def _values_are_keys(meta: Fields, writers: list[str], shapes: Shapes) -> bool:
    """No key says so: the full layers have no value projection, all of them. One alone without it is damage."""
    absent = {f"blk.{i}.attn_v.weight" not in shapes for i, kind in enumerate(writers) if kind == FULL}
    if len(absent) > 1:
        raise FormatError(f"{meta.where}: some full layers have tensor attn_v and some lack it")
    return absent == {True}


def _layer_types(meta: Fields, family: Family, count: int) -> list[str]:
    pattern = meta.raw("attention.sliding_window_pattern", 5 if family == "gemma3n" else 6)
    if isinstance(pattern, list | tuple):
        if len(pattern) != count or not all(isinstance(item, bool) for item in pattern):
            raise FormatError(f"{meta.where}: attention.sliding_window_pattern must hold {count} booleans")
        types = [SLIDING if sliding else FULL for sliding in pattern]
    else:
        period = meta.int("attention.sliding_window_pattern", pattern, high=MAX_LAYERS)
        types = [SLIDING if (i + 1) % period else FULL for i in range(count)]
    return [*types[:-1], FULL] if family == "gemma4" else types


def _head_dim(meta: Fields, kind: str) -> int:
    """``key_length`` is the full layers' size; sliding layers have a key of their own where it differs."""
    full = meta.int("attention.key_length", 256)
    if meta.int("attention.value_length", full) != full:
        raise UnsupportedError(f"{meta.where}: attention.value_length differs from attention.key_length")
    return meta.int("attention.key_length_swa", full) if kind == SLIDING else full


def _rope(meta: Fields, family: Family, kind: str, head_dim: int, freqs: Sequence[float] | None) -> Rope:
    if kind == SLIDING:
        theta = meta.float("rope.freq_base_swa", 1e4)
        return Rope(theta=theta, head_dim=head_dim, rotated_pairs=head_dim // 2)
    pairs = head_dim // 2
    if family == "gemma4":
        pairs = _rotated_pairs(meta, head_dim, freqs)
    scaling = meta.str("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedError(f"{meta.where}: rope.scaling.type {scaling!r}")
    factor = meta.float("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
    return Rope(theta=meta.float("rope.freq_base", 1e6), head_dim=head_dim, rotated_pairs=pairs, factor=factor)


def _rotated_pairs(meta: Fields, head_dim: int, freqs: Sequence[float] | None) -> int:
    """Gemma 4 writes its partial rope as divisors: ones, then 1e30 for the pairs that stand still."""
    if freqs is None:
        raise FormatError(f"{meta.where}: tensor rope_freqs.weight is missing; without it full layers turn wrongly")
    turning = sum(1 for value in freqs if value < UNROTATED)
    still = all(value >= UNROTATED for value in freqs[turning:])  # NaN is neither turning nor still
    if len(freqs) != head_dim // 2 or not still or any(value != 1.0 for value in freqs[:turning]):
        raise UnsupportedError(f"{meta.where}: tensor rope_freqs must be ones, then 1e30, {head_dim // 2} in all")
    return turning


def _sparsity_cutoffs(meta: Fields, count: int) -> list[float | None]:
    # The writer puts minus infinity, the cutoff that drops nothing, on dense layers.
    cutoffs = meta.floats("activation_sparsity_scale", count, [0.0] * count, low=-math.inf)
    return [cutoff if cutoff > 0 else None for cutoff in cutoffs]


def _attention_scale(meta: Fields, family: Family, layers: tuple[LayerConfig, ...]) -> float:
    """Gemma 3 27B (62 layers) scales by hidden_size / num_heads, all others by head_dim; later families not at all."""
    if family != "gemma3":
        return 1.0
    wide = meta.int("embedding_length") / layers[0].num_heads
    scalar = wide if len(layers) == 62 else layers[0].head_dim
    return meta.float("attention.scale", scalar**-0.5)


def _softcap(meta: Fields, family: Family) -> float | None:
    if family == "gemma3" and not meta.has("final_logit_softcapping"):
        return None
    return meta.float("final_logit_softcapping", 30.0)


def _per_layer(meta: Fields, shapes: Shapes) -> PerLayerConfig | None:
    size = meta.int("embedding_length_per_layer_input", 0, low=0)
    if size == 0:
        return None
    return PerLayerConfig(vocab_size=_rows(shapes, "per_layer_token_embd.weight", meta.where), hidden_size=size)


def _experts(meta: Fields) -> ExpertsConfig | None:
    count = meta.int("expert_count", 0, low=0, high=4096)
    if count == 0:
        return None
    return ExpertsConfig(
        num_experts=count,
        top_k=meta.int("expert_used_count", high=count),
        intermediate_size=meta.int("expert_feed_forward_length"),
    )


def _altup(meta: Fields, shapes: Shapes) -> AltUpConfig:
    inputs = meta.int("altup.num_inputs", 4, low=2, high=16)
    return AltUpConfig(
        num_inputs=inputs,
        active_index=meta.int("altup.active_idx", 0, low=0, high=inputs - 1),
        laurel_rank=_rows(shapes, "blk.0.laurel_l.weight", meta.where),
    )


def _rows(shapes: Shapes, name: str, where: str) -> int:
    if len(shapes.get(name, ())) != 2 or not 1 <= shapes[name][0] <= MAX_SIZE:
        raise FormatError(f"{where}: tensor {name} is missing or not a matrix of 1 to {MAX_SIZE} rows")
    return shapes[name][0]
