"""What a step of training multiplies and norms, with the way back written out: less is kept, fewer passes are made."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from pocketgem.model.blocks import BlockLinear
from pocketgem.model.lora import LowRank


def back(base: nn.Module, grad: Tensor) -> Tensor:
    """``grad [n, out]`` times the base's matrix: ``[n, in]``."""
    if isinstance(base, BlockLinear):
        return base.blocks.back(grad)
    weight = cast(Tensor, base.weight)
    if isinstance(weight, DTensor):  # each of several workers keeps a part of it
        weight = weight.full_tensor()
    return grad @ weight


class ChangedProduct(torch.autograd.Function):
    """``base(x) + scale * B (A x)``, added up where the base's product lies; B's and A's own products are small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, base: nn.Module) -> Tensor:
        ctx.base, ctx.scale = base, scale
        low = F.linear(x.to(a.dtype), a)  # [n, rank]
        ctx.save_for_backward(x, a, b, low)
        return _add(base(x), low, b.T, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, a, b, low = ctx.saved_tensors
        wide = grad.to(a.dtype)
        down = (wide @ b).mul_(ctx.scale)  # [n, rank]
        to_a, to_b = down.T @ x.to(a.dtype), (wide.T @ low).mul_(ctx.scale)
        to_x = _add(back(ctx.base, grad), down, a, 1.0) if ctx.needs_input_grad[0] else None
        return to_x, to_a, to_b, None, None


def _add(total: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``total + scale * left @ right`` in total's memory."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right, alpha=scale)
    return total.add_((left @ right).to(total.dtype), alpha=scale)


def changed(base: nn.Module, delta: LowRank, x: Tensor) -> Tensor:
    """What a linear with a low-rank change gives for rows x ``[n, in]``: ``[n, out]``."""
    out: Tensor = ChangedProduct.apply(x, delta.A, delta.B, delta.scale, base)  # type: ignore[no-untyped-call]
    return out


class Norm(torch.autograd.Function):
    """``ops.rms_norm`` that keeps its input and one number a row, not every step between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        factor = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, factor)
        return (wide * factor).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, factor = ctx.saved_tensors
        wide, pull = x.float(), grad.float() * weight
        share = (pull * wide).sum(-1, keepdim=True).mul_(factor.square()).div_(x.shape[-1])
        return pull.addcmul_(wide, share, value=-1.0).mul_(factor).to(x.dtype), None, None
