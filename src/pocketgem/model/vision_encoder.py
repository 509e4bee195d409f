"""Gemma 4's vision encoder, small and big: patches of 16 x 16 pixels -> rows of the text model, one for 3 x 3 patches.

    patches --patch_embedder--> rows --layers--> rows --pool--> a ninth of the rows --embed_vision--> text rows

The small one (E2B, E4B) clips the ins and outs of its linears; the big one (26B, 31B) standardises what it pooled.
Module names are the checkpoint's. Source: transformers' gemma4, the oracle of ``tests/test_vision.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketgem.config import Rope
from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.errors import FormatError, UnsupportedError
from pocketgem.model import ops
from pocketgem.model.layers import RMSNorm
from pocketgem.model.tower import ClippedLinear, Projector, WideLinear, check_grid, pooled

Tables = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of one encoder, read from ``vision_config``."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    patch: int
    pool: int
    places: int  # columns, and rows, that the position table knows
    eps: float
    theta: float
    clipped: bool
    standardised: bool

    @classmethod
    def of(cls, fields: Fields) -> Shape:
        """Raises FormatError or UnsupportedError for values that no encoder can have."""
        _refuse_unsupported(fields)
        shape = cls(
            hidden=fields.int("hidden_size", 768),
            layers=fields.int("num_hidden_layers", 16, high=MAX_LAYERS),
            heads=fields.int("num_attention_heads", 12),
            kv_heads=fields.int("num_key_value_heads", 12),
            head_dim=fields.int("head_dim", 64),
            mlp=fields.int("intermediate_size", 3072),
            patch=fields.int("patch_size", 16),
            pool=fields.int("pooling_kernel_size", 3),
            places=fields.int("position_embedding_size", 10_240),
            eps=fields.float("rms_norm_eps", 1e-6, high=1.0),
            theta=fields.section("rope_parameters").float("rope_theta", 100.0),
            clipped=fields.bool("use_clipped_linears", False),
            standardised=fields.bool("standardize", False),
        )
        if shape.heads % shape.kv_heads or shape.head_dim % 4:
            raise FormatError(
                f"{fields.where}: {shape.heads} heads of {shape.head_dim} over {shape.kv_heads} key heads: heads must "
                "share keys evenly, and their size be a multiple of 4 for a rope in two directions"
            )
        return shape


def _refuse_unsupported(fields: Fields) -> None:
    activation = fields.str("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise UnsupportedError(f"{fields.where}: hidden_activation {activation!r}; the encoder uses gelu_pytorch_tanh")
    if fields.bool("attention_bias", False):
        raise UnsupportedError(f"{fields.where}: attention_bias is true; the encoder has no biases")


class PatchEmbedder(nn.Module):
    """``[n, 3 * patch**2]`` pixels from 0 to 1 -> ``[n, hidden]``, with learned places of columns and rows added."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_proj = WideLinear(3 * shape.patch**2, shape.hidden)
        self.position_embedding_table = nn.Parameter(torch.empty(2, shape.places, shape.hidden))

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.input_proj(2.0 * values - 1.0)
        for axis in (0, 1):  # column, row
            x = x + self.position_embedding_table[axis][positions[:, axis]]  # float32 plus the table's type: float32
        return x


class VisionAttention(nn.Module):
    """Every patch sees every other. Queries and keys are normed with a weight, values without; scores are not scaled,
    which norms make good."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = ClippedLinear(shape.hidden, queries, clipped=shape.clipped)
        self.k_proj = ClippedLinear(shape.hidden, keys, clipped=shape.clipped)
        self.v_proj = ClippedLinear(shape.hidden, keys, clipped=shape.clipped)
        self.o_proj = ClippedLinear(queries, shape.hidden, clipped=shape.clipped)
        self.q_norm = RMSNorm(shape.head_dim, shape.eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.eps)

    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        """x ``[n, hidden]`` -> ``[n, hidden]``."""
        q = turned(self.q_norm(self._heads(self.q_proj(x))), tables)
        k = turned(self.k_norm(self._heads(self.k_proj(x))), tables)
        v = ops.rms_norm(self._heads(self.v_proj(x)), None, self.shape.eps)
        seen = ops.attention(q, k, v, None, scale=1.0)  # scores are made in tiles, never [heads, n, n] at once
        out: Tensor = self.o_proj(seen.reshape(len(x), -1))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.shape.head_dim)


def turned(x: Tensor, tables: Tables) -> Tensor:
    """Rope in two directions: the first half of a head turns by the column, the second by the row.

    x: ``[n, heads, dim]``; tables: cos and sin, each ``[n, 1, 2, dim / 4]``.
    """
    halves = x.view(*x.shape[:2], 2, -1)  # [n, heads, 2, dim / 2]
    return ops.rotate(halves, tables).view(x.shape)


class VisionMLP(nn.Module):
    """Gated GELU unit."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = ClippedLinear(shape.hidden, shape.mlp, clipped=shape.clipped)
        self.up_proj = ClippedLinear(shape.hidden, shape.mlp, clipped=shape.clipped)
        self.down_proj = ClippedLinear(shape.mlp, shape.hidden, clipped=shape.clipped)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(ops.geglu(self.gate_proj(x), self.up_proj(x)))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each between two norms."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(shape), VisionMLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.pre_feedforward_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.post_feedforward_layernorm = RMSNorm(shape.hidden, shape.eps)

    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), tables))
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class Layers(nn.Module):
    """The stack, and the rotation that all its layers share."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(shape) for _ in range(shape.layers))
        half = shape.head_dim // 2
        self.inverse = ops.inverse_frequencies(Rope(theta=shape.theta, head_dim=half, rotated_pairs=half // 2))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None, :, None].float() * self.inverse  # [n, 1, 2, dim / 4]
        tables = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, tables)
        return x


class VisionTower(nn.Module):
    """Patches -> pooled rows. The pooled rows are large (times the root of their size), so this stays float32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embedder, self.encoder = PatchEmbedder(shape), Layers(shape)
        self.std_bias = nn.Parameter(torch.empty(shape.hidden)) if shape.standardised else None
        self.std_scale = nn.Parameter(torch.empty(shape.hidden)) if shape.standardised else None

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.encoder(self.patch_embedder(values, positions), positions)
        x = pooled(x, positions, self.shape.pool) * float(self.shape.hidden**0.5)
        return x if self.std_bias is None or self.std_scale is None else (x - self.std_bias) * self.std_scale


class GemmaVision(nn.Module):
    """values ``[n, 3 * patch**2]`` and positions ``[n, 2]`` (column, row) -> ``[n / pool**2, text_hidden]``.

    Raises MediaError for patches that do not fit the tower.
    """

    def __init__(self, shape: Shape, text_hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.vision_tower = VisionTower(shape)
        self.embed_vision = Projector(shape.hidden, text_hidden, shape.eps)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        check_grid(values, positions, 3 * self.shape.patch**2, self.shape.pool, self.shape.places)
        rows: Tensor = self.embed_vision(self.vision_tower(values, positions))
        return rows
