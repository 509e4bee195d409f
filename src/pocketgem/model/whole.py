"""One pass over whole sequences with nothing stored: keys and values go to the queries as they are, so gradients do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pocketgem.model.cache import Cache, KeysValues, Span, Step


@dataclass(frozen=True)
class WholeStep(Step):
    """All rows of sequences that begin with it."""

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
        return cls(tuple(spans), positions, torch.arange(row) if wanted is None else wanted)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[KeysValues, ...]:
        """See ``Step.write``."""
        cut = [(k[span.start : span.stop], v[span.start : span.stop]) for span in self.spans]
        return tuple(KeysValues(keys, values, 0, len(keys), 0) for keys, values in cut)
