"""Every text tensor's name and shape, and from them how many parameters a model has and where they must lie.

Names are the Hugging Face checkpoint's, without the prefix up to ``language_model.``; a head is ``lm_head.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pocketgem.config.model import AltUpConfig, ExpertsConfig, LayerConfig, ModelConfig, PerLayerConfig
from pocketgem.config.towers import Shape, Shapes, audio_shapes, prefixed, uncounted_towers, vision_shapes

# Stored beside the weights but not trained: one number a layer or a linear, and the big vision tower's statistics.
BUFFERS = frozenset({"layer_scalar", "input_min", "input_max", "output_min", "output_max", "std_bias", "std_scale"})


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters in groups that can lie in different places. A tied head counts once, buffers not at all."""

    embedding: int  # the token table; the head too when tied
    head: int  # 0 when tied
    per_layer_table: int  # rows looked up by id: may stay in RAM or on disk
    core: int  # all else of the text decoder but routed experts
    experts: int  # all routed experts
    active_experts: int  # the share of ``experts`` one token uses
    vision: int  # tower and projector
    audio: int  # encoder and projector
    not_counted: tuple[str, ...] = ()  # towers whose shapes the config does not tell

    @property
    def text(self) -> int:
        return self.embedding + self.head + self.per_layer_table + self.core + self.experts

    @property
    def total(self) -> int:
        return self.text + self.vision + self.audio

    @property
    def effective(self) -> int:
        """What must lie in fast memory: the text model less its per-layer table and its routed experts.

        Google's "effective" sizes agree for E2B (2.28 for 2.3 B), less so for E4B (4.64 for 4.5 B), whose published
        definition is not established.
        """
        return self.core + self.embedding + self.head

    @property
    def active(self) -> int:
        """What one token reads: ``effective`` and its few experts. The per-layer table costs only rows."""
        return self.effective + self.active_experts


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count from the config alone. Raises FormatError where a tower's config holds a bad value."""
    decoder = decoder_shapes(config)
    groups = dict.fromkeys(("embedding", "head", "per_layer_table", "core", "experts"), 0)
    for name, shape in decoder.items():
        groups[group_of(name)] += count({name: shape})
    experts = config.experts
    return ParameterCounts(
        **groups,
        active_experts=groups["experts"] * experts.top_k // experts.num_experts if experts else 0,
        vision=count(vision_shapes(config)),
        audio=count(audio_shapes(config)),
        not_counted=uncounted_towers(config),
    )


def count(shapes: Mapping[str, Shape]) -> int:
    """Elements of all tensors that are not buffers."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in BUFFERS)


def group_of(name: str) -> str:
    """The group of ``ParameterCounts`` that a text tensor belongs to, by its Hugging Face name."""
    named = {
        "embed_tokens.weight": "embedding",
        "lm_head.weight": "head",
        "embed_tokens_per_layer.weight": "per_layer_table",
    }
    return named.get(name, "experts" if ".experts." in name else "core")


def decoder_shapes(config: ModelConfig) -> Shapes:
    """Name -> shape of every tensor of the text decoder, in torch's order (output features first)."""
    hidden = config.hidden_size
    shapes: Shapes = {"embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in config.layers:
        shapes |= prefixed(f"layers.{layer.index}.", _layer_shapes(config, layer))
    shapes["norm.weight"] = (hidden,)
    if config.per_layer is not None:
        shapes |= _per_layer_model(config.per_layer, config.num_layers, hidden)
    if config.altup is not None:
        shapes |= _altup_model(config.altup, hidden)
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _layer_shapes(config: ModelConfig, layer: LayerConfig) -> Shapes:
    hidden = config.hidden_size
    shapes = prefixed("self_attn.", _attention(layer, hidden)) | prefixed("mlp.", _mlp(layer, hidden))
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    shapes |= {f"{norm}_layernorm.weight": (hidden,) for norm in norms}
    if config.per_layer is not None:
        shapes |= _per_layer_block(config.per_layer, hidden)
    if config.altup is not None:
        shapes |= _altup_block(config.altup, hidden)
    if config.experts is not None:
        shapes |= _experts_block(config.experts, hidden)
    if config.family == "gemma4":
        shapes["layer_scalar"] = (1,)
    return shapes


def _attention(layer: LayerConfig, hidden: int) -> Shapes:
    """A layer that reads another's K/V has only queries; where values are keys there is no ``v_proj``."""
    queries, keys = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
    shapes: Shapes = {
        "q_proj.weight": (queries, hidden),
        "q_norm.weight": (layer.head_dim,),
        "o_proj.weight": (hidden, queries),
    }
    if layer.writes_kv:
        shapes |= {"k_proj.weight": (keys, hidden), "k_norm.weight": (layer.head_dim,)}
    if layer.writes_kv and not layer.value_is_key:
        shapes["v_proj.weight"] = (keys, hidden)
    return shapes


def _mlp(layer: LayerConfig, hidden: int) -> Shapes:
    width = layer.intermediate_size
    return {"gate_proj.weight": (width, hidden), "up_proj.weight": (width, hidden), "down_proj.weight": (hidden, width)}


def _per_layer_model(per_layer: PerLayerConfig, layers: int, hidden: int) -> Shapes:
    packed = layers * per_layer.hidden_size
    return {
        "embed_tokens_per_layer.weight": (per_layer.vocab_size, packed),
        "per_layer_model_projection.weight": (packed, hidden),
        "per_layer_projection_norm.weight": (per_layer.hidden_size,),
    }


def _per_layer_block(per_layer: PerLayerConfig, hidden: int) -> Shapes:
    return {
        "per_layer_input_gate.weight": (per_layer.hidden_size, hidden),
        "per_layer_projection.weight": (hidden, per_layer.hidden_size),
        "post_per_layer_input_norm.weight": (hidden,),
    }


def _altup_model(altup: AltUpConfig, hidden: int) -> Shapes:
    """Streams beyond the first get a matrix on the way in and one on the way out."""
    kinds = ("altup_projections", "altup_unembed_projections")
    return {f"{kind}.{i}.weight": (hidden, hidden) for kind in kinds for i in range(altup.num_inputs - 1)}


def _altup_block(altup: AltUpConfig, hidden: int) -> Shapes:
    streams, rank = altup.num_inputs, altup.laurel_rank
    return {
        "altup.correct_output_scale": (hidden,),
        "altup.correction_coefs.weight": (streams, streams),
        "altup.prediction_coefs.weight": (streams * streams, streams),
        "altup.modality_router.weight": (streams, hidden),
        "altup.router_norm.weight": (hidden,),
        "laurel.linear_left.weight": (rank, hidden),
        "laurel.linear_right.weight": (hidden, rank),
        "laurel.post_laurel_norm.weight": (hidden,),
    }


def _experts_block(experts: ExpertsConfig, hidden: int) -> Shapes:
    """Gate rows, then up rows, in one tensor. The dense MLP beside the experts brings three more norms."""
    number, width = experts.num_experts, experts.intermediate_size
    norms = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    return {
        "router.proj.weight": (number, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (number,),
        "experts.gate_up_proj": (number, 2 * width, hidden),
        "experts.down_proj": (number, hidden, width),
    } | {f"{norm}.weight": (hidden,) for norm in norms}
