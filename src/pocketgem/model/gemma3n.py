"""Gemma 3n: four residual streams (AltUp), a low-rank residual (LAuReL) and sparse gates round the same attention.

Source: transformers' gemma3n; AltUp: Baykal et al. 2023; LAuReL: Menghani et al. 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketgem.config import AltUpConfig, LayerConfig, ModelConfig, PerLayerConfig
from pocketgem.errors import FormatError
from pocketgem.model import ops
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma, Inputs
from pocketgem.model.layers import MLP, Ask, Attention, Linear, RMSNorm
from pocketgem.model.per_layer import PerLayerGate

SMALLEST_POWER = 1e-5  # below it a projected stream is not stretched to the first stream's size


class SparseMLP(MLP):
    """A gated unit that drops gate values below ``mean + cutoff * std`` of their own row."""

    def __init__(self, hidden_size: int, intermediate_size: int, cutoff: float | None) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.cutoff = cutoff

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        if self.cutoff is not None:
            std, mean = torch.std_mean(gate, dim=-1, keepdim=True, correction=0)
            gate = torch.relu(gate - (mean + std * self.cutoff))
        out: Tensor = self.down_proj(ops.geglu(gate, self.up_proj(x)))
        return out


class Laurel(nn.Module):
    """``x + norm(right(left(x)))`` through a narrow middle."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.linear_left = Linear(config.hidden_size, rank)
        self.linear_right = Linear(rank, config.hidden_size)
        self.post_laurel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))
        return out


class AltUp(nn.Module):
    """Predicts every stream from all of them, then corrects all by what the layer did to the active one.

    Streams are ``[rows, inputs, hidden]``.
    """

    def __init__(self, config: ModelConfig, altup: AltUpConfig) -> None:
        super().__init__()
        self.active, self.count = altup.active_index, altup.num_inputs
        self.router_scale = 1.0 / config.hidden_size
        self.correct_output_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.correction_coefs = Linear(self.count, self.count)
        self.prediction_coefs = Linear(self.count, self.count**2)
        self.modality_router = Linear(config.hidden_size, self.count)
        self.router_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def modalities(self, x: Tensor) -> Tensor:
        """``[rows, hidden] -> [rows, inputs]`` in (-1, 1)."""
        routed = self.modality_router(self.router_norm(x) * self.router_scale)
        return torch.tanh(routed.float()).to(x.dtype)

    def predict(self, streams: Tensor) -> Tensor:
        coefs = self.prediction_coefs(self.modalities(streams[:, self.active]))
        return streams + torch.bmm(coefs.view(-1, self.count, self.count), streams)  # coefs: [rows, to, from]

    def correct(self, predicted: Tensor, activated: Tensor) -> Tensor:
        innovation = activated - predicted[:, self.active]  # [rows, hidden]
        coefs: Tensor = self.correction_coefs(self.modalities(activated)) + 1.0  # [rows, inputs]
        return predicted + coefs[:, :, None] * innovation[:, None]


class Gemma3nLayer(nn.Module):
    """One decoder layer over four streams; only the active one passes through attention and MLP."""

    def __init__(self, layer: LayerConfig, config: ModelConfig, altup: AltUpConfig, per_layer: PerLayerConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.layer = layer
        self.self_attn = Attention(layer, config)
        self.mlp = SparseMLP(size, layer.intermediate_size, layer.sparsity_cutoff)
        self.altup = AltUp(config, altup)
        self.laurel = Laurel(config, altup.laurel_rank)
        self.gate = PerLayerGate(config, per_layer)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.pre_feedforward_layernorm = RMSNorm(size, eps)
        self.post_feedforward_layernorm = RMSNorm(size, eps)

    def enter(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted streams ``[rows, inputs, hidden]``, and what attention sees of the active one."""
        predicted = self.altup.predict(streams)
        return predicted, self.input_layernorm(predicted[:, self.altup.active])

    def forward(self, predicted: Tensor, normed: Tensor, vector: Tensor, ask: Ask) -> Tensor:
        """predicted ``[rows, inputs, hidden]``, normed ``[rows, hidden]``, vector ``[rows, dim]`` -> streams."""
        activated = self.activate(predicted[:, self.altup.active], normed, ask)
        corrected = self.altup.correct(predicted, activated)
        gated = self.gate(corrected[:, self.altup.active] * self.altup.correct_output_scale, vector)
        return torch.cat((corrected[:, :1], corrected[:, 1:] + gated[:, None]), dim=1)

    def activate(self, x: Tensor, normed: Tensor, ask: Ask) -> Tensor:
        attended = x + self.post_attention_layernorm(self.self_attn(normed, ask))
        x = (attended + self.laurel(normed)) * 0.5**0.5
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class Gemma3n(Gemma):
    """Gemma 3n text: the same seams, four streams inside."""

    def __init__(self, config: ModelConfig) -> None:
        if config.altup is None or config.per_layer is None:
            raise FormatError("a Gemma 3n config without AltUp or per-layer embeddings")
        self.altup_config, self.per_layer_config = config.altup, config.per_layer
        super().__init__(config)
        others = range(config.altup.num_inputs - 1)
        self.altup_projections = nn.ModuleList(Linear(config.hidden_size, config.hidden_size) for _ in others)
        self.altup_unembed_projections = nn.ModuleList(Linear(config.hidden_size, config.hidden_size) for _ in others)

    def make_layer(self, layer: LayerConfig) -> nn.Module:
        return Gemma3nLayer(layer, self.config, self.altup_config, self.per_layer_config)

    def forward(self, inputs: Inputs, step: Step) -> Tensor:
        streams = self.run_layers(Inputs(self.spread(inputs.x), inputs.per_layer), step)
        hidden: Tensor = self.norm(self.gather(streams))
        return hidden

    def spread(self, x: Tensor) -> Tensor:
        """One stream -> all, each projected and stretched to the first one's size: ``[rows, inputs, hidden]``."""
        return torch.stack([x, *(_sized_like(x, project(x)) for project in self.altup_projections)], dim=1)

    def gather(self, streams: Tensor) -> Tensor:
        """The mean of the first stream and the others projected back and stretched to its size."""
        first, *others = streams.unbind(dim=1)
        pairs = zip(self.altup_unembed_projections, others, strict=True)
        return torch.stack([first, *(_sized_like(first, project(stream)) for project, stream in pairs)]).mean(dim=0)


def _sized_like(model: Tensor, x: Tensor) -> Tensor:
    """x with each row scaled to the root mean square of ``model``'s row."""
    target = model.pow(2).mean(dim=-1, keepdim=True).sqrt()
    power = x.pow(2).mean(dim=-1, keepdim=True).clamp(min=SMALLEST_POWER).sqrt()
    return x * target / power
