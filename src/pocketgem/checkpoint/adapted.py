"""A stored tensor whose values a file's writer changed: they are changed back when they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pocketgem.checkpoint.tensor import StoredTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class AdaptedTensor(StoredTensor):
    """``shape`` is what a reader gets; the bytes are of ``stored``, a tensor of as many numbers in another order."""

    stored: StoredTensor = field(repr=False)
    undo: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def dtype(self) -> None:
        """None: the bytes of the file are not the values."""
        return None

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """As ``StoredTensor.dense``, in new memory."""
        changed = self.undo(self.stored.dense()).reshape(self.shape).contiguous()
        return changed if dtype is None else changed.to(dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """As ``StoredTensor.rows``; all is read."""
        return self.dense().view(-1, self.shape[-1])[ids]

    def numbers(self) -> list[float]:
        """As ``StoredTensor.numbers``."""
        return [float(value) for value in self.dense().flatten().tolist()]


def adapted(tensor: StoredTensor, shape: tuple[int, ...], undo: Callable[[Tensor], Tensor]) -> StoredTensor:
    """``tensor`` as ``undo`` makes it, ``[*shape]``: the same number of numbers."""
    return AdaptedTensor(
        tensor.name, shape, tensor.type, tensor.source, tensor.start, tensor.end, stored=tensor, undo=undo
    )
