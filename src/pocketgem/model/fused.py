"""Layers over packed weights in few kernel calls: the same maths as the plain ones, which stay the definition.

A norm runs inside the product that follows it, a gate and a residual inside the one before. ``fuse`` puts these in the
plain ones' places, from outside; ``tests/test_packed.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from pocketgem.kernels.compute import Change, Compute, FusedDecoder, Heads, Norm, Span, Target, Weight
from pocketgem.kernels.low_rank import PackedLowRank
from pocketgem.model.cache import KeysValues, Seen, Slot, Step
from pocketgem.model.gemma import DecoderLayer, Gemma, RoutedBlock
from pocketgem.model.gemma3n import Gemma3nLayer
from pocketgem.model.layers import MLP, Ask, Attention, RMSNorm, Tables
from pocketgem.model.per_layer import INPUT_SCALE, PerLayerInputs
from pocketgem.model.quant import PackedLinear


class FusedAttention(nn.Module):
    """``layers.Attention`` for layers that are not fused whole: those of Gemma 3n."""

    def __init__(self, attention: Attention, compute: Compute) -> None:
        super().__init__()
        self.layer, self.compute = attention.layer, compute
        self.output = matrix_of(attention.o_proj)
        self.heads = plain_heads(attention)
        self.query = matrix_of(attention.q_proj)
        if self.layer.writes_kv:
            sources = (attention.k_proj,) if attention.v_proj is None else (attention.k_proj, attention.v_proj)
            self.sources = [matrix_of(source) for source in sources]

    def keys(self, x: Tensor, tables: Tables, step: Step) -> tuple[KeysValues, ...]:
        """Project and store K/V of x ``[rows, hidden]``."""
        raw = self.compute.linears(x.contiguous(), self.sources)
        slots = step.reserve(self.layer.index)
        targets = targets_of(step, slots)
        self.compute.write_keys(self.heads, raw[0], raw[-1], tables, targets)
        return tuple(slot.seen for slot in slots)

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Attend from rows x ``[rows, hidden]`` to what each span has seen."""
        q = self.compute.linear(x.contiguous(), self.query)
        spans = spans_of(ask.step, ask.seen)
        seen = self.compute.attend(self.heads, q, ask.tables, ask.step.sight(self.layer), spans)
        return self.compute.linear(seen, self.output)


def targets_of(step: Step, slots: Sequence[Slot]) -> list[Target]:
    """Where the rows of a step go, as the kernels take it."""
    spans = zip(step.spans, slots, strict=True)
    return [(span.start, span.stop, *slot.seen.addresses(slot.used)) for span, slot in spans]


def spans_of(step: Step, seen: Sequence[Seen]) -> list[Span]:
    """What the rows of a step may read, as the kernels take it."""
    spans = zip(step.spans, cast(Sequence[KeysValues], seen), strict=True)
    return [
        (span.start, span.stop, *past.addresses(past.begin), past.first, past.end - past.begin) for span, past in spans
    ]


class LayerKeys:
    """The half of a fused layer that the loop over layers calls as ``self_attn.keys``."""

    def __init__(self, index: int, layer: FusedDecoder) -> None:
        self.index, self.layer = index, layer

    def keys(self, x: Tensor, tables: Tables, step: Step) -> tuple[KeysValues, ...]:
        """Project and store K/V of the residual rows x ``[rows, hidden]``."""
        slots = step.reserve(self.index)
        targets = targets_of(step, slots)
        self.layer.write_keys(x, tables, targets)
        return tuple(slot.seen for slot in slots)


