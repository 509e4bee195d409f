"""What towers have in common: weights that stay as the file has them, and arithmetic in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import MediaError
from pocketgem.model import ops


class WideLinear(nn.Module):
    """``[rows, in] -> [rows, out]`` in float32; the weight is widened for its product only.

    A picture is hundreds of rows, so widening costs a hundredth of the product, and a tower in bfloat16 stays pages of
    its file.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), self.bias)


class ClippedLinear(nn.Module):
    """A linear whose ins and outs are kept within bounds that the checkpoint learned, where it has them."""

    def __init__(self, in_features: int, out_features: int, *, clipped: bool) -> None:
        super().__init__()
        self.linear = WideLinear(in_features, out_features)
        self.clipped = clipped
        if clipped:
            self.input_min, self.input_max = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
            self.output_min, self.output_max = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.clipped:
            return self.linear(x)  # type: ignore[no-any-return]
        out: Tensor = self.linear(clip(x, self.input_min, self.input_max))
        return out.clamp_(float(self.output_min), float(self.output_max))  # nobody else holds it


def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` within ``[low, high]``; the same tensor where neither is finite."""
    bounds = float(low), float(high)
    return x if bounds == (-math.inf, math.inf) else x.clamp(*bounds)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last dimension. Source: Ba et al. 2016."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)


class Projector(nn.Module):
    """``[tokens, dim] -> [tokens, hidden]``: RMSNorm without a scale, then a linear. Gemma 4's last step."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = WideLinear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.embedding_projection(ops.rms_norm(x, None, self.eps))
        return rows


def pooled(x: Tensor, positions: Tensor, side: int) -> Tensor:
    """Means over blocks of ``side x side`` patches, in float32.

    x: ``[n, dim]``; positions: ``[n, 2]``, column and row, of a grid whose sides are multiples of ``side``.
    Returns ``[n / side**2, dim]``, row by row.
    """
    columns, rows = (positions // side).unbind(1)
    blocks = rows * (int(positions[:, 0].max()) // side + 1) + columns  # [n]
    sums = x.new_zeros(len(x) // side**2, x.shape[1], dtype=torch.float32)
    return sums.index_add_(0, blocks, x.float()) / side**2


def check_grid(values: Tensor, positions: Tensor, numbers: int, side: int, places: int) -> None:
    """Raises MediaError where patches do not fit the tower: numbers a patch, whole blocks, places in its table."""
    if values.shape[1] != numbers:
        raise MediaError(f"a patch has {values.shape[1]} numbers, this tower's have {numbers}")
    columns, rows = (int(top) + 1 for top in positions.amax(0))
    if max(columns, rows) > places:
        raise MediaError(f"a picture of {columns} x {rows} patches; this tower knows {places} places a side")
    if columns % side or rows % side or len(positions) != columns * rows:
        raise MediaError(f"{len(positions)} patches, {columns} x {rows}, are no whole blocks of {side} x {side}")


def filled(tower: nn.Module, tensors: Mapping[str, StoredTensor]) -> nn.Module:
    """The tower with its weights, by name: matrices as the file has them where torch knows their type, the rest in
    float32."""
    for path, module in tower.named_modules():
        for key in [key for key, _ in module.named_parameters(recurse=False)]:
            stored = tensors[f"{path}.{key}"]
            module.register_parameter(key, nn.Parameter(_values(stored), requires_grad=False))
    return tower.eval()


def _values(stored: StoredTensor) -> Tensor:
    if len(stored.shape) < 2:
        return stored.dense(torch.float32).clone()
    dtype = stored.dtype
    return stored.dense(dtype if dtype is not None and dtype.is_floating_point else torch.float32)
