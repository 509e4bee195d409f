"""Slots for routed experts: how large one is, and how many a budget has room for. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from pocketgem.errors import InputError
from pocketgem.memory.packed_place import ALIGNMENT, aligned
from pocketgem.sizes import gib

LEAST_ALIGNMENT = 64  # of packed bytes in the file; the zeros after the last tensor are within a page


def slot_bytes(sizes: Sequence[Sequence[int]]) -> int:
    """Bytes of a slot that holds any expert. sizes: packed bytes of gate, up and down, for each layer."""
    return sum(rooms_of(sizes))


def rooms_of(sizes: Sequence[Sequence[int]]) -> list[int]:
    """Bytes for gate, up and down: a read begins at the page that holds the first byte, and so does the room."""
    return [aligned(max(of_part) + ALIGNMENT - LEAST_ALIGNMENT) for of_part in zip(*sizes, strict=True)]


def least_bytes(sizes: Sequence[Sequence[int]], top_k: int) -> int:
    """The smallest budget: the experts of one row."""
    return top_k * slot_bytes(sizes)


def slots_for(budget: int, sizes: Sequence[Sequence[int]], experts: int, top_k: int, what: str = "the model") -> int:
    """Slots that ``budget`` bytes have room for, at most one for each expert.

    Raises InputError where that is less than the experts of one row.
    """
    each = slot_bytes(sizes)
    if budget < least_bytes(sizes, top_k):
        raise InputError(
            f"{what}: its experts need at least {top_k * each} bytes ({gib(top_k * each)}) of memory: a token uses "
            f"{top_k} at a time, {gib(each)} each; the budget is {gib(budget)}"
        )
    return min(budget // each, experts * len(sizes))
