"""One pass over whole sequences with nothing stored: keys and values go to the queries as they are, so gradients do.

Sequences lie one after the other in the rows, without padding; see ``rectangle.py`` for their attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from pocketgem.config import LayerConfig
from pocketgem.model.cache import Cache, KeysValues, Seen, Span, Step
from pocketgem.model.rectangle import Rectangle, rectangles


@dataclass(frozen=True)
class WholeStep(Step):
    """All rows of sequences that begin with it."""

    counts: tuple[int, ...] = ()  # rows of each sequence

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device, wanted: Tensor | None = None) -> WholeStep:
        """Rows of ``counts[i]`` tokens for sequence i, one sequence after the other.

        wanted: rows whose hidden states are asked for, ascending, on the CPU; None for all. The others leave at the
        last layer that writes keys, as they do when a prompt is read.
        """
        spans, row = [], 0
        for count in counts:
            spans.append(Span(cast(Cache, None), row, row + count))  # there is none: nothing is stored
            row += count
        positions = torch.cat([torch.arange(count, device=device) for count in counts])
        return cls(tuple(spans), positions, torch.arange(row) if wanted is None else wanted, counts=tuple(counts))

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Seen, ...]:
        """One pair for all sequences; see ``Step.write``."""
        return (KeysValues(k, v, 0, len(k), 0),)

    def wanted(self) -> WholeStep:
        """See ``Step.wanted``."""
        less = super().wanted()
        return WholeStep(less.spans, less.positions, less.logit_rows, less.skip, less.last, self.counts)

    def attend(self, layer: LayerConfig, q: Tensor, seen: Sequence[Seen], scale: float) -> Tensor:
        """See ``Step.attend``."""
        parts = [one.attend(layer, q, seen[0], scale) for one in self._rectangles]
        return torch.cat(parts)[self._order]

    @cached_property
    def _rectangles(self) -> list[Rectangle]:
        return rectangles(self.spans, self.counts, self.positions)

    @cached_property
    def _order(self) -> Tensor:
        """Rows of the rectangles -> rows of the step."""
        return torch.cat([one.rows for one in self._rectangles]).argsort()
