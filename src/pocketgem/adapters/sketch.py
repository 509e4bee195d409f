"""A few numbers of a matrix from which its distance to another is estimated when only one of the two is there.

    s_i = u_i^T W v_i    with u_i, v_i of +1 and -1 drawn at random, the same for every W of one name

For D = W' - W, E[(u^T D v)^2] = ||D||_F^2, so the mean of (s'_i - s_i)^2 over the pairs estimates the squared distance.
With 32 pairs the estimated length is within about 13 % for a D without structure (the squares are like chi-squared with
one degree of freedom), 25 % for one of rank one; over the matrices of a group errors average out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

COUNT = 32  # pairs; a multiple of 8
_SALT = "pocketgem sketch 1"  # another one makes other vectors: then the manifest's version must change, too


class Sketcher:
    """Takes the rows of one matrix ``[rows, width]`` in order and adds up its sketch and its length."""

    def __init__(self, name: str, rows: int, width: int) -> None:
        self._left = _bits(name, "rows", rows)  # [rows, COUNT]
        self._right = _signs(_bits(name, "columns", width))  # [width, COUNT]
        self._sums = torch.zeros(COUNT, dtype=torch.float64)
        self._squares, self._at = 0.0, 0

    def add(self, values: Tensor) -> None:
        """The next rows, float32 ``[n, width]``."""
        left = _signs(self._left[self._at : self._at + len(values)])
        self._sums += ((values @ self._right).double() * left.double()).sum(0)
        self._squares += float(values.double().square().sum())
        self._at += len(values)

    @property
    def sketch(self) -> tuple[float, ...]:
        """COUNT numbers, as float32 holds them."""
        return tuple(self._sums.float().tolist())

    @property
    def norm(self) -> float:
        """Frobenius'."""
        return math.sqrt(self._squares)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The estimated Frobenius norm of the difference of two matrices, from their sketches."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one))


def _bits(name: str, side: str, count: int) -> Tensor:
    """uint8 ``[count, COUNT]`` of zeros and ones: from a hash, the same for every version of every library."""
    drawn = hashlib.shake_256(f"{_SALT} {name} {side}".encode()).digest(count * COUNT // 8)
    return torch.from_numpy(np.unpackbits(np.frombuffer(drawn, dtype=np.uint8))).view(count, COUNT)


def _signs(bits: Tensor) -> Tensor:
    return bits.float().mul_(2).sub_(1)
