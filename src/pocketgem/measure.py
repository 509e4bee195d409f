"""A text as numbers: how probable a model finds each token, and the direction of its last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from pocketgem.answers import Score
from pocketgem.engine.loop import Engine
from pocketgem.engine.scoring import score_rows
from pocketgem.errors import RunError
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.mix import mix_of

Lock = AbstractContextManager[None]  # who holds it steps the engine; the head's kernels serve one thread at a time


@torch.inference_mode()
def score(engine: Engine, lock: Lock, ids: Sequence[int], chunk: int, owners: Sequence[int]) -> Score:
    """See ``LLM.score``. The lock is let go between two chunks. owners: see ``Mix.rows``; none: the base's.

    Raises PromptError.
    """
    engine.check(ids)
    model, found = engine.model, list[float]()
    cache = model.new_cache()
    for start in range(0, len(ids) - 1, chunk):
        piece, targets = ids[start : start + chunk], ids[start + 1 : start + chunk + 1]
        piece = piece[: len(targets)]
        step = Step.packed([cache], [len(piece)], logits=[len(piece)])
        with lock, _rows(model, owners[start : start + len(piece)]):
            inputs = model.embed(torch.tensor(piece))
            model.expect(ids[start + chunk : start + 2 * chunk])
            hidden = model(inputs, step)
            step.commit()
            scored = score_rows(model, hidden, targets, 0)
            found += [one.logprob for one in scored if one.logprob is not None]
    return Score(tuple(ids), tuple(found))


@torch.inference_mode()
def embedding(
    engine: Engine, lock: Lock, ids: Sequence[int], chunk: int, proceed: Callable[[], bool], owners: Sequence[int]
) -> list[float]:
    """See ``LLM.embed``. Raises PromptError, and RunError when ``proceed`` says no."""
    engine.check(ids)
    model = engine.model
    cache, total = model.new_cache(), torch.zeros(model.config.hidden_size)
    for start in range(0, len(ids), chunk):
        if not proceed():
            raise RunError("the embedding was given up")
        piece = ids[start : start + chunk]
        step = Step.packed([cache], [len(piece)], logits=[len(piece)])
        with lock, _rows(model, owners[start : start + len(piece)]):
            hidden = model(model.embed(torch.tensor(piece)), step)
            step.commit()
        total += hidden.float().sum(0).cpu()
    direction: list[float] = (total / total.norm().clamp_min(1e-12)).tolist()
    return direction


def _rows(model: Gemma, owners: Sequence[int]) -> AbstractContextManager[None]:
    mix = mix_of(model)
    return nullcontext() if mix is None or not owners else mix.rows(owners)
