"""Low-rank changes as the kernels read them: float16 in the order in which it is used (``native/lowrank.h``).

Each half is multiplied by the power of two that brings its largest number to the top of float16's range, so that
numbers down to 2^-28 of the largest keep eleven bits: what was trained or stored in bfloat16 is not rounded at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RANKS, PANEL = 4, 16  # kRanks and kPanel
_TOP = 14  # the largest number lies within 2^14 ... 2^15; float16 ends at 65504


@dataclass(frozen=True, eq=False)
class PackedLowRank:
    """One change of one matrix. The compiled side keeps the memory alive."""

    native: Any
    nbytes: int


def packed_low_rank(native: Any, A: Tensor, B: Tensor, scale: float) -> PackedLowRank:
    """``scale * B @ A`` with A ``[rank, in]`` and B ``[out, rank]`` of any float type."""
    (rank, cols), rows = A.shape, B.shape[0]
    a, up_a = _halves(F.pad(A.detach().float().cpu(), (0, -cols % PANEL, 0, -rank % RANKS)))
    b, up_b = _halves(F.pad(B.detach().float().cpu(), (0, -rank % RANKS, 0, -rows % PANEL)))
    padded = len(a)
    a = a.view(padded // RANKS, RANKS, -1, PANEL).permute(0, 2, 1, 3).contiguous()  # [rank / 4, cols / 16, 4, 16]
    b = b.view(-1, PANEL, padded).permute(0, 2, 1).contiguous()  # [rows / 16, rank, 16]
    shrunk = scale * 2.0 ** -(up_a + up_b)
    made = native.LowRank(padded, rows, cols, a.data_ptr(), b.data_ptr(), shrunk, (a, b))
    return PackedLowRank(made, a.nbytes + b.nbytes)


def _halves(x: Tensor) -> tuple[Tensor, int]:
    """float16 of ``x * 2^n``, and n."""
    most = float(x.abs().max())
    up = _TOP - math.frexp(most)[1] + 1 if most > 0 else 0
    return torch.ldexp(x, torch.tensor(up)).half(), up
