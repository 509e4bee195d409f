"""What an adapter is expected to do to the answers to a probe, and whether it does so.

In each row of the probe the token whose log-probability changed most is kept: its value on the base, and the change.
Both are measured again when the adapter is put on. Other kernels and types round differently, and by how much is seen
on the base alone: there the values could be the very same, since the base is known to be by its hashes. A lost matrix
or a wrong scale moves the changes and leaves the base's values where they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.errors import WeightsError

# The difference of two values, each with an error of size r, has one of sqrt(2) r if the errors know nothing of each
# other, and 2 r at most. On the real 270M it is 1.4 r for bfloat16 and 0.7 to 1.2 r for packed weights, whose r is 0.25
# nat on this probe; twice sqrt(2) leaves room for an adapter that amplifies them.
ROUNDING = 2 * math.sqrt(2)
SHARE = 0.005  # of the changes' own size: one lost matrix in 126 is 0.013 of it, float32 in another order far less
LEAST = 1e-4  # nat; float32's rounding of logits
MOST = 1.0  # nat; a base that is further off than this does not compute what it did


@dataclass(frozen=True)
class Probe:
    """``ids`` of a text; after each, the token whose log-probability the adapter changes most: its log-probability on
    the base, and by how many nat it changes."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    before: tuple[float, ...]
    changes: tuple[float, ...]


def record(ids: Sequence[int], before: Tensor, after: Tensor) -> Probe:
    """From log-probabilities ``[rows, vocab]`` without the adapter and with it."""
    change = after - before
    tokens = change.abs().argmax(dim=-1, keepdim=True)
    values = ([round(value, 6) for value in one.gather(1, tokens).flatten().tolist()] for one in (before, change))
    return Probe(tuple(ids), tuple(tokens.flatten().tolist()), *map(tuple, values))


def check_probe(probe: Probe, before: Tensor, after: Tensor) -> float:
    """How far, in nat, the measured changes are from the expected ones. Raises WeightsError if that is not rounding."""
    rounding, off = _differences(probe, before, after)
    if rounding > MOST:
        raise WeightsError(f"the base answers the adapter's probe {rounding:.2f} nat away from what is recorded")
    allowed = ROUNDING * rounding + SHARE * _size(probe.changes) + LEAST
    if off > allowed:
        raise WeightsError(
            f"the adapter does not do what its manifest says: the probe's answers change by {_size(probe.changes):.3g} "
            f"nat there, here they are {off:.3g} off, where rounding explains {allowed:.3g}"
        )
    return off


def _differences(probe: Probe, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Measured less recorded: of the base's values, and of the changes."""
    tokens = torch.tensor(probe.tokens)[:, None]
    base, change = (one.gather(1, tokens).flatten().tolist() for one in (before, after - before))
    pairs = ((base, probe.before), (change, probe.changes))
    rounding, off = (_size([a - b for a, b in zip(*pair, strict=True)]) for pair in pairs)
    return rounding, off


def _size(values: Sequence[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))
