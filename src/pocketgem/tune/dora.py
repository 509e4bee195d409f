"""DoRA in training: ``m / |W + BA| * (W x + BA x)``, where the changed rows' lengths are numbers, not to be trained.

Lengths come from products with ``rank`` columns, so the changed matrix is never made, and weights may be in blocks:

    |W + s BA|^2 = |W|^2 + 2 s <W A^T, B> + s^2 <B (A A^T), B>, row by row

Source: Liu et al. 2024, section 4.3, which leaves the lengths out of the gradient; so does PEFT.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pocketgem.model.blocks import BlockLinear
from pocketgem.model.lora import LowRank
from pocketgem.tune.frozen import changed


class TrainedDoRA(nn.Module):
    """A linear, its change, and the lengths of the changed rows, all trained but the base."""

    def __init__(self, base: nn.Module, delta: LowRank, magnitude: Tensor) -> None:
        super().__init__()
        self.base, self.delta, self.magnitude = base, delta, magnitude
        self.squares = row_squares(base)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.magnitude / self._lengths()
        out: Tensor = changed(self.base, self.delta, x) * factor.to(x.dtype)
        return out

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        a, b, scale = self.delta.A, self.delta.B, self.delta.scale
        across = self.base(a.to(_dtype(self.base))).T.float()  # W A^T, [out, rank]
        mixed = (across * b).sum(1) * (2 * scale)
        own = ((b @ (a @ a.T)) * b).sum(1) * scale**2
        lengths: Tensor = (self.squares + mixed + own).clamp_(min=1e-30).sqrt_()
        return lengths


def row_squares(base: nn.Module) -> Tensor:
    """Squared length of each row of a matrix, float32 ``[out]``. Fresh magnitudes are their roots."""
    if not isinstance(base, BlockLinear):
        return cast(Tensor, base.weight).detach().float().square().sum(1)
    pieces = base.blocks.pieces(0, base.out_features)
    return torch.cat([base.blocks.unpacked(*piece).float().square().sum(1) for piece in pieces])


def _dtype(base: nn.Module) -> torch.dtype:
    return base.blocks.dtype if isinstance(base, BlockLinear) else cast(Tensor, base.weight).dtype
