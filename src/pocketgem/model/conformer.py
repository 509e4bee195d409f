"""Gemma 4's audio encoder: two convolutions make a quarter of the frames, then conformer layers.

Source: Gulati et al. 2020 for the layer; the sizes, clips and scales are transformers' gemma4, the oracle of
``tests/test_audio.py``. Names are the checkpoint's. One sound at a time: there is no batch dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.errors import UnsupportedError
from pocketgem.model.conformer_attention import LocalAttention, Span
from pocketgem.model.layers import RMSNorm
from pocketgem.model.tower import ClippedLinear, WideLinear

BANDS = 128  # mel bands of a frame: the front end makes no other number


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the audio encoder. ``kernel``: rows of the depthwise convolution; ``step``: weight of a feed-forward."""

    hidden: int
    layers: int
    heads: int
    channels: tuple[int, ...]
    kernel: int
    span: Span
    cap: float
    step: float
    eps: float
    clipped: bool
    out: int


def read_conformer(fields: Fields) -> ConformerConfig:
    """Raises FormatError for values out of bounds, UnsupportedError for a shape no release has."""
    hidden, heads = fields.int("hidden_size", 1024), fields.int("num_attention_heads", 8)
    block, left = fields.int("attention_chunk_size", 12), fields.int("attention_context_left", 13)
    channels = fields.ints("subsampling_conv_channels", 2, (128, 32))
    right = fields.int("attention_context_right", 0, low=0)
    activation = fields.str("hidden_act", "silu")
    if hidden % heads or hidden % 2 or left != block + 1 or right or channels[0] // 4 != BANDS // 4:
        raise UnsupportedError(f"{fields.where}: no released audio tower has these sizes, and they are not run")
    if activation != "silu":
        raise UnsupportedError(f"{fields.where}: hidden_act is {activation}; only silu is run")
    return ConformerConfig(
        hidden=hidden,
        layers=fields.int("num_hidden_layers", 12, high=MAX_LAYERS),
        heads=heads,
        channels=channels,
        kernel=fields.int("conv_kernel_size", 5, high=1024),
        span=Span(block, left - 1),
        cap=fields.float("attention_logit_cap", 50.0),
        step=fields.float("residual_weight", 0.5),
        eps=fields.float("rms_norm_eps", 1e-6),
        clipped=fields.bool("use_clipped_linears", True),
        out=fields.int("output_proj_dims", 1536),
    )


class SubsampleLayer(nn.Module):
    """A 3 x 3 convolution of stride 2 over time and bands, a LayerNorm over channels without bias, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(out_channels, eps=eps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[1, channels, frames, bands] -> [1, channels, frames / 2, bands / 2]``, both halves rounded up."""
        convolved = F.conv2d(x, self.conv.weight.float(), stride=2, padding=1)
        normed: Tensor = self.norm(convolved.permute(0, 2, 3, 1))
        return normed.relu().permute(0, 3, 1, 2)


class Subsample(nn.Module):
    """``[frames, bands] -> [tokens, hidden]``: a token for four frames."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        first, second = config.channels
        self.layer0 = SubsampleLayer(1, first, config.eps)
        self.layer1 = SubsampleLayer(first, second, config.eps)
        self.input_proj_linear = WideLinear(BANDS // 4 * second, config.hidden)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.layer1(self.layer0(frames[None, None]))  # [1, channels, tokens, bands / 4]
        projected: Tensor = self.input_proj_linear(x[0].permute(1, 2, 0).flatten(1))  # band by band, then channel
        return projected


class FeedForward(nn.Module):
    """Half a step: the weight before the residual is 0.5."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.step = config.step
        self.pre_layer_norm = RMSNorm(config.hidden, config.eps)
        self.ffw_layer_1 = ClippedLinear(config.hidden, 4 * config.hidden, clipped=config.clipped)
        self.ffw_layer_2 = ClippedLinear(4 * config.hidden, config.hidden, clipped=config.clipped)
        self.post_layer_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.silu(self.ffw_layer_1(self.pre_layer_norm(x)), inplace=True)
        return torch.add(x, self.post_layer_norm(self.ffw_layer_2(wide)), alpha=self.step)


class LightConv(nn.Module):
    """A gated linear, a causal convolution of each channel by itself, a linear back."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        size, self.kernel = config.hidden, config.kernel
        self.pre_layer_norm = RMSNorm(size, config.eps)
        self.linear_start = ClippedLinear(size, 2 * size, clipped=config.clipped)
        self.depthwise_conv1d = nn.Conv1d(size, size, config.kernel, groups=size, bias=False)
        self.conv_norm = RMSNorm(size, config.eps)
        self.linear_end = ClippedLinear(size, size, clipped=config.clipped)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.glu(self.linear_start(self.pre_layer_norm(x)), dim=-1)
        mixed = F.silu(self.conv_norm(self._convolved(gated)), inplace=True)
        return x + self.linear_end(mixed)  # type: ignore[no-any-return]

    def _convolved(self, x: Tensor) -> Tensor:
        """Row t is a weighted sum of rows t - kernel + 1 to t. Shifted rows added up: faster than a grouped kernel."""
        taps = self.depthwise_conv1d.weight.float()[:, 0]  # [hidden, kernel]
        padded = F.pad(x, (0, 0, self.kernel - 1, 0))
        out = padded[: len(x)] * taps[:, 0]
        for tap in range(1, self.kernel):
            out.addcmul_(padded[tap : tap + len(x)], taps[:, tap])
        return out


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, the other half."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        size, eps = config.hidden, config.eps
        self.feed_forward1 = FeedForward(config)
        self.norm_pre_attn = RMSNorm(size, eps)
        self.self_attn = LocalAttention(size, config.heads, config.span, config.cap, clipped=config.clipped)
        self.norm_post_attn = RMSNorm(size, eps)
        self.lconv1d = LightConv(config)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = RMSNorm(size, eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.feed_forward1(x)
        x = x + self.norm_post_attn(self.self_attn(self.norm_pre_attn(x), seen))
        return self.norm_out(self.feed_forward2(self.lconv1d(x)))  # type: ignore[no-any-return]


class Conformer(nn.Module):
    """``[frames, bands] -> [tokens, out]``."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.span = config.span
        self.subsample_conv_projection = Subsample(config)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))
        self.output_proj = WideLinear(config.hidden, config.out, bias=True)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.subsample_conv_projection(frames)
        seen = self.span.seen(len(x))
        for layer in self.layers:
            x = layer(x, seen)
        projected: Tensor = self.output_proj(x)
        return projected
