"""Cross entropy and its gradient in one pass over the vocabulary, which never holds a row of logits.

The gradient of the loss to a hidden row h is ``sum over the vocabulary of p(v) W[v], less W[target]``: attention with
the head's rows as keys and as values. So it is computed as attention is, block by block with a running maximum (Milakov
& Gimelshein 2018; Dao et al. 2022), while each block of the head is in the processor's cache: two products a step
where a head that keeps logits has two and 1 MiB a row, and one that makes them again has three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pocketgem.errors import UnsupportedError
from pocketgem.model.blocks import BlockLinear
from pocketgem.model.gemma import Gemma

BLOCK = 4096  # rows of the head at a time on a CPU: with their scores they stay in its cache
CARD_BLOCK = 32_768


def cross_entropy(model: Gemma, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum of ``-log p(target)`` in nat over hidden rows ``[n, hidden]``; float32 scalar that gradients flow from.

    Raises UnsupportedError for a head whose rows cannot be read.
    """
    cap = model.config.final_logit_softcapping
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, targets, _rows_of(model.lm_head), model.config.vocab_size, cap
    )
    return loss


Rows = Callable[[Tensor | slice], Tensor]  # of the head, by number


def _rows_of(head: nn.Module) -> Rows:
    if isinstance(head, BlockLinear):
        blocks = head.blocks
        return lambda at: blocks.unpacked(at.start, at.stop) if isinstance(at, slice) else blocks.chosen(at)
    if isinstance(weight := getattr(head, "weight", None), Tensor):
        return lambda at: weight[at]
    raise UnsupportedError("the model's head is packed for kernels that know no gradients; load it with a dtype")


class _CrossEntropy(torch.autograd.Function):
    """The loss does not come back into what follows, so its gradient is known when it is: backward only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, rows: Rows, count: int, cap: float | None) -> Tensor:
        pull = torch.zeros(hidden.shape[1], len(hidden), device=hidden.device)  # [hidden, n]: sum of p(v) W[v]
        most = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(most)
        across = hidden.T.contiguous()
        step = BLOCK if hidden.device.type == "cpu" else CARD_BLOCK
        for start in range(0, count, step):
            most = _block(rows(slice(start, min(start + step, count))), across, cap, (pull, most, total))
        chosen = rows(targets).float()
        scores, slope = _capped((hidden.float() * chosen).sum(-1), cap)
        ctx.pull = (pull / total).T - (chosen if slope is None else chosen * slope[:, None])
        ctx.type = hidden.dtype
        return (most + total.log() - scores).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return (ctx.pull * grad).to(ctx.type), None, None, None, None


def _block(weight: Tensor, across: Tensor, cap: float | None, sums: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """One block ``[rows, hidden]`` of the head on ``across [hidden, n]``. Changes the sums, returns the maximum."""
    pull, before, total = sums
    scores, slope = _capped((weight @ across).float(), cap)  # [rows, n]
    most = torch.maximum(before, scores.amax(0))
    shrink = (before - most).exp_()
    weights = scores.sub_(most).exp_()
    total.mul_(shrink).add_(weights.sum(0))
    if slope is not None:
        weights = weights * slope
    pull.mul_(shrink).add_(weight.T @ weights.to(weight.dtype))
    return most


def _capped(scores: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Soft-capped scores and their slope, None for 1."""
    if cap is None:
        return scores, None
    squashed = torch.tanh(scores / cap)
    return squashed * cap, 1 - squashed * squashed
