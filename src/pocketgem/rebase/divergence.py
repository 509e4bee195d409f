"""How far a model's next-token distributions are from a capsule's: Kullback-Leibler over its top ids and the rest.

Cutting a distribution to its top ids and one bucket for all others never raises the divergence (the data-processing
inequality), so what is measured is a lower bound of the whole one, close to it while the bucket holds little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem.model.gemma import Gemma
from pocketgem.model.whole import WholeStep
from pocketgem.rebase.capsule import Answer

BATCH = 16  # answers a pass where no gradients are wanted
HEAD_ROWS = 64  # 64 x 262,144 float32 logits are 64 MiB
FLOOR = 1e-7  # of the rest's probability: what float32 leaves of 1 - sum


def bucketed(scores: Tensor, ids: Tensor) -> Tensor:
    """Logits ``[rows, vocab]`` -> log-probabilities of ``ids`` ``[rows, k]`` and of the rest, ``[rows, k + 1]``."""
    top = scores.gather(1, ids) - scores.logsumexp(-1, keepdim=True)
    rest = (1 - top.exp().sum(-1, keepdim=True)).clamp_min(FLOOR).log()
    return torch.cat([top, rest], -1)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """``KL(wanted || found)`` of rows of log-probabilities ``[rows, buckets]``: ``[rows]``, in nat."""
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a model says of some answers: buckets ``[rows, k + 1]``, the best id of each row, and the rows' numbers."""

    logs: Tensor
    best: Tensor  # [rows] int64
    numbers: Tensor  # [rows] int64: which rows of the capsule


def hidden_of(model: Gemma, answers: Sequence[Answer]) -> Tensor:
    """The last hidden states before each id of the answers, ``[rows, hidden]``, one answer after the other."""
    ids = torch.tensor([id for one in answers for id in one.ids])
    rows: list[int] = []
    start = 0
    for one in answers:
        rows += range(start + one.answer - 1, start + len(one.ids) - 1)
        start += len(one.ids)
    step = WholeStep.of([len(one.ids) for one in answers], model.device, torch.tensor(rows))
    hidden: Tensor = model(model.embed(ids), step)
    return hidden


def numbers_of(answers: Sequence[Answer]) -> Tensor:
    """The capsule's rows of the answers, in the order of ``hidden_of``."""
    return torch.tensor([row for one in answers for row in one.rows])


@torch.inference_mode()
def rows_of(model: Gemma, answers: Sequence[Answer], ids: Tensor) -> Rows:
    """Run the model over answers. ids: the capsule's top ids, ``[all rows, k]``."""
    logs, best, numbers = [], [], numbers_of(answers)
    for scores, where in _scores(model, answers):
        logs.append(bucketed(scores, ids[where].to(scores.device)).cpu())
        best.append(scores.argmax(-1).cpu())
    return Rows(torch.cat(logs), torch.cat(best), numbers)


@torch.inference_mode()
def tops_of(model: Gemma, answers: Sequence[Answer], count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best ids of every row ``[rows, count]``, and ``bucketed`` of them."""
    found = []
    for scores, _ in _scores(model, answers):
        ids = scores.topk(count, -1).indices
        found.append((ids.cpu(), bucketed(scores, ids).cpu()))
    return torch.cat([ids for ids, _ in found]), torch.cat([logs for _, logs in found])


def _scores(model: Gemma, answers: Sequence[Answer]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of a few rows, and which rows of the capsule these are."""
    for start in range(0, len(answers), BATCH):
        batch = answers[start : start + BATCH]
        hidden, numbers = hidden_of(model, batch), numbers_of(batch)
        for at in range(0, len(hidden), HEAD_ROWS):
            yield model.logits(hidden[at : at + HEAD_ROWS]), numbers[at : at + HEAD_ROWS]
