"""What the shapes alone tell: layers by kind, the pattern they form, and what their keys and values cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pocketgem.config import AltUpConfig, ExpertsConfig, LayerConfig, ModelConfig, PerLayerConfig

SPANS = (4096, 32_768)  # tokens at which the cache is priced, beside the model's own limit
CACHE_BYTES = 2  # keys and values in bfloat16; a float32 run holds twice as much
_MARKS = {"sliding": "S", "full": "F"}


@dataclass(frozen=True)
class LayerKind:
    """All layers that are built alike. ``reads``: the layers whose keys they use, none when they write their own."""

    kind: str
    count: int
    window: int | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    value_is_key: bool
    rope_theta: float
    rope_factor: float
    rotated: int  # dimensions of a head that rope turns
    reads: tuple[int, ...]


@dataclass(frozen=True)
class CacheCost:
    """Keys and values of one kind of layer, in bytes. ``at`` goes from tokens in the context to bytes."""

    kind: str
    layers: int
    window: int | None  # from here on nothing grows
    bytes_per_token: int
    at: dict[int, int]


@dataclass(frozen=True)
class Layout:
    """A model's form: everything about it but its weights."""

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    context: int
    tied_head: bool
    logit_softcapping: float | None
    per_layer: PerLayerConfig | None
    experts: ExpertsConfig | None
    altup: AltUpConfig | None
    kinds: tuple[LayerKind, ...]
    pattern: str  # S sliding, F full, in small letters where another layer's keys are read; a space after each full one
    cache: tuple[CacheCost, ...]


def describe_layout(config: ModelConfig) -> Layout:
    """The layout of a config, with the costs of its cache."""
    return Layout(
        family=config.family,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        tied_head=config.tied_head,
        logit_softcapping=config.final_logit_softcapping,
        per_layer=config.per_layer,
        experts=config.experts,
        altup=config.altup,
        kinds=_kinds(config.layers),
        pattern=_pattern(config.layers),
        cache=_cache(config),
    )


def _kinds(layers: Iterable[LayerConfig]) -> tuple[LayerKind, ...]:
    """Equal layers together, in the order in which their first ones stand."""
    groups: dict[tuple[object, ...], list[LayerConfig]] = {}
    for layer in layers:
        groups.setdefault(_likeness(layer), []).append(layer)
    return tuple(_kind(members) for members in groups.values())


def _likeness(layer: LayerConfig) -> tuple[object, ...]:
    width, heads = layer.intermediate_size, (layer.num_heads, layer.num_kv_heads, layer.head_dim)
    return layer.kind, layer.window, heads, width, layer.value_is_key, layer.rope, layer.writes_kv


def _kind(members: list[LayerConfig]) -> LayerKind:
    first = members[0]
    return LayerKind(
        kind=first.kind,
        count=len(members),
        window=first.window,
        num_heads=first.num_heads,
        num_kv_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        intermediate_size=first.intermediate_size,
        value_is_key=first.value_is_key,
        rope_theta=first.rope.theta,
        rope_factor=first.rope.factor,
        rotated=2 * first.rope.rotated_pairs,
        reads=() if first.writes_kv else tuple(sorted({layer.kv_layer for layer in members})),
    )


def _pattern(layers: Iterable[LayerConfig]) -> str:
    drawn = []
    for layer in layers:
        mark = _MARKS[layer.kind] if layer.writes_kv else _MARKS[layer.kind].lower()
        drawn.append(mark + (" " if layer.window is None else ""))
    return "".join(drawn).strip()


def _cache(config: ModelConfig) -> tuple[CacheCost, ...]:
    limit = config.max_position_embeddings
    spans = sorted({*(span for span in SPANS if span < limit), limit})
    writers = [layer for layer in config.layers if layer.writes_kv]
    found = []
    for kind, window in dict.fromkeys((layer.kind, layer.window) for layer in writers):
        members = [layer for layer in writers if (layer.kind, layer.window) == (kind, window)]
        each = sum(2 * layer.num_kv_heads * layer.head_dim * CACHE_BYTES for layer in members)
        at = {span: each * (span if window is None else min(span, window)) for span in spans}
        found.append(CacheCost(kind, len(members), window, each, at))
    return tuple(found)
