"""An adapter written into a model's file: each changed matrix is changed while it is copied, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pocketgem.adapters.base import Base
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor, member_of
from pocketgem.checkpoint.stream import Change, Changes, Place, place
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import WeightsError
from pocketgem.model.lora import LowRank


def changes_of(checkpoint: Checkpoint, deltas: Mapping[str, LowRank]) -> Changes:
    """What becomes of which stored rows, as by ``merge_``. Raises WeightsError where something does not fit."""
    base = Base(checkpoint)
    found: dict[Place, Change] = {}
    for module, delta in deltas.items():
        if base.shape(module) != delta.shape:
            raise WeightsError(f"{module}: the adapter changes {list(delta.shape)}, the model has {base.shape(module)}")
        if base.stored_name(module) == "embed_tokens.weight":
            raise WeightsError(f"{module}: the head is the embedding in this model, which must not change with it")
        tensor = checkpoint.tensors[base.stored_name(module)]
        found |= {place(part): rows for part, rows in _parts(tensor, delta)}
    return found


def _parts(tensor: TextTensor, delta: LowRank) -> Iterator[tuple[StoredTensor, Change]]:
    """The stored tensors of a matrix or a stack: whole, and where experts' halves lie apart, also each by itself."""
    if not isinstance(tensor, JoinedTensor):
        yield tensor, _Rows(delta)
        return
    width = tensor.gate.shape[1]
    for half, rows in ((tensor.gate, slice(0, width)), (tensor.up, slice(width, None))):
        yield half, _Rows(LowRank(delta.A, delta.B[:, rows], delta.scale))
        for expert in range(half.shape[0] if half.shape[0] > 1 else 0):
            yield member_of(half, expert), _Rows(LowRank(delta.A[expert], delta.B[expert, rows], delta.scale))


class _Rows:
    """A change for rows of a matrix, or of a stack of them one after the other."""

    def __init__(self, delta: LowRank) -> None:
        self._delta = delta

    def __call__(self, values: Tensor, start: int) -> Tensor:
        changed = values + self._added(start, start + len(values))
        magnitude = self._delta.magnitude
        if magnitude is not None:
            lengths = torch.linalg.vector_norm(changed, dim=1)
            changed *= (magnitude[start : start + len(values)].float() / lengths)[:, None]
        return changed

    def _added(self, start: int, stop: int) -> Tensor:
        a, b = self._delta.A.float(), self._delta.B.float()
        if b.ndim == 2:
            return self._delta.scale * (b[start:stop] @ a)
        rows = b.shape[1]
        pieces = []
        while start < stop:
            expert, first = divmod(start, rows)
            last = min(rows, first + stop - start)
            pieces.append(b[expert, first:last] @ a[expert])
            start += last - first
        return self._delta.scale * torch.cat(pieces)
