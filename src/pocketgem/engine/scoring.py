"""How probable the model finds ids that are there: hidden rows and the ids that follow them -> log-probabilities.

Logits of a vocabulary are large, so they are made of a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pocketgem.engine.request import Sampled
from pocketgem.engine.sampler import describe, log_probabilities
from pocketgem.errors import RunError
from pocketgem.model.gemma import Gemma

HEAD_ROWS = 128  # 128 x 262,144 float32 logits are 128 MiB


def score_rows(model: Gemma, hidden: Tensor, targets: Sequence[int], top: int) -> list[Sampled]:
    """What each row of ``hidden`` [rows, hidden] says of the id that follows it, with the ``top`` most probable ones.

    Raises RunError for a row that is no distribution.
    """
    found: list[Sampled] = []
    for start in range(0, len(targets), HEAD_ROWS):
        rows = log_probabilities(model.logits(hidden[start : start + HEAD_ROWS]))  # [rows, vocab]
        found += [describe(row, id, top) for row, id in zip(rows, targets[start : start + HEAD_ROWS], strict=True)]
    for one in found:
        if one.logprob is None or not math.isfinite(one.logprob):
            raise RunError(f"the log-probability of id {one.id} is {one.logprob}: the model's logits are not finite")
    return found
