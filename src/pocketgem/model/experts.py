"""Routed experts of the 26B-A4B: a router scores all experts for each row, the best few run, their sum is weighted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketgem.config import ExpertsConfig, ModelConfig
from pocketgem.model import ops
from pocketgem.model.layers import Linear


class Router(nn.Module):
    """``[rows, hidden] -> (weights, indices)``, each ``[rows, top_k]``. Fed the residual stream, not its norm."""

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.top_k, self.eps, self.input_scale = experts.top_k, config.rms_norm_eps, config.hidden_size**-0.5
        self.scale = nn.Parameter(torch.empty(config.hidden_size))
        self.proj = Linear(config.hidden_size, experts.num_experts)
        self.per_expert_scale = nn.Parameter(torch.empty(experts.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.proj(ops.rms_norm(x, None, self.eps) * self.scale * self.input_scale)
        weights, indices = torch.topk(scores.softmax(dim=-1, dtype=torch.float32), self.top_k)
        weights = weights / weights.sum(dim=-1, keepdim=True) * self.per_expert_scale[indices]
        return weights, indices


class Experts(nn.Module):
    """All experts of one layer. Rows are gathered by expert, so each expert's weights are read once a step."""

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        width = experts.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts.num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts.num_experts, config.hidden_size, width))

    def expect(self, indices: Tensor) -> None:
        """``forward`` will come with these ``[rows, top_k]``: for who has them elsewhere. Here all are in memory."""

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in torch.unique(indices).tolist():
            rows, choice = torch.where(indices == expert)
            mixed = self.run(expert, x[rows]) * weights[rows, choice, None]
            out.index_add_(0, rows, mixed.to(x.dtype))
        return out

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on its rows ``[n, hidden]``."""
        gate, up = ops.linear(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return ops.linear(ops.geglu(gate, up), self.down_proj[expert])
