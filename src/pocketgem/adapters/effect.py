"""Whether an adapter acts: the model's answers to a probe with it and without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.adapters.peft import Adapter
from pocketgem.errors import WeightsError
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import Deltas, attach_, detach_
from pocketgem.model.mix import NOBODY, Mix

PROBE = 24  # tokens
NO_EFFECT = "the adapter changes no answer to a probe: it has no effect on this model"


@dataclass(frozen=True)
class Effect:
    """What an adapter does to the next-token distributions of a probe.

    kl           mean Kullback-Leibler divergence from the base, in nat
    largest      largest change of a logit
    top_changed  share of positions at which another token is the most probable
    """

    kl: float
    largest: float
    top_changed: float


def probe_ids(model: Gemma, count: int = PROBE) -> list[int]:
    """Ids that mean nothing, the same for every model of a vocabulary: who changes weights changes what follows."""
    generator = torch.Generator().manual_seed(20_240_221)
    known = model.config.vocab_size
    first = [] if model.config.bos_id is None else [model.config.bos_id]
    return first + torch.randint(known // 100, known // 2, (count,), generator=generator).tolist()


def attach_and_prove_(model: Gemma, deltas: Deltas, ids: list[int] | None = None) -> Effect:
    """Put an adapter on and measure what it does. Raises WeightsError where it does nothing; then it is off again."""
    ids = ids or probe_ids(model)
    before = _scores(model, ids)
    attach_(model, deltas)
    after = _scores(model, ids)
    found = _compared(before, after)
    if found.largest == 0.0:
        detach_(model)
        raise WeightsError(NO_EFFECT)
    return found


def put_and_prove(mix: Mix, adapter: Adapter) -> tuple[int, Effect]:
    """Make an adapter known to a mix and measure what it does; returns its number there.

    Raises WeightsError where it does nothing; then it is not known. Errors of ``Mix.put`` go on.
    """
    model, ids = mix.model, probe_ids(mix.model)
    with mix.rows([NOBODY]):
        before = _scores(model, ids)
    number = mix.put(adapter.deltas, adapter.identity)
    try:
        with mix.rows([number]):
            found = _compared(before, _scores(model, ids))
        if found.largest == 0.0:
            raise WeightsError(NO_EFFECT)
    except BaseException:
        mix.drop(number)
        raise
    return number, found


@torch.inference_mode()
def _scores(model: Gemma, ids: list[int]) -> Tensor:
    """Log-probabilities ``[rows, vocab]``."""
    step = Step.packed([model.new_cache()], [len(ids)], logits=[len(ids)])
    return model.logits(model(model.embed(torch.tensor(ids)), step)).float().log_softmax(-1)


def _compared(before: Tensor, after: Tensor) -> Effect:
    if not bool(after.isfinite().all()):
        raise WeightsError("with the adapter on the model gives no numbers")
    kl = (before.exp() * (before - after)).sum(-1).mean()
    changed = (before.argmax(-1) != after.argmax(-1)).float().mean()
    return Effect(float(kl), float((after - before).abs().max()), float(changed))
