"""Per-layer embeddings (PLE): a small vector beside every layer, from a table row and a projection of the input.

Source: transformers' gemma4 and gemma3n; both generations share this pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pocketgem.config import ModelConfig, PerLayerConfig
from pocketgem.memory.rows import RowSource
from pocketgem.model import ops
from pocketgem.model.layers import Linear, RMSNorm

INPUT_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two


class PerLayerInputs(nn.Module):
    """ids and their embeddings -> ``[rows, layers, dim]``. The table itself is a row source, set at load."""

    def __init__(self, config: ModelConfig, per_layer: PerLayerConfig) -> None:
        super().__init__()
        self.shape = (config.num_layers, per_layer.hidden_size)
        self.vocab_size = per_layer.vocab_size
        self.context_scale = 1 / math.sqrt(config.hidden_size)
        self.table_scale = math.sqrt(per_layer.hidden_size)
        self.per_layer_model_projection = Linear(config.hidden_size, self.shape[0] * self.shape[1])
        self.per_layer_projection_norm = RMSNorm(per_layer.hidden_size, config.rms_norm_eps)
        self.table: RowSource | None = None

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """ids: ``[rows]`` on the CPU; x: scaled input embeddings ``[rows, hidden]``."""
        projected: Tensor = self.per_layer_model_projection(x) * self.context_scale
        context: Tensor = self.per_layer_projection_norm(projected.view(len(x), *self.shape))
        return (context + self.identity(ids).to(x.device, x.dtype)) * INPUT_SCALE

    def identity(self, ids: Tensor) -> Tensor:
        """The token's own row ``[rows, layers, dim]``. Ids past the table (media placeholders of Gemma 3n) take row 0,
        the padding token's."""
        if self.table is None:
            raise RuntimeError("per-layer table not attached: build models through checkpoint.load")
        inside = torch.where(ids < self.vocab_size, ids, 0)
        return self.table.rows(inside, self.table_scale).view(len(ids), *self.shape)

    def expect(self, ids: Sequence[int]) -> None:
        """See ``Gemma.expect``."""
        if self.table is not None:
            self.table.expect([id if id < self.vocab_size else 0 for id in ids])


class PerLayerGate(nn.Module):
    """Lets one layer's vector into the residual stream: ``norm(project(gelu(gate(x)) * vector))``."""

    def __init__(self, config: ModelConfig, per_layer: PerLayerConfig) -> None:
        super().__init__()
        self.per_layer_input_gate = Linear(config.hidden_size, per_layer.hidden_size)
        self.per_layer_projection = Linear(per_layer.hidden_size, config.hidden_size)
        self.post_per_layer_input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        gated = ops.geglu(self.per_layer_input_gate(x), vector)
        out: Tensor = self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return out
