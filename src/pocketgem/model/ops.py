"""The operations a model is made of, in plain torch: the definition that compiled kernels are compared with.

Rows are packed: the first dimension counts token rows of all sequences in the step, and there is no batch dimension.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem.config import Rope


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in float32, returned in x's type.

    Args:
        x: ``[..., dim]``. weight: ``[dim]`` float32, or None for no scale. eps: added to the mean square.
    Source: Zhang & Sennrich 2019; the order of operations is Gemma's (scale before the cast back).
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight.float()
    return normed.to(x.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``. x: ``[rows, in]``, weight: ``[out, in]``, result ``[rows, out]``."""
    return F.linear(x, weight)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``, the gated unit of every Gemma MLP. Source: Shazeer 2020."""
    return F.gelu(gate, approximate="tanh") * up


def softcap(x: Tensor, cap: float) -> Tensor:
    """Squash into ``(-cap, cap)``: ``cap * tanh(x / cap)``."""
    return torch.tanh(x / cap) * cap


def peaks(scores: Tensor) -> list[int | None]:
    """Of each row of ``[rows, n]`` where the largest is, the first of equals; None where some are not finite."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:  # in a quarter of torch's time
        values = scores.detach().numpy()
        ids, lows = values.argmax(1).tolist(), values.min(1).tolist()
        highs = values[np.arange(len(ids)), ids].tolist()
    else:
        ids, lows, highs = scores.argmax(1).tolist(), scores.amin(1).tolist(), scores.amax(1).tolist()
    # All are finite exactly where the extremes are: NaN spreads to them.
    extremes = zip(ids, lows, highs, strict=True)
    return [id if math.isfinite(low) and math.isfinite(high) else None for id, low, high in extremes]


def inverse_frequencies(rope: Rope) -> Tensor:
    """Radians a position, one for each half-split pair: ``[head_dim / 2]`` float32, zero for pairs that stand still."""
    steps = torch.arange(0, 2 * rope.rotated_pairs, 2, dtype=torch.float32, device="cpu")  # real even on a meta build
    exponents = steps / rope.head_dim
    turning = 1.0 / (rope.theta**exponents) / rope.factor
    return F.pad(turning, (0, rope.head_dim // 2 - rope.rotated_pairs))


def rope_tables(positions: Tensor, inverse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin for rotary embedding, each ``[rows, 1, head_dim / 2]``; angles are float32 whatever the type."""
    angles = positions[:, None].float() * inverse  # [rows, head_dim / 2]
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the half-split pairs ``(i, i + head_dim / 2)`` of x ``[rows, heads, head_dim]``. Source: Su et al. 2021."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Grouped-query attention of one sequence, softmax in float32.

    Args:
        q: ``[rows, heads, dim]``. k, v: ``[keys, kv_heads, dim]``. mask: ``[rows, keys]`` bool, True sees; None: all.
        scale: multiplies the scores. Returns ``[rows, heads, dim]``.
    """
    if q.shape[0] == 1 and mask is None:
        return _attention_one_row(q, k, v, scale)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],  # [1, heads, rows, dim]
        k.transpose(0, 1)[None],  # [1, kv_heads, keys, dim]
        v.transpose(0, 1)[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def _attention_one_row(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Decode: the query heads of a group are the rows of one product, so keys are read once and never repeated."""
    kv_heads = k.shape[1]
    grouped = q.view(kv_heads, -1, q.shape[-1])  # [kv_heads, group, dim]
    scores = torch.bmm(grouped, k.permute(1, 2, 0)).float() * scale  # [kv_heads, group, keys]
    weights = scores.softmax(dim=-1).to(v.dtype)
    return torch.bmm(weights, v.transpose(0, 1)).view(1, -1, v.shape[-1])


def visible(
    query_positions: Tensor, first_key: int, num_keys: int, window: int | None, last: Tensor | None = None
) -> Tensor | None:
    """Which keys each query sees: causal, and no further back than ``window`` tokens, itself included.

    last: ``[rows]``, the last position each sees, where that is not its own (rows of one image see each other).

    Keys lie at consecutive positions from ``first_key``. Returns ``[rows, keys]`` bool, or None when all see all.
    """
    if last is None and query_positions.shape[0] == 1 and (window is None or num_keys <= window):
        return None  # one row at the end of its own keys
    keys = torch.arange(first_key, first_key + num_keys, device=query_positions.device)
    seen = keys <= (query_positions if last is None else last)[:, None]  # [rows, keys]
    return seen if window is None else seen & (query_positions[:, None] - keys < window)
