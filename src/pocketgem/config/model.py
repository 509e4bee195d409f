"""The shapes of one model. What differs by layer is written on that layer, so no code asks "which size is this?"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pocketgem.errors import FormatError

Family = Literal["gemma3", "gemma3n", "gemma4"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of one layer.

    Pair ``i`` of the ``head_dim // 2`` half-split pairs turns by ``position / factor * theta ** (-2 i / head_dim)``
    for ``i < rotated_pairs`` and not at all after that (Gemma 4's "proportional" rope on full layers).
    """

    theta: float
    head_dim: int
    rotated_pairs: int
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One decoder layer."""

    index: int
    window: int | None  # tokens a query sees, itself included; None: all
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    kv_layer: int  # the layer whose K/V this one attends to
    rope: Rope
    value_is_key: bool = False  # v = the raw key projection
    both_ways: bool = False  # rows of one image see each other
    sparsity_cutoff: float | None = None  # Gemma 3n: gate values below mean + cutoff * std are dropped

    @property
    def writes_kv(self) -> bool:
        """Whether this layer has K/V projections and a cache of its own."""
        return self.kv_layer == self.index

    @property
    def kind(self) -> Literal["sliding", "full"]:
        return "full" if self.window is None else "sliding"


@dataclass(frozen=True, kw_only=True)
class PerLayerConfig:
    """Per-layer embeddings: a table ``[vocab_size, num_layers * hidden_size]`` used as a lookup."""

    vocab_size: int
    hidden_size: int


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Routed experts, beside the dense MLP of every layer."""

    num_experts: int
    top_k: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class AltUpConfig:
    """Gemma 3n: alternating updates over ``num_inputs`` residual streams, and LAuReL's low rank."""

    num_inputs: int
    active_index: int
    laurel_rank: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One text backbone, with the towers' raw configs kept for counting and for the media rooms."""

    family: Family
    vocab_size: int
    hidden_size: int
    rms_norm_eps: float
    attention_scale: float
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    final_logit_softcapping: float | None = None
    per_layer: PerLayerConfig | None = None
    experts: ExpertsConfig | None = None
    altup: AltUpConfig | None = None
    tied_head: bool = True
    bos_id: int | None = 2
    eos_ids: tuple[int, ...] = (1,)
    pad_id: int = 0  # what stands in the per-layer table for rows that are no tokens
    vision: Mapping[str, object] | None = field(default=None, hash=False)
    audio: Mapping[str, object] | None = field(default=None, hash=False)
    unified: bool = False  # the 12B: media enter without encoders

    def __post_init__(self) -> None:
        for layer in self.layers:
            _check_layer(layer, self)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def sees_images_whole(self) -> bool:
        """Whether rows of one image see each other in some layer: then they must be computed in one step."""
        return any(layer.both_ways for layer in self.layers)

    @property
    def last_writer(self) -> int:
        """Index of the last layer that writes K/V. Past its keys only the rows whose logits are asked for matter."""
        return max(layer.index for layer in self.layers if layer.writes_kv)


def _check_layer(layer: LayerConfig, config: ModelConfig) -> None:
    """Cross-field laws that single bounds cannot see. Raises FormatError."""
    where = f"layer {layer.index}"
    if layer.num_heads % layer.num_kv_heads:
        raise FormatError(f"{where}: {layer.num_heads} query heads cannot share {layer.num_kv_heads} key heads")
    if layer.head_dim % 2:
        raise FormatError(f"{where}: head size {layer.head_dim} is odd, so rope cannot pair its dimensions")
    source = config.layers[layer.kv_layer] if 0 <= layer.kv_layer <= layer.index else None
    if source is None or not source.writes_kv:
        raise FormatError(f"{where}: reads the keys of layer {layer.kv_layer}, which writes none before it")
    if (source.head_dim, source.num_kv_heads, source.window) != (layer.head_dim, layer.num_kv_heads, layer.window):
        raise FormatError(f"{where}: shares keys with layer {source.index}, whose heads or window differ")
