"""Layers over packed weights in few kernel calls: the same maths as the plain ones, which stay the definition.

A norm runs inside the product that follows it, a gate and a residual inside the one before. ``fuse`` puts these in the
plain ones' places, from outside; ``tests/test_packed.py`` compares the two.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pocketgem.kernels.compute import Compute, Heads, Norm, Weight
from pocketgem.model.cache import KeysValues, Step
from pocketgem.model.gemma import DecoderLayer, Gemma, RoutedBlock
from pocketgem.model.gemma3n import Gemma3nLayer
from pocketgem.model.layers import MLP, Ask, Attention, RMSNorm, Tables
from pocketgem.model.per_layer import INPUT_SCALE, PerLayerGate, PerLayerInputs
from pocketgem.model.quant import PackedLinear


class FusedAttention(nn.Module):
    """``layers.Attention``; where an ``entry`` norm is given, x is the residual stream and is normed on the way in."""

    def __init__(self, attention: Attention, compute: Compute, entry: RMSNorm | None = None) -> None:
        super().__init__()
        layer, self.compute = attention.layer, compute
        self.entry = None if entry is None else norm_of(entry)
        self.output = matrix_of(attention.o_proj)
        self.index = layer.index
        self.heads = Heads(
            layer.num_heads,
            layer.num_kv_heads,
            layer.head_dim,
            layer.window,
            attention.scale,
            attention.normed_values,
            norm_of(attention.q_norm),
            norm_of(attention.k_norm) if layer.writes_kv else None,
        )
        self.query = matrix_of(attention.q_proj)
        if layer.writes_kv:
            sources = (attention.k_proj,) if attention.v_proj is None else (attention.k_proj, attention.v_proj)
            self.sources = [matrix_of(source) for source in sources]

    def keys(self, x: Tensor, tables: Tables, step: Step) -> tuple[KeysValues, ...]:
        """Project and store K/V of x ``[rows, hidden]``."""
        raw = self.compute.linears(x, self.sources, self.entry)
        slots = step.reserve(self.index)
        targets = [(span.start, span.stop, slot.k, slot.v) for span, slot in zip(step.spans, slots, strict=True)]
        self.compute.write_keys(self.heads, raw[0], raw[-1], tables, targets)
        return tuple(slot.seen for slot in slots)

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Attend from rows x ``[rows, hidden]`` to what each span has seen."""
        return self.compute.linear(self.attend(x, ask), self.output)

    def attend(self, x: Tensor, ask: Ask) -> Tensor:
        """The same before the output projection: ``[rows, heads * head_dim]``."""
        q = self.compute.linear(x, self.query, self.entry)
        spans = [
            (span.start, span.stop, past.k, past.v, past.first)
            for span, past in zip(ask.step.spans, ask.seen, strict=True)
        ]
        return self.compute.attend(self.heads, q, ask.tables, ask.step.positions, spans)


class FusedGate:
    """``per_layer.PerLayerGate`` with its residual and the layer's scalar."""

    def __init__(self, gate: PerLayerGate, compute: Compute) -> None:
        self.compute = compute
        self.into, self.back = matrix_of(gate.per_layer_input_gate), matrix_of(gate.per_layer_projection)
        self.norm = norm_of(gate.post_per_layer_input_norm)

    def __call__(self, x: Tensor, vector: Tensor, factor: float) -> Tensor:
        return self.compute.add(x, self.compute.gated(x, self.into, vector), self.back, self.norm, factor)


class FusedLayer(nn.Module):
    """One ``DecoderLayer``: attention and MLP each with its norms and residual."""

    def __init__(self, plain: DecoderLayer, compute: Compute) -> None:
        super().__init__()
        self.plain, self.compute = plain, compute
        self.self_attn = FusedAttention(plain.self_attn, compute, plain.input_layernorm)
        self.after_attention = norm_of(plain.post_attention_layernorm)
        mlp = plain.mlp
        self.gate, self.up, self.down = (matrix_of(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.before_mlp = norm_of(plain.pre_feedforward_layernorm)
        self.after_mlp = norm_of(plain.post_feedforward_layernorm)
        self.per_layer = None if plain.gate is None else FusedGate(plain.gate, compute)
        self.factor = 1.0 if plain.layer_scalar is None else float(plain.layer_scalar)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, twice: attention norms it itself."""
        return x, x

    def forward(self, x: Tensor, normed: Tensor, vector: Tensor | None, ask: Ask) -> Tensor:
        """x ``[rows, hidden]``, vector ``[rows, dim]`` or None -> ``[rows, hidden]``."""
        x = self.compute.add(x, self.self_attn.attend(x, ask), self.self_attn.output, self.after_attention)
        if self.plain.routed is not None:
            return self._routed(x)
        inside = self.compute.geglu(x, self.gate, self.up, self.before_mlp)
        if self.per_layer is None or vector is None:
            return self.compute.add(x, inside, self.down, self.after_mlp, self.factor)
        x = self.compute.add(x, inside, self.down, self.after_mlp)
        gated: Tensor = self.per_layer(x, vector, self.factor)
        return gated

    def _routed(self, x: Tensor) -> Tensor:
        """Experts beside the MLP. No released layout has both experts and per-layer vectors."""
        dense = self.compute.linear(self.compute.geglu(x, self.gate, self.up, self.before_mlp), self.down)
        mixed = cast(RoutedBlock, self.plain.routed)(x, dense)
        out: Tensor = (x + self.plain.post_feedforward_layernorm(mixed)) * self.factor
        return out


class FusedMLP(nn.Module):
    """``layers.MLP`` in two calls."""

    def __init__(self, mlp: MLP, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        self.gate, self.up, self.down = (matrix_of(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute.linear(self.compute.geglu(x, self.gate, self.up), self.down)


class FusedPerLayerInputs(nn.Module):
    """``per_layer.PerLayerInputs``: the table's rows and the projection meet in one call."""

    def __init__(self, plain: PerLayerInputs, compute: Compute) -> None:
        super().__init__()
        if plain.table is None:
            raise RuntimeError("per-layer table not attached: build models through checkpoint.load")
        self.compute, self.shape, self.table = compute, plain.shape, plain.table
        self.vocab_size, self.table_scale = plain.vocab_size, plain.table_scale
        self.projection = matrix_of(plain.per_layer_model_projection)
        weight, eps = plain.per_layer_projection_norm.weight, plain.per_layer_projection_norm.eps
        # norm(s * y) is norm(y) with eps / s^2: the projection's scale needs no pass of its own.
        self.norm = Norm(weight, eps / plain.context_scale**2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """ids: ``[rows]``; x: scaled input embeddings ``[rows, hidden]``. Returns ``[rows, layers, dim]``."""
        inside = torch.where(ids < self.vocab_size, ids, 0)
        vectors = self.table.rows(inside, self.table_scale)
        projected = self.compute.linear(x, self.projection).view(-1, self.shape[1])
        self.compute.add_norm_(vectors.view(-1, self.shape[1]), projected, self.norm, INPUT_SCALE)
        return vectors


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
    if model.per_layer is not None:
        model.per_layer = FusedPerLayerInputs(model.per_layer, compute)  # type: ignore[assignment]  # same call
    if model.softcap is not None:
        model.softcap = FusedSoftCap(model.softcap.cap, compute)  # type: ignore[assignment]  # same call
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
