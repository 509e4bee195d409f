"""What is measured of a model against its reference, over one text; numpy only, so that any interpreter can.

At every position: the Kullback-Leibler divergence of the next token's probabilities from the reference's, in nats, and
whether both find the same token most probable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


@dataclass(frozen=True)
class Quality:
    """Divergences in nats: their mean, the 99 % quantile and the largest; and how often the best token is the same."""

    kl_mean: float
    kl_p99: float
    kl_max: float
    same_top1: float
    perplexity: float


def log_softmax(logits: Floats) -> Floats:
    """``[rows, vocabulary]`` -> the same in float64, so that no rounding of ours is measured."""
    shifted: Floats = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def compare(expected: Iterable[Floats], found: Iterable[Floats], ids: Sequence[int]) -> Quality:
    """Logits of every position of ``ids``, in like pieces ``[rows, vocabulary]``, against the reference's.

    The last position has no next token, so it counts in all but the perplexity.
    """
    divergences, same, losses = list[float](), list[bool](), list[float]()
    for p_logits, q_logits in zip(expected, found, strict=True):
        p, q = log_softmax(p_logits), log_softmax(q_logits)
        targets = ids[len(same) + 1 : len(same) + 1 + len(q)]
        losses += (-q[range(len(targets)), targets]).tolist()
        divergences += (np.exp(p) * (p - q)).sum(-1).tolist()
        same += (p_logits.argmax(-1) == q_logits.argmax(-1)).tolist()
    return Quality(
        kl_mean=float(np.mean(divergences)),
        kl_p99=float(np.quantile(divergences, 0.99)),
        kl_max=max(divergences),
        same_top1=float(np.mean(same)),
        perplexity=_perplexity(losses),
    )


def _perplexity(losses: Sequence[float]) -> float:
    """Infinite where a ruined model's is beyond all numbers."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(losses)))
