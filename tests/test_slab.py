"""The block that logits are laid into: used again, and never under anybody's hands."""

from __future__ import annotations

import gc

import torch

from pocketgem.kernels.slab import LEAST, MOST, Slab

COLS = 1 << 18


def test_the_same_block_serves_step_after_step() -> None:
    slab, places = Slab(), set()
    for rows in (16, 4, 16, 1, 9):
        made = slab.empty(rows, COLS)
        made.fill_(rows)
        assert made.shape == (rows, COLS)
        places.add(made.data_ptr())
        del made
    assert len(places) == 1


def test_what_somebody_holds_is_not_written_to() -> None:
    slab = Slab()
    first = slab.empty(4, COLS)
    first.fill_(1)
    row = first[3]  # a part keeps the whole
    del first
    gc.collect()
    others = [slab.empty(4, COLS).fill_(2) for _ in range(3)]
    assert torch.equal(row, torch.ones(COLS))
    assert len({other.data_ptr() for other in (row, *others)}) == 4
    del row, others
    assert len(slab._free) == 1


def test_a_larger_block_takes_the_smaller_ones_place_and_stays() -> None:
    slab = Slab()
    for rows in (2, 8, 2):
        slab.empty(rows, COLS)
    assert len(slab._free[0]) == 8 * COLS * 4


def test_what_is_small_or_huge_lies_elsewhere() -> None:
    slab = Slab()
    for size in (LEAST - 4, MOST + 4, 0):
        assert slab.empty(1, size // 4).shape == (1, size // 4)
    assert slab._free == []
