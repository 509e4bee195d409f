"""What one format says for each matrix and another only once: ranks made equal by zeros, scales moved into B.

What was done is recorded in the file under a key of our own, so that reading it gives the very adapter back. Zeros are
taken off again exactly. A scale that was moved into B comes back exactly where the factor is a power of two; else the
values were rounded once to float32, one part in 16 million, and the adapter that is read has them so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from pocketgem.adapters.adapter import MOST_RANK
from pocketgem.config.fields import Fields
from pocketgem.errors import FormatError
from pocketgem.model.lora import LowRank

OURS = "pocketgem"  # the key in another format's file


@dataclass(frozen=True)
class Notes:
    """What a person is told of a conversion, and what the file keeps of it."""

    lines: tuple[str, ...] = ()
    record: Mapping[str, object] = field(default_factory=dict)

    def __add__(self, other: Notes) -> Notes:
        return Notes(self.lines + other.lines, {**self.record, **other.record})


def equal_ranks(deltas: Mapping[str, LowRank]) -> tuple[dict[str, LowRank], Notes]:
    """Rows of zeros in A and columns in B up to the largest rank."""
    most = max(delta.A.shape[-2] for delta in deltas.values())
    short = {name: delta.A.shape[-2] for name, delta in deltas.items() if delta.A.shape[-2] < most}
    found = {name: _padded(delta, most) if name in short else delta for name, delta in deltas.items()}
    lines = (f"{len(short)} matrices of lower rank were filled up with zeros to rank {most}",) if short else ()
    return found, Notes(lines, {"ranks": short} if short else {})


def _padded(delta: LowRank, rank: int) -> LowRank:
    more = rank - delta.A.shape[-2]
    a = torch.nn.functional.pad(delta.A, (0, 0, 0, more))
    return replace(delta, A=a, B=torch.nn.functional.pad(delta.B, (0, more)))


def one_scale(deltas: Mapping[str, LowRank]) -> tuple[dict[str, LowRank], float, Notes]:
    """The commonest scale for all; the others' is moved into B."""
    scale = Counter(delta.scale for delta in deltas.values()).most_common(1)[0][0]
    found, notes = rescaled(deltas, dict.fromkeys(deltas, scale))
    return found, scale, notes


def rescaled(deltas: Mapping[str, LowRank], said: Mapping[str, float]) -> tuple[dict[str, LowRank], Notes]:
    """The same changes with the scales that the format says."""
    found: dict[str, LowRank] = {}
    moved: dict[str, float] = {}
    for name, delta in deltas.items():
        if delta.scale == said[name]:
            found[name] = delta
        else:
            moved[name] = delta.scale
            found[name] = replace(delta, B=_times(delta.B, delta.scale / said[name]), scale=said[name])
    if not moved:
        return found, Notes()
    exact = all(math.frexp(moved[name] / said[name])[0] in (0.5, -0.5) for name in moved)
    how = "exactly" if exact else "rounded to float32"
    return found, Notes((f"the scales of {len(moved)} matrices were multiplied into B, {how}",), {"scales": moved})


def unfolded(deltas: Mapping[str, LowRank], record: Fields) -> dict[str, LowRank]:
    """Undo what ``record`` says was done. Raises FormatError for one that cannot be true."""
    ranks, scales = record.section("ranks"), record.section("scales")
    found = dict(deltas)
    for name in {*ranks.data, *scales.data}:
        if name not in found:
            raise FormatError(f"{record.where}: speaks of {name[:100]!r}, which the adapter does not change")
    for name in scales.data:
        scale = scales.float(name, low=-1e12)
        if scale == 0.0:
            raise FormatError(f"{scales.where}: a scale is zero")
        found[name] = replace(found[name], B=_times(found[name].B, found[name].scale / scale), scale=scale)
    for name in ranks.data:
        found[name] = _cut(found[name], ranks.int(name, high=MOST_RANK), ranks.where)
    return found


def _cut(delta: LowRank, rank: int, where: str) -> LowRank:
    if bool(delta.A[..., rank:, :].any()) or bool(delta.B[..., rank:].any()):
        raise FormatError(f"{where}: what lies beyond rank {rank} is not zero")
    return replace(delta, A=delta.A[..., :rank, :].contiguous(), B=delta.B[..., :rank].contiguous())


def _times(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Rounded once."""
    return (values.double() * factor).float()
