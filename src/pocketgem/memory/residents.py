"""Which experts are in memory, and which of them leaves when another comes. Integers and scores only; no bytes.

The least useful one leaves. An expert's use is the share of rows that chose it, older rows counting less; its worth is
the sum of two such shares, one that halves after a few rows and one that halves after many: the first follows a text
from subject to subject, the second knows what is popular. (Lee et al. 2001, "LRFU", have one such sum, and a choice to
make. ``benchmarks/residents.py`` compares them on simulated routing.) Shares of an expert that left are kept, so a long
prompt, which asks for every expert once, passes through a few slots and drives out nobody whom the rows choose more
often. One measure for all layers: each sees every row, and a layer whose rows agree needs fewer slots than one whose
rows do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

HALF_LIVES = (4.0, 128.0)  # rows
NOWHERE = -1


class Residents:
    """``slots`` places for ``layers`` x ``experts`` experts."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self._experts = experts
        self._shares = [np.zeros(layers * experts) for _ in HALF_LIVES]
        self._worth = np.zeros(layers * experts)  # their sum
        self._slot = np.full(layers * experts, NOWHERE, np.int64)
        self._owner = np.full(slots, NOWHERE, np.int64)
        self._pins = np.zeros(slots, np.bool_)

    @property
    def count(self) -> int:
        """Slots in use."""
        return int((self._owner != NOWHERE).sum())

    def note(self, layer: int, chosen: np.ndarray, rows: int) -> None:
        """One row or more of a layer chose experts: ``chosen`` [rows * top_k], taken as spread evenly over the rows."""
        ours = slice(layer * self._experts, (layer + 1) * self._experts)
        share = np.bincount(chosen, minlength=self._experts) / rows
        for half_life, shares in zip(HALF_LIVES, self._shares, strict=True):
            fade = 0.5 ** (rows / half_life)
            shares[ours] = fade * shares[ours] + (1 - fade) * share
        self._worth[ours] = sum(shares[ours] for shares in self._shares)

    def slot(self, layer: int, expert: int) -> int:
        """Where an expert is; NOWHERE if not in memory."""
        return int(self._slot[layer * self._experts + expert])

    def pin(self, slots: Iterable[int]) -> None:
        """Nobody leaves these until ``unpin``."""
        for slot in slots:
            self._pins[slot] = True

    def unpin(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._pins[slot] = False

    def unpin_all(self) -> None:
        self._pins[:] = False

    def take(self) -> int | None:
        """An empty slot, pinned, its owner driven out if it had one; None if all are pinned."""
        worth = np.where(self._owner == NOWHERE, -1.0, self._worth[self._owner])
        worth[self._pins] = np.inf
        slot = int(worth.argmin())
        if self._pins[slot]:
            return None
        self.clear(slot)
        self._pins[slot] = True
        return slot

    def settle(self, slot: int, layer: int, expert: int) -> None:
        """An expert's bytes are in a slot that was taken for it."""
        id = layer * self._experts + expert
        self._owner[slot], self._slot[id] = id, slot

    def clear(self, slot: int) -> None:
        """Nobody is in this slot any more."""
        if self._owner[slot] != NOWHERE:
            self._slot[self._owner[slot]] = NOWHERE
            self._owner[slot] = NOWHERE
        self._pins[slot] = False
