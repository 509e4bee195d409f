"""The seam between an answer's rules and the sampler: which ids may come next."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]  # [ceil(vocab / 32)]; bit i % 32 of word i // 32 stands for id i


class Guide(Protocol):
    """Rules for one sequence's output. It lives as long as the request, also through a preemption."""

    def allowed(self) -> Mask | None:
        """The ids that may come next, None for all of them. The array is read at once and may be used again."""
        ...

    def push(self, id: int) -> None:
        """``id`` was chosen. Called once for every output id, in order."""
        ...
