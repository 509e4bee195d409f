"""Autoregressive advance: run a plan's rows through the model, sample where a sequence reached its end."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pocketgem.engine.request import Sampled, Sequence
from pocketgem.engine.sampler import sample
from pocketgem.engine.scheduler import Turn
from pocketgem.errors import PocketgemError
from pocketgem.model.cache import Cache, Step
from pocketgem.model.gemma import Gemma


@dataclass
class State:
    """What a request owns beside its integers. The generator outlives a preemption, the cache does not."""

    generator: torch.Generator
    cache: Cache | None = None  # None: not admitted, or preempted


@contextmanager
def _threads_of(model: Gemma) -> Iterator[None]:
    """Torch's threads rest while the model has its own: two kinds of them on the same cores wait for each other."""
    if not model.has_own_threads:
        yield
        return
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@torch.inference_mode()
def advance(model: Gemma, turns: Seq[Turn], states: Seq[State]) -> list[Sampled | None]:
    """One forward pass over all turns' rows. Returns the id sampled for each turn, None where a prompt goes on.

    Where none can be chosen it is None too, and ``Sequence.error`` says why: the others' choices stand.
    """
    ids = [id for turn in turns for id in _next_ids(turn)]
    step = Step.packed(
        [state.cache for state in states if state.cache is not None],  # admission gave every one a cache
        [turn.count for turn in turns],
        logits=[1 if turn.samples else 0 for turn in turns],
    )
    with _threads_of(model):
        inputs = model.embed(torch.tensor(ids))
        model.expect(_coming(turns))  # read while this chunk runs
        hidden = model(inputs, step)
        step.commit()
        for turn in turns:
            turn.sequence.num_computed += turn.count
        rows = iter(model.logits(hidden)) if len(hidden) else iter(())
        return [
            _sample(model, next(rows), turn, state) if turn.samples else None
            for turn, state in zip(turns, states, strict=True)
        ]


def _next_ids(turn: Turn) -> tuple[int, ...]:
    sequence = turn.sequence
    if sequence.output_ids and turn.count == 1:
        return (sequence.output_ids[-1],)  # decode: do not copy the whole history for one id
    return sequence.ids[sequence.num_computed : sequence.num_computed + turn.count]


def _coming(turns: Seq[Turn]) -> list[int]:
    """Prompt ids of about the next step: of every prompt that goes on, as many as it has in this one."""
    ids: list[int] = []
    for turn in turns:
        if not turn.samples:
            start = turn.sequence.num_computed + turn.count
            ids += turn.sequence.request.prompt_ids[start : start + turn.count]
    return ids


def _sample(model: Gemma, logits: torch.Tensor, turn: Turn, state: State) -> Sampled | None:
    try:
        sampled = _choose(logits, turn.sequence, state)
    except PocketgemError as error:
        turn.sequence.error = error
        return None
    model.expect([sampled.id])  # its rows come while others are sampled and the text is shown
    return sampled


def _choose(logits: torch.Tensor, sequence: Sequence, state: State) -> Sampled:
    request = sequence.request
    guide = request.guide
    sampled = sample(
        logits,
        request.params,
        prompt_ids=request.prompt_ids,
        output_ids=sequence.output_ids,
        generator=state.generator,
        allowed=None if guide is None else guide.allowed(),
    )
    if guide is not None:
        guide.push(sampled.id)
    return sampled
