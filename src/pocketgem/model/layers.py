"""Modules every family is built from. Names are the checkpoint's, so that weights load by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pocketgem.config import LayerConfig, ModelConfig
from pocketgem.model import ops
from pocketgem.model.cache import Seen, Step

Tables = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """``[rows, in] -> [rows, out]``, no bias. Quantised and adapted twins replace it from outside."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm; its weight stays float32, in the form ``y = normed * weight`` for every family."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    """Rows of the vocabulary times ``sqrt(hidden_size)``, rounded to the weights' type as the models were trained."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.scale = hidden_size**0.5
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids.to(self.weight.device), self.weight)  # [rows, hidden]
        return rows * torch.tensor(self.scale, dtype=rows.dtype)

    def expect(self, ids: Sequence[int]) -> None:
        """Nothing to do: the rows are in memory."""


class SoftCap(nn.Module):
    """Keeps scores within ``(-cap, cap)``."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return ops.softcap(x, self.cap)


class MLP(nn.Module):
    """Gated GELU unit."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.down_proj(ops.geglu(self.gate_proj(x), self.up_proj(x)))
        return activated


@dataclass(frozen=True)
class Ask:
    """What attention needs beside its rows: their rotation, the keys each span may read, and whose rows they are."""

    tables: Tables
    seen: tuple[Seen, ...]
    step: Step


class Attention(nn.Module):
    """Grouped-query attention in two halves: ``keys`` writes what later tokens read, ``forward`` asks.

    The halves are apart because past the last layer that writes, only rows whose logits are wanted need to ask.
    """

    def __init__(self, layer: LayerConfig, config: ModelConfig) -> None:
        super().__init__()
        self.layer, self.scale, self.eps = layer, config.attention_scale, config.rms_norm_eps
        self.normed_values = config.family != "gemma3"
        width = layer.num_heads * layer.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.o_proj = Linear(width, config.hidden_size)
        self.q_norm = RMSNorm(layer.head_dim, self.eps)
        if layer.writes_kv:
            kv_width = layer.num_kv_heads * layer.head_dim
            self.k_proj = Linear(config.hidden_size, kv_width)
            self.v_proj = None if layer.value_is_key else Linear(config.hidden_size, kv_width)
            self.k_norm = RMSNorm(layer.head_dim, self.eps)

    def keys(self, x: Tensor, tables: Tables, step: Step) -> tuple[Seen, ...]:
        """Project and store K/V of x ``[rows, hidden]``."""
        shape = (len(x), self.layer.num_kv_heads, self.layer.head_dim)
        k = self.k_proj(x).view(shape)
        v = k if self.v_proj is None else self.v_proj(x).view(shape)  # the raw projection, before norm and rope
        if self.normed_values:
            v = ops.rms_norm(v, None, self.eps)
        return step.write(self.layer.index, ops.rotate(self.k_norm(k), tables), v)

    def forward(self, x: Tensor, ask: Ask) -> Tensor:
        """Attend from rows x ``[rows, hidden]`` to what each span has seen."""
        q = self.q_proj(x).view(len(x), self.layer.num_heads, self.layer.head_dim)
        q = ops.rotate(self.q_norm(q), ask.tables)
        out = ask.step.attend(self.layer, q, ask.seen, self.scale)
        projected: Tensor = self.o_proj(out.view(len(x), -1))
        return projected


class Block(Protocol):
    """What the loop over layers needs of one, whatever the family."""

    self_attn: Attention

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual rows, and the normed rows that attention sees."""

    def __call__(self, x: Tensor, normed: Tensor, vector: Tensor | None, ask: Ask) -> Tensor:
        """Attention and all that follows, for rows whose keys are stored."""


class RotaryTables:
    """cos/sin for the rows of a step, made once for each distinct rope of the model."""

    def __init__(self, config: ModelConfig) -> None:
        self.inverse = {layer.rope: ops.inverse_frequencies(layer.rope) for layer in config.layers}

    def to(self, device: torch.device) -> None:
        """Move the frequencies, once, to where positions will be."""
        self.inverse = {rope: inverse.to(device) for rope, inverse in self.inverse.items()}

    def at(self, positions: Tensor, dtype: torch.dtype) -> dict[object, Tables]:
        return {rope: ops.rope_tables(positions, inverse, dtype) for rope, inverse in self.inverse.items()}
