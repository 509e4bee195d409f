"""Sets of ids as the sampler reads them: one bit an id, 32 to a word, the lowest bit first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]  # [ceil(vocab / 32)]


def nothing(vocab: int) -> Mask:
    """No id at all."""
    return np.zeros((vocab + 31) // 32, dtype=np.uint32)


def everything(vocab: int, *, but: Iterable[int] = ()) -> Mask:
    """The ids from 0 to ``vocab`` - 1, without those of ``but``."""
    mask = np.full((vocab + 31) // 32, 0xFFFFFFFF, dtype=np.uint32)
    if vocab % 32:
        mask[-1] = (1 << vocab % 32) - 1
    remove(mask, but)
    return mask


def only(vocab: int, ids: Iterable[int]) -> Mask:
    """These ids and no others."""
    mask = nothing(vocab)
    add(mask, ids)
    return mask


def add(mask: Mask, ids: Iterable[int]) -> None:
    """Allow ``ids``; one beyond the mask is passed over."""
    for id in ids:
        if id < mask.size * 32:
            mask[id >> 5] |= np.uint32(1 << (id & 31))


def remove(mask: Mask, ids: Iterable[int]) -> None:
    """Forbid ``ids``; one beyond the mask is passed over."""
    for id in ids:
        if id < mask.size * 32:
            mask[id >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (id & 31)))


def is_empty(mask: Mask) -> bool:
    """Whether no id is left."""
    return not mask.any()
