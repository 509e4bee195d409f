"""Which experts are in memory, and which of them leaves when another comes. Integers and scores only; no bytes.

The least useful one leaves: usefulness is the number of rows that chose an expert, each row counting half as much after
``HALF_LIFE`` more (Lee et al. 2001, "LRFU": between least recently and least frequently used). The score of an expert
that left is kept, so a long prompt, which asks for every expert once, passes through a few slots and drives out nobody
whom the rows choose more often. One measure for all layers: each sees every row, and a layer whose rows agree needs
fewer slots than one whose rows do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

HALF_LIFE = 256.0  # rows
NOWHERE = -1


class Residents:
    """``slots`` places for ``layers`` x ``experts`` experts."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self._experts = experts
        self._score = np.zeros(layers * experts)
        self._slot = np.full(layers * experts, NOWHERE, np.int64)
        self._owner = np.full(slots, NOWHERE, np.int64)
        self._pins = np.zeros(slots, np.bool_)

    @property
    def count(self) -> int:
        """Slots in use."""
        return int((self._owner != NOWHERE).sum())

    def note(self, layer: int, chosen: np.ndarray, rows: int) -> None:
        """One row or more of a layer chose experts: ``chosen`` [rows * top_k], taken as spread evenly over the rows."""
        scores = self._score[layer * self._experts : (layer + 1) * self._experts]
        fade = 0.5 ** (rows / HALF_LIFE)
        each = (1 - fade) / (rows * (1 - 0.5 ** (1 / HALF_LIFE)))  # the mean over rows of what is left of a one
        scores *= fade
        scores += np.bincount(chosen, minlength=self._experts) * each

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
        worth = np.where(self._owner == NOWHERE, -1.0, self._score[self._owner])
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
