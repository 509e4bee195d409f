"""How badly the model says the answers of a batch: cross entropy over what is to be learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketgem.model.gemma import Gemma
from pocketgem.model.whole import WholeStep
from pocketgem.tune.data import Example
from pocketgem.tune.head import cross_entropy


def loss_of(model: Gemma, batch: Sequence[Example]) -> Tensor:
    """Mean natural-log loss over the learned ids of all examples; a scalar that gradients flow from."""
    return summed_loss(model, batch) / sum(example.learned for example in batch)


def summed_loss(model: Gemma, batch: Sequence[Example]) -> Tensor:
    """The same as a sum."""
    ids = torch.tensor([id for example in batch for id in example.ids])
    rows, targets = _learned(batch)
    step = WholeStep.of([len(example.ids) for example in batch], model.device, rows)
    hidden = model(model.embed(ids), step)
    return cross_entropy(model, hidden, targets.to(hidden.device))


@torch.no_grad()
def loss_over(model: Gemma, examples: Sequence[Example], at_once: int = 8) -> float:
    """Mean loss over the learned ids of examples that are not learned from, ``at_once`` of them in a pass."""
    pieces = (examples[start : start + at_once] for start in range(0, len(examples), at_once))
    total = sum(float(summed_loss(model, piece)) for piece in pieces)
    return total / sum(example.learned for example in examples)


def _learned(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Rows that are followed by a learned id, and these ids."""
    rows: list[int] = []
    targets: list[int] = []
    start = 0
    for example in batch:
        for begin, end in example.spans:
            rows += range(start + begin - 1, start + end - 1)
            targets += example.ids[begin:end]
        start += len(example.ids)
    return torch.tensor(rows), torch.tensor(targets)
