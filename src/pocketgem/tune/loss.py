"""How badly the model says the answers of a batch: cross entropy over what is to be learned, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pocketgem.model.gemma import Gemma
from pocketgem.model.whole import WholeStep
from pocketgem.tune.data import Example

HEAD_ROWS = 64  # 64 x 262,144 float32 logits are 64 MiB, made again for the way back


def loss_of(model: Gemma, batch: Sequence[Example]) -> Tensor:
    """Mean natural-log loss over the learned ids of all examples; a scalar that gradients flow from."""
    ids = torch.tensor([id for example in batch for id in example.ids])
    hidden = model(model.embed(ids), WholeStep.of([len(example.ids) for example in batch], model.device))
    rows, targets = _learned(batch)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(rows), HEAD_ROWS):
        piece = slice(start, start + HEAD_ROWS)
        total = total + _summed(model, hidden[rows[piece].to(hidden.device)], targets[piece].to(hidden.device))
    mean: Tensor = total / len(rows)
    return mean


def _learned(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Rows that are followed by a learned id, and these ids."""
    rows: list[int] = []
    targets: list[int] = []
    start = 0
    for example in batch:
        rows += range(start + example.answer - 1, start + len(example.ids) - 1)
        targets += example.ids[example.answer :]
        start += len(example.ids)
    return torch.tensor(rows), torch.tensor(targets)


def _summed(model: Gemma, hidden: Tensor, targets: Tensor) -> Tensor:
    """Logits are not kept for the way back: they would be most of the memory of a small model's training."""

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(rows), targets, reduction="sum")

    result: Tensor = checkpoint(loss, hidden, use_reentrant=False)
    return result
