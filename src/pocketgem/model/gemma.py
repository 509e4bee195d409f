"""The text backbone of Gemma 3 and Gemma 4: ``embed``, ``forward``, ``logits``.

    ids --embed--> x, per-layer vectors --forward--> hidden rows whose logits are wanted --logits--> scores

What differs between sizes (windows, head sizes, shared keys, experts, per-layer vectors) stands in the config's layers;
this page has no size of its own. Source: transformers' gemma3 and gemma4, the oracle of ``tests/test_parity.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pocketgem.config import ExpertsConfig, LayerConfig, ModelConfig
from pocketgem.model import ops
from pocketgem.model.cache import Cache, Seen, Step
from pocketgem.model.experts import Experts, Router
from pocketgem.model.layers import MLP, Ask, Attention, Block, Embedding, Linear, RMSNorm, RotaryTables, SoftCap
from pocketgem.model.per_layer import PerLayerGate, PerLayerInputs


@dataclass(frozen=True)
class Inputs:
    """What enters the first layer."""

    x: Tensor  # [rows, hidden]
    per_layer: Tensor | None  # [rows, layers, dim]


@dataclass(frozen=True)
class Soft:
    """Rows that are no tokens: what a tower made of a picture or a sound."""

    rows: Tensor  # [n] int64, ascending, on the CPU
    vectors: Tensor  # [n, hidden]


Routes = tuple[Tensor, Tensor]  # weights and indices, each [rows, top_k]


class RoutedBlock(nn.Module):
    """The experts beside the dense MLP: both see the same residual, their normed outputs add up."""

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.router = Router(config, experts)
        self.experts = Experts(config, experts)
        self.pre_feedforward_layernorm_2 = RMSNorm(size, eps)
        self.post_feedforward_layernorm_1 = RMSNorm(size, eps)
        self.post_feedforward_layernorm_2 = RMSNorm(size, eps)

    def route(self, residual: Tensor) -> Routes:
        """Choose before the dense MLP runs: experts that are not in memory are read meanwhile."""
        weights, indices = self.router(residual)
        self.experts.expect(indices)
        return weights, indices

    def forward(self, residual: Tensor, dense: Tensor, routes: Routes) -> Tensor:
        routed = self.experts(self.pre_feedforward_layernorm_2(residual), *routes)
        out: Tensor = self.post_feedforward_layernorm_1(dense) + self.post_feedforward_layernorm_2(routed)
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each between two norms; experts, a per-layer vector and a scalar where the model has them."""

    def __init__(self, layer: LayerConfig, config: ModelConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.layer = layer
        self.self_attn = Attention(layer, config)
        self.mlp = MLP(size, layer.intermediate_size)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.pre_feedforward_layernorm = RMSNorm(size, eps)
        self.post_feedforward_layernorm = RMSNorm(size, eps)
        self.routed = RoutedBlock(config, config.experts) if config.experts else None
        self.gate = PerLayerGate(config, config.per_layer) if config.per_layer else None
        self.layer_scalar = nn.Parameter(torch.empty(1)) if config.family == "gemma4" else None

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention sees of it."""
        return x, self.input_layernorm(x)

    def forward(self, x: Tensor, normed: Tensor, vector: Tensor | None, ask: Ask) -> Tensor:
        """x and normed ``[rows, hidden]``, vector ``[rows, dim]`` or None -> ``[rows, hidden]``."""
        x = x + self.post_attention_layernorm(self.self_attn(normed, ask))
        x = x + self.post_feedforward_layernorm(self.feed_forward(x))
        if self.gate is not None:
            x = x + self.gate(x, vector)
        return x if self.layer_scalar is None else x * self.layer_scalar

    def feed_forward(self, x: Tensor) -> Tensor:
        routes = None if self.routed is None else self.routed.route(x)
        dense: Tensor = self.mlp(self.pre_feedforward_layernorm(x))
        return dense if self.routed is None else cast(Tensor, self.routed(x, dense, routes))


class Shortcut(Protocol):
    """Another way to run the layers, for the steps that it takes. adapters: whether some rows have one.

    ready: see ``Gemma.ready``.
    """

    def takes(self, step: Step, *, adapters: bool) -> bool: ...
    def ready(self, inputs: Inputs, step: Step) -> Callable[[], Tensor]: ...


class Gemma(nn.Module):
    """Gemma 3 and Gemma 4 text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.per_layer = PerLayerInputs(config, config.per_layer) if config.per_layer else None
        self.layers = nn.ModuleList(self.make_layer(layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        cap = config.final_logit_softcapping
        self.softcap = None if cap is None else SoftCap(cap)
        self.peaks: Callable[[Tensor], list[int | None]] = ops.peaks  # of logits [rows, vocab]
        self.tables = RotaryTables(config)
        self.read_later = frozenset(layer.kv_layer for layer in config.layers if not layer.writes_kv)
        self.last_writer = config.last_writer
        self.cache_dtype: torch.dtype | None = None  # None: as the activations
        self.shortcut: Shortcut | None = None  # runs steps in ``forward``'s place, where it can
        self.has_own_threads = False  # True: products run on the compiled kernels' threads, not on torch's

    def make_layer(self, layer: LayerConfig) -> nn.Module:
        return DecoderLayer(layer, self.config)

    @property
    def dtype(self) -> torch.dtype:
        """The type activations are computed in."""
        return self.embed_tokens.dtype

    @property
    def device(self) -> torch.device:
        """Where the layers run. Ids and rows of tables come from the CPU."""
        return self.norm.weight.device

    def new_cache(self, limit: int | None = None) -> Cache:
        """An empty past for one sequence, of at most ``limit`` tokens where that is known."""
        return Cache(self.config, self.cache_dtype or self.dtype, self.device, limit)

    def embed(self, ids: Tensor, soft: Soft | None = None) -> Inputs:
        """ids ``[rows]`` int64 on the CPU -> scaled embeddings and per-layer vectors, on the model's device.

        soft: rows whose ids are placeholders; their vectors are taken as they are, and the per-layer table has the
        padding token's row for them.
        """
        if soft is not None:
            ids = ids.index_fill(0, soft.rows, self.config.pad_id)
        x = self.embed_tokens(ids)
        if soft is not None:
            x[soft.rows.to(x.device)] = soft.vectors.to(x.device, x.dtype)
        return Inputs(x, None if self.per_layer is None else self.per_layer(ids, x))

    def expect(self, ids: Sequence[int]) -> None:
        """These ids will be embedded soon: rows of theirs that lie on disk start to come. Never fails."""
        self.embed_tokens.expect(ids)
        if self.per_layer is not None:
            self.per_layer.expect(ids)

    def forward(self, inputs: Inputs, step: Step) -> Tensor:
        """Run the layers and write every cache of the step; returns ``[wanted rows, hidden]``, after the final norm.

        Rows whose logits nobody wants leave at ``config.last_writer``, right after their keys are stored.
        """
        hidden: Tensor = self.norm(self.run_layers(inputs, step))
        return hidden

    def ready(self, inputs: Inputs, step: Step, *, adapters: bool = False) -> Callable[[], Tensor]:
        """``forward``, or what takes its place for this step, up to where kernels take over; a call goes on.

        adapters: whether some of its rows have one.
        """
        if self.shortcut is not None and self.shortcut.takes(step, adapters=adapters):
            return self.shortcut.ready(inputs, step)
        return partial(self, inputs, step)

    def run_layers(self, inputs: Inputs, step: Step) -> Tensor:
        x, vectors, tables = inputs.x, inputs.per_layer, self.tables.at(step.positions, inputs.x.dtype)
        shared: dict[int, tuple[Seen, ...]] = {}
        skips = step.skip and len(step.logit_rows) < len(x)  # decode wants every row: there is nothing to leave out
        for layer, block in zip(self.config.layers, cast(Iterable[Block], self.layers), strict=True):
            x, normed = block.enter(x)
            writes, attend = layer.writes_kv, block.self_attn
            seen = attend.keys(normed, tables[layer.rope], step) if writes else shared[layer.kv_layer]
            if layer.index in self.read_later:
                shared[layer.index] = seen
            if layer.index == self.last_writer and skips:
                rows, step = step.logit_rows, step.wanted()
                x, normed, vectors = x[rows], normed[rows], None if vectors is None else vectors[rows]
                tables = self.tables.at(step.positions, x.dtype)
                if not len(rows):
                    return x  # a prompt's early chunk: only its keys were wanted
            vector = None if vectors is None else vectors[:, layer.index]
            x = block(x, normed, vector, Ask(tables[layer.rope], seen, step))
        return x if skips or len(step.logit_rows) == len(x) else x[step.logit_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """``[rows, hidden] -> [rows, vocab]``, soft-capped where the model is; float32."""
        scores = self.lm_head(hidden).float()
        return scores if self.softcap is None else cast(Tensor, self.softcap(scores))
