"""Gemma 3's vision: SigLIP over a square picture of fixed size, its rows pooled to 256 and projected.

Module names are the checkpoint's. Source: transformers' siglip and gemma3, the oracle of ``tests/test_vision.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.errors import FormatError, UnsupportedError
from pocketgem.model import ops
from pocketgem.model.tower import LayerNorm, WideLinear, check_grid, pooled


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of one tower, read from ``vision_config``."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    patch: int
    side: int  # patches a side of the picture
    pool: int  # patches a side of a block that becomes one row
    eps: float

    @classmethod
    def of(cls, fields: Fields) -> Shape:
        """Raises FormatError or UnsupportedError for values that no tower can have."""
        activation = fields.str("hidden_act", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh" or fields.int("num_channels", 3) != 3:
            raise UnsupportedError(f"{fields.where}: a SigLIP with {activation!r} and three colours only is run")
        patch, tokens = fields.int("patch_size", 16), fields.int("mm_tokens_per_image", 256)
        side, tokens_side = fields.int("image_size", 224) // patch, math.isqrt(tokens)
        if tokens_side**2 != tokens or side % tokens_side or not side:
            raise FormatError(f"{fields.where}: {side} x {side} patches cannot be pooled to {tokens} rows")
        hidden, heads = fields.int("hidden_size", 768), fields.int("num_attention_heads", 12)
        if hidden % heads:
            raise FormatError(f"{fields.where}: hidden_size {hidden} is no multiple of {heads} heads")
        return cls(
            hidden=hidden,
            layers=fields.int("num_hidden_layers", 12, high=MAX_LAYERS),
            heads=heads,
            mlp=fields.int("intermediate_size", 3072),
            patch=patch,
            side=side,
            pool=side // tokens_side,
            eps=fields.float("layer_norm_eps", 1e-6, high=1.0),
        )


class PatchConvolution(nn.Module):
    """A convolution whose stride is its size, as a product: its weight is ``[hidden, colours, rows, columns]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.hidden, 3, shape.patch, shape.patch))
        self.bias = nn.Parameter(torch.empty(shape.hidden))

    def forward(self, values: Tensor) -> Tensor:
        """values ``[n, rows * columns * colours]`` -> ``[n, hidden]``"""
        return F.linear(values, self.weight.float().permute(0, 2, 3, 1).flatten(1), self.bias)


class PositionTable(nn.Module):
    """A learned row for each place of the square, row by row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.side = shape.side
        self.weight = nn.Parameter(torch.empty(shape.side**2, shape.hidden))

    def forward(self, positions: Tensor) -> Tensor:
        return self.weight[positions[:, 1] * self.side + positions[:, 0]]


class Embeddings(nn.Module):
    """Pixels from 0 to 1 -> rows with their places."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch_embedding, self.position_embedding = PatchConvolution(shape), PositionTable(shape)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.patch_embedding(2.0 * values - 1.0) + self.position_embedding(positions)
        return x


class SiglipAttention(nn.Module):
    """Every patch sees every other."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.hidden // shape.heads
        self.q_proj = WideLinear(shape.hidden, shape.hidden, bias=True)
        self.k_proj = WideLinear(shape.hidden, shape.hidden, bias=True)
        self.v_proj = WideLinear(shape.hidden, shape.hidden, bias=True)
        self.out_proj = WideLinear(shape.hidden, shape.hidden, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[n, hidden]`` -> ``[n, hidden]``"""
        q, k, v = (
            project(x).view(len(x), self.heads, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = ops.attention(q, k, v, None, scale=self.head_dim**-0.5)
        out: Tensor = self.out_proj(seen.reshape(len(x), -1))
        return out


class SiglipMLP(nn.Module):
    """Two linears with a GELU between."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc1 = WideLinear(shape.hidden, shape.mlp, bias=True)
        self.fc2 = WideLinear(shape.mlp, shape.hidden, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class SiglipLayer(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = SiglipAttention(shape), SiglipMLP(shape)
        self.layer_norm1 = LayerNorm(shape.hidden, shape.eps)
        self.layer_norm2 = LayerNorm(shape.hidden, shape.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class SiglipLayers(nn.Module):
    """The stack."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SiglipLayer(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class SiglipTower(nn.Module):
    """Patches -> rows, as many."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder, self.post_layernorm = SiglipLayers(shape), LayerNorm(shape.hidden, shape.eps)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.post_layernorm(self.encoder(self.embeddings(values, positions)))
        return out


class SoftNorm(nn.Module):
    """Gemma 3's RMSNorm, its weight stored less one."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, 1.0 + self.weight, self.eps)


class PooledProjector(nn.Module):
    """Means of blocks, norm, and a matrix that is stored the other way round, input first."""

    def __init__(self, shape: Shape, text_hidden: int) -> None:
        super().__init__()
        self.pool = shape.pool
        self.mm_soft_emb_norm = SoftNorm(shape.hidden, shape.eps)
        self.mm_input_projection_weight = nn.Parameter(torch.empty(shape.hidden, text_hidden))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        normed: Tensor = self.mm_soft_emb_norm(pooled(x, positions, self.pool))
        return normed @ self.mm_input_projection_weight.float()


class SiglipVision(nn.Module):
    """values ``[side**2, 3 * patch**2]``, positions ``[side**2, 2]`` (column, row) -> ``[tokens, text_hidden]``.

    Raises MediaError for patches that do not fit the tower.
    """

    def __init__(self, shape: Shape, text_hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.vision_tower = SiglipTower(shape)
        self.multi_modal_projector = PooledProjector(shape, text_hidden)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        check_grid(values, positions, 3 * self.shape.patch**2, self.shape.pool, self.shape.side)
        rows: Tensor = self.multi_modal_projector(self.vision_tower(values, positions), positions)
        return rows