class FusedLayer(nn.Module):
    """One ``DecoderLayer`` in two calls: its keys, and the rest. With routed experts the rest is in parts."""

    def __init__(self, plain: DecoderLayer, compute: Compute) -> None:
        super().__init__()
        self.plain, self.compute = plain, compute
        self.factor = 1.0 if plain.layer_scalar is None else float(plain.layer_scalar)
        layer = compute.layer(parts_of(plain), norms_of(plain), plain_heads(plain.self_attn), self.factor)
        self.layer, self.self_attn = layer, LayerKeys(plain.layer.index, layer)
        if plain.routed is not None:
            self.dense = FusedMLP(plain.mlp, compute, plain.pre_feedforward_layernorm)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, twice: attention norms it itself."""
        return x, x

    def forward(self, x: Tensor, normed: Tensor, vector: Tensor | None, ask: Ask) -> Tensor:
        """x ``[rows, hidden]``, vector ``[rows, dim]`` or None -> ``[rows, hidden]``."""
        spans = spans_of(ask.step, ask.seen)
        if self.plain.routed is None:
            return self.layer.run(x, ask.tables, ask.step.sight(self.plain.layer), spans, vector)
        x = self.layer.attention(x, ask.tables, ask.step.sight(self.plain.layer), spans)
        return self._feed_both(x, self.plain.routed)

    def _feed_both(self, x: Tensor, routed: RoutedBlock) -> Tensor:
        """What ``DecoderLayer`` does behind attention, to x in place, norms on all threads."""
        compute, routes = self.compute, routed.route(x)
        mixed = compute.norm(self.dense(x), norm_of(routed.post_feedforward_layernorm_1))
        chosen = routed.experts(compute.norm(x, norm_of(routed.pre_feedforward_layernorm_2)), *routes)
        compute.add_norm_(mixed, chosen, norm_of(routed.post_feedforward_layernorm_2), 1.0)
        return compute.add_norm_(x, mixed, norm_of(self.plain.post_feedforward_layernorm), self.factor)


def parts_of(plain: DecoderLayer) -> dict[str, Weight]:
    """A layer's matrices under the names ``Compute.layer`` takes."""
    attention, mlp = plain.self_attn, plain.mlp
    modules: dict[str, nn.Module | None] = {
        "q": attention.q_proj,
        "k": attention.k_proj if attention.layer.writes_kv else None,
        "v": attention.v_proj if attention.layer.writes_kv else None,
        "o": attention.o_proj,
        "gate": mlp.gate_proj,
        "up": mlp.up_proj,
        "down": mlp.down_proj,
        "into": None if plain.gate is None else plain.gate.per_layer_input_gate,
        "back": None if plain.gate is None else plain.gate.per_layer_projection,
    }
    return {name: matrix_of(module) for name, module in modules.items() if module is not None}


def norms_of(plain: DecoderLayer) -> dict[str, Norm]:
    """A layer's norms beside those of its heads."""
    norms: dict[str, RMSNorm | None] = {
        "entry": plain.input_layernorm,
        "after_attention": plain.post_attention_layernorm,
        "before_mlp": plain.pre_feedforward_layernorm,
        "after_mlp": plain.post_feedforward_layernorm,
        "after_vector": None if plain.gate is None else plain.gate.post_per_layer_input_norm,
    }
    return {name: norm_of(module) for name, module in norms.items() if module is not None}


def plain_heads(attention: Attention) -> Heads:
    layer = attention.layer
    return Heads(
        layer.num_heads,
        layer.num_kv_heads,
        layer.head_dim,
        layer.window,
        attention.scale,
        attention.normed_values,
        norm_of(attention.q_norm),
        norm_of(attention.k_norm) if layer.writes_kv else None,
    )


@dataclass(frozen=True)
class MixedChanges:
    """What adapters change of one matrix of a layer that ``decoder`` does not multiply itself."""

    decoder: FusedDecoder  # knows whose the rows of a call are
    known: dict[int, PackedLowRank] = field(default_factory=dict)

    def of(self, count: int) -> list[Change]:
        """For a call with so many rows."""
        runs = self.decoder.whose(count)
        return [(start, stop, self.known[who]) for start, stop, who in runs if who in self.known]


