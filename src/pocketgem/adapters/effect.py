"""Whether an adapter acts: the model's answers to a probe with it and without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.probe import Probe, check_probe
from pocketgem.errors import WeightsError
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import Deltas, attach_, detach_
from pocketgem.model.mix import NOBODY, Mix

PROBE = 24  # tokens


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
    return first + torch.randint(known // 100, known, (count,), generator=generator).tolist()


def attach_and_prove_(
    model: Gemma, deltas: Deltas, ids: list[int] | None = None, expected: Probe | None = None
) -> Effect:
    """Put an adapter on and measure what it does. expected: what it did on this very base, by its manifest.

    Raises WeightsError where it does nothing, or something else than expected; then it is off again.
    """
    ids = list(expected.ids) if expected is not None else ids or probe_ids(model)
    before = scores(model, ids)
    attach_(model, deltas)
    try:
        after = scores(model, ids)
        if expected is not None:
            check_probe(expected, before, after)
        return _compared(before, after)
    except WeightsError:
        detach_(model)
        raise


def put_and_prove(mix: Mix, adapter: Adapter, expected: Probe | None = None) -> tuple[int, Effect]:
    """Make an adapter known to a mix and measure what it does; returns its number there. expected: as above.

    Raises WeightsError where it does nothing, or something else than expected; then it is not known. Errors of
    ``Mix.put`` go on.
    """
    model, ids = mix.model, probe_ids(mix.model) if expected is None else list(expected.ids)
    with mix.rows([NOBODY]):
        before = scores(model, ids)
    number = mix.put(adapter.deltas, adapter.identity)
    try:
        with mix.rows([number]):
            after = scores(model, ids)
        if expected is not None:
            check_probe(expected, before, after)
        return number, _compared(before, after)
    except BaseException:
        mix.drop(number)
        raise


def measured(model: Gemma, deltas: Deltas, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[rows, vocab]`` without the adapter and with it; it is off again. Raises WeightsError."""
    before = scores(model, ids)
    attach_(model, deltas)
    try:
        after = scores(model, ids)
    finally:
        detach_(model)
    _compared(before, after)
    return before, after


@torch.inference_mode()
def scores(model: Gemma, ids: list[int]) -> Tensor:
    """Log-probabilities of what follows each id of a text ``[rows, vocab]``, on the CPU."""
    step = Step.packed([model.new_cache()], [len(ids)], logits=[len(ids)])
    return model.logits(model(model.embed(torch.tensor(ids)), step)).float().log_softmax(-1).cpu()


def _compared(before: Tensor, after: Tensor) -> Effect:
    if not bool(after.isfinite().all()):
        raise WeightsError("with the adapter on the model gives no numbers")
    if torch.equal(before, after):
        raise WeightsError("the adapter changes no answer to a probe: it has no effect on this model")
    kl = F.kl_div(after, before, reduction="none", log_target=True).sum(-1).mean()
    changed = (before.argmax(-1) != after.argmax(-1)).float().mean()
    return Effect(float(kl), float((after - before).abs().max()), float(changed))
