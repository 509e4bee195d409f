"""What an adapter is expected to do to the answers to a probe, and whether it does so.

In each row of the probe the token whose log-probability changed most is kept, with the change. They are measured again
when the adapter is put on: a lost matrix, a wrong scale or a base that is not quite the one are seen there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Other kernels and types round differently. What they did to a change on the real 270M, in nat: see ``noise``.
SHARE = 0.25  # of the expected changes' length, that the measured ones may differ by beside rounding


@dataclass(frozen=True)
class Probe:
    """``ids`` of a text; after each, the token whose log-probability the adapter changes most, and by how many nat."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    changes: tuple[float, ...]


def record(ids: list[int], before: Tensor, after: Tensor) -> Probe:
    """From log-probabilities ``[rows, vocab]`` without the adapter and with it."""
    change = after - before
    tokens = change.abs().argmax(dim=-1)
    changes = change.gather(1, tokens[:, None]).squeeze(1)
    return Probe(tuple(ids), tuple(tokens.tolist()), tuple(round(value, 6) for value in changes.tolist()))


def difference(probe: Probe, before: Tensor, after: Tensor) -> float:
    """Root of the mean square of measured less expected changes, in nat."""
    tokens = torch.tensor(probe.tokens)[:, None]
    measured = (after - before).gather(1, tokens).squeeze(1)
    return float((measured - torch.tensor(probe.changes)).square().mean().sqrt())


def length(probe: Probe) -> float:
    """Root of the mean square of the expected changes, in nat."""
    return math.sqrt(sum(value * value for value in probe.changes) / len(probe.changes))