class FusedMLP(nn.Module):
    """``layers.MLP`` in two calls; where an ``entry`` norm is given, x is normed on the way in."""

    def __init__(self, mlp: MLP, compute: Compute, entry: RMSNorm | None = None) -> None:
        super().__init__()
        self.compute, self.entry = compute, None if entry is None else norm_of(entry)
        self.gate, self.up, self.down = (matrix_of(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.changes: dict[str, MixedChanges] = {}  # by gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        opened = self._changes("gate", x), self._changes("up", x)
        inner = self.compute.geglu(x.contiguous(), self.gate, self.up, self.entry, opened)
        return self.compute.linear(inner, self.down, changes=self._changes("down", x))

    def _changes(self, part: str, x: Tensor) -> Sequence[Change]:
        return self.changes[part].of(len(x)) if part in self.changes else ()


ROWS_AT_ONCE = 128  # what is projected for every layer of a whole chunk would be tens of megabytes


class FusedPerLayerInputs(nn.Module):
    """``per_layer.PerLayerInputs``: the table's rows and the projection meet in one call."""

    def __init__(self, plain: PerLayerInputs, compute: Compute) -> None:
        super().__init__()
        self.compute, self.shape, self.identity, self.expect = compute, plain.shape, plain.identity, plain.expect
        self.projection = matrix_of(plain.per_layer_model_projection)
        weight, eps = plain.per_layer_projection_norm.weight, plain.per_layer_projection_norm.eps
        # norm(s * y) is norm(y) with eps / s^2: the projection's scale needs no pass of its own.
        self.norm = Norm(weight, eps / plain.context_scale**2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """ids: ``[rows]``; x: scaled input embeddings ``[rows, hidden]``. Returns ``[rows, layers, dim]``."""
        vectors = self.identity(ids)
        for piece, rows in zip(torch.split(vectors, ROWS_AT_ONCE), torch.split(x, ROWS_AT_ONCE), strict=True):
            projected = self.compute.linear(rows, self.projection).view(-1, self.shape[1])
            self.compute.add_norm_(piece.view(-1, self.shape[1]), projected, self.norm, INPUT_SCALE)
        return vectors


class FusedNorm(nn.Module):
    """``layers.RMSNorm`` in one call."""

    def __init__(self, plain: RMSNorm, compute: Compute) -> None:
        super().__init__()
        self.weight, self.eps, self.compute = plain.weight, plain.eps, compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute.norm(x.contiguous(), Norm(self.weight, self.eps))


class FusedSoftCap(nn.Module):
    """``layers.SoftCap`` on all threads."""

    def __init__(self, cap: float, compute: Compute) -> None:
        super().__init__()
        self.cap, self.compute = cap, compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute.softcap_(x, self.cap)


def fuse(model: Gemma, compute: Compute) -> None:
    """Put fused layers, or fused parts of layers, in the places of the plain ones. Every linear must be packed."""
    model.cache_dtype = torch.bfloat16
    model.norm = FusedNorm(model.norm, compute)  # type: ignore[assignment]  # same call
    if model.per_layer is not None:
        model.per_layer = FusedPerLayerInputs(model.per_layer, compute)  # type: ignore[assignment]  # same call
    if model.softcap is not None:
        model.softcap = FusedSoftCap(model.softcap.cap, compute)  # type: ignore[assignment]  # same call
    model.peaks = compute.peaks
    for i, layer in enumerate(model.layers):
        if isinstance(layer, DecoderLayer):
            model.layers[i] = FusedLayer(layer, compute)
        elif isinstance(layer, Gemma3nLayer):
            layer.self_attn = FusedAttention(layer.self_attn, compute)  # type: ignore[assignment]  # same two calls
            if layer.mlp.cutoff is None:
                layer.mlp = FusedMLP(layer.mlp, compute)  # type: ignore[assignment]


def norm_of(module: RMSNorm) -> Norm:
    return Norm(module.weight, module.eps)


def matrix_of(module: nn.Module) -> Weight:
    return cast(PackedLinear, module).matrix
