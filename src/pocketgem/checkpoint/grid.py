"""Lossless Q4_0: weights that were made as ``d * (q - 8)`` and then rounded to 16 bits give their own scale back.

Releases trained for Q4_0 are also published "unquantized": bfloat16 numbers that lie on a Q4_0 grid. The largest weight
of a block is ``k * d`` for one of k = 8 ... 1. Each k tells every other weight's number of steps, each weight the range
of scales that round to it, and a scale in all 32 ranges gives the block back, bit for bit. Which float16 was d cannot
always be told, and does not matter: all that fit give the same weights.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from pocketgem.checkpoint.quantize import nibbles_q4_0

STEPS = 8  # from zero to the outermost point of the grid, on its longer side
_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def grid_q4_0(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, 32] -> Q4_0 blocks uint8 [n, 18], and which of them (bool [n]) are the weights exactly.

    Exactly: dequantised and rounded to the weights' own type (bfloat16, float16 or float32) they are equal, and of
    the same bits where some scale gives these. Blocks that are not are zeros.
    """
    blocks = torch.zeros(weights.shape[0], 18, dtype=torch.uint8)
    blocks[:, 2:] = 0x88  # all steps zero, for blocks of zeros
    exact = (weights == 0).all(1)
    size, low, high = _ranges(weights)
    ways = product((True, False), range(STEPS, 0, -1))  # the same bits first, then equal numbers: a zero has two signs
    for signs, largest in ways:
        left = (~exact).nonzero()[:, 0]
        if not len(left):
            break
        scale, steps, found = _try(weights[left], size[left], low[left], high[left], largest)
        if signs:
            found &= (scale * steps).to(weights.dtype).signbit().eq(weights[left].signbit()).all(1)
        where = left[found]
        blocks[where] = nibbles_q4_0(scale[found].t(), (steps[found] + STEPS).to(torch.uint8).t()).t()
        exact[where] = True
    return blocks, exact


def lies_on_grid(sample: Tensor) -> bool:
    """Whether weights [n, 32] out of a tensor look like a Q4_0 grid: at least half of the blocks are, exactly."""
    return sample.dtype in _INTEGERS and bool(grid_q4_0(sample)[1].float().mean() >= 0.5)


def _ranges(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes, and the real numbers between which everything rounds to them: float64 [n, 32] each."""
    size = weights.abs()
    bits = size.view(_INTEGERS[weights.dtype])
    below, above = ((bits + step).clamp(min=0).view(weights.dtype).double() for step in (-1, 1))
    exact = size.double()
    return exact, (below + exact) / 2, (exact + above) / 2


def _try(weights: Tensor, size: Tensor, low: Tensor, high: Tensor, largest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scales float32 [m, 1], steps [m, 32], and which of them give the weights, if the largest is ``largest`` steps."""
    count = (size * largest / size.amax(1, keepdim=True)).round_()  # steps from zero, [m, 32]
    used = count > 0
    floor = torch.where(used, low / count, 0.0).amax(1, keepdim=True)
    ceiling = torch.where(used, high / count, torch.inf).amin(1, keepdim=True)
    flipped = _flipped(weights, count)
    steps = torch.where((weights < 0) ^ flipped, -count, count).float() + 0.0  # a step that is stored has no minus zero
    scale, found = torch.zeros(len(weights), 1), torch.zeros(len(weights), dtype=torch.bool)
    nearest = ((floor + ceiling) / 2).half()  # a float16 in the range, if there is one, is not farther than its edge
    for shift in (0, -1, 1):  # the edges themselves round to the even neighbour
        beside = (nearest.view(torch.int16) + shift).view(torch.float16).float()
        other = torch.where(flipped, -beside, beside)
        fits = (steps.abs().amax(1) <= STEPS) & ((steps * other).to(weights.dtype) == weights).all(1) & ~found
        fits &= (steps < STEPS).all(1)
        scale[fits], found = other[fits], found | fits
    return scale, steps, found


def _flipped(weights: Tensor, count: Tensor) -> Tensor:
    """Where the scale is negative, bool [m, 1]: the grid has eight steps on one side only, and minus zero is a sign."""
    outermost = ((count == STEPS) & (weights > 0)).any(1, keepdim=True)
    opposite = ((count == STEPS) & (weights < 0)).any(1, keepdim=True)
    return outermost | (~opposite & ((weights == 0) & weights.signbit()).any(1, keepdim=True))
