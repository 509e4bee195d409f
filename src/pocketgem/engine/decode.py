"""Autoregressive advance: run a plan's rows through the model, sample where a sequence reached its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from pocketgem.engine.request import Sampled, Sequence
from pocketgem.engine.sampler import sample
from pocketgem.engine.scheduler import Turn
from pocketgem.engine.scoring import score_rows
from pocketgem.errors import PocketgemError, RunError
from pocketgem.model.cache import Cache, Step
from pocketgem.model.gemma import Gemma, Soft
from pocketgem.model.mix import NOBODY, Mix, mix_of


@dataclass
class State:
    """What a request owns beside its integers. The generator outlives a preemption, the cache does not."""

    generator: torch.Generator
    ids: npt.NDArray[np.int32]  # by which the prompt's past is found
    points: list[int]  # positions of the prompt, descending, whose past is to be kept when it is there
    begun: bool = False  # admitted once
    cache: Cache | None = None  # None: not admitted, or preempted
    scored: tuple[Sampled, ...] = ()  # what the last step found out about the prompt's ids, where that was asked for


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
def advance(model: Gemma, turns: Seq[Turn], states: Seq[State], before_run: Callable[[], None]) -> list[Sampled | None]:
    """One forward pass over all turns' rows. Returns the id sampled for each turn, None where a prompt goes on.

    Where choosing one fails it is None too, and ``Sequence.error`` says why: the others' choices stand.
    """
    ids = [id for turn in turns for id in _next_ids(turn)]
    wanted = [_wanted(turn) for turn in turns]
    step = Step.packed(
        [state.cache for state in states if state.cache is not None],  # admission gave every one a cache
        [turn.count for turn in turns],
        logits=wanted,
    )
    if model.config.sees_images_whole and (last := _last(turns, step.positions)) is not None:
        step = replace(step, last=last)
    worn = Worn(mix_of(model), turns, step)
    with _threads_of(model), worn.rows():
        inputs = model.embed(torch.tensor(ids), _soft(turns))
        model.expect(_coming(turns))  # read while this chunk runs
        run = model.ready(inputs, step, adapters=worn.any)
        before_run()
        hidden = run()
        step.commit()
        for turn in turns:
            turn.sequence.num_computed += turn.count
        if any(turn.sequence.request.params.prompt_logprobs is not None for turn in turns):
            hidden = _scored(model, hidden, wanted, turns, states, worn)
        with worn.ends([_samples(turn) for turn in turns]):
            logits = model.logits(hidden) if len(hidden) else hidden
        rows = iter(zip(logits, model.peaks(logits) if len(logits) else (), strict=True))
        sampled = [
            _sample(*next(rows), turn, state) if _samples(turn) else None
            for turn, state in zip(turns, states, strict=True)
        ]
        model.expect([one.id for one in sampled if one is not None])  # their rows come while the text is shown
        return sampled


class Worn:
    """Whose adapter each row of a step has, where the model has adapters: what ``model/mix.py`` is told."""

    def __init__(self, mix: Mix | None, turns: Seq[Turn], step: Step) -> None:
        """Raises RunError for an adapter that is not on the model."""
        self.mix, self.turns = mix, [] if mix is None else [_owners(mix, turn) for turn in turns]
        self.all = [owner for owners in self.turns for owner in owners]
        self.kept = step.logit_rows.tolist() if mix is not None else []

    @property
    def any(self) -> bool:
        """Whether some row is not the base's: such a step is not played from a recording."""
        return any(owner != NOBODY for owner in self.all)

    def rows(self) -> AbstractContextManager[None]:
        """For the pass."""
        return nullcontext() if self.mix is None else self.mix.rows(self.all, self.kept)

    def last(self, at: int, count: int) -> AbstractContextManager[None]:
        """For the logits of the last ``count`` rows of a turn."""
        return nullcontext() if self.mix is None or not count else self.mix.rows(self.turns[at][-count:])

    def ends(self, samples: Seq[bool]) -> AbstractContextManager[None]:
        """For the logits of the last row of each turn that samples."""
        if self.mix is None:
            return nullcontext()
        return self.mix.rows([owners[-1] for owners, wanted in zip(self.turns, samples, strict=True) if wanted])


def _owners(mix: Mix, turn: Turn) -> list[int]:
    request = turn.sequence.request
    if request.adapter is None:
        return [NOBODY] * turn.count
    before = min(turn.count, max(0, request.adapter_from - turn.sequence.num_computed))
    return [NOBODY] * before + [mix.number(request.adapter)] * (turn.count - before)


def _samples(turn: Turn) -> bool:
    return turn.samples and turn.sequence.request.params.max_tokens != 0


def _wanted(turn: Turn) -> int:
    """How many of a turn's last rows want logits."""
    sequence = turn.sequence
    if sequence.request.params.prompt_logprobs is None or sequence.num_scored >= sequence.num_prompt:
        return 1 if _samples(turn) else 0
    end = sequence.num_computed + turn.count
    return max(0, end - max(sequence.num_computed, sequence.num_scored - 1))


def _scored(
    model: Gemma, hidden: torch.Tensor, wanted: Seq[int], turns: Seq[Turn], states: Seq[State], worn: Worn
) -> torch.Tensor:
    """Look at the rows before ids of prompts; returns the rows that are to be sampled."""
    sampled: list[int] = []
    stop = 0
    for at, (count, turn, state) in enumerate(zip(wanted, turns, states, strict=True)):
        start, stop = stop, stop + count
        if _samples(turn):
            sampled.append(stop - 1)
        with worn.last(at, count):
            _score(model, hidden[start:stop], turn.sequence, state)
    return hidden[sampled]


def _score(model: Gemma, rows: torch.Tensor, sequence: Sequence, state: State) -> None:
    """``rows`` are the last ones of the sequence. Where they fail, the others' stand."""
    top, first = sequence.request.params.prompt_logprobs, sequence.num_computed - len(rows) + 1
    targets = sequence.request.prompt_ids[first : sequence.num_computed + 1]
    if top is None or sequence.num_scored >= sequence.num_prompt or not targets:
        return
    try:
        state.scored = tuple(score_rows(model, rows[: len(targets)], targets, top))
        sequence.num_scored = first + len(targets)
    except PocketgemError as error:
        sequence.error = error


def _next_ids(turn: Turn) -> tuple[int, ...]:
    sequence = turn.sequence
    if sequence.output_ids and turn.count == 1:
        return (sequence.output_ids[-1],)  # decode: do not copy the whole history for one id
    return sequence.ids[sequence.num_computed : sequence.num_computed + turn.count]


def _soft(turns: Seq[Turn]) -> Soft | None:
    """The rows of media among those of the step."""
    rows, vectors, row = [], [], 0
    for turn in turns:
        start, stop = turn.sequence.num_computed, turn.sequence.num_computed + turn.count
        for insert in turn.sequence.request.inserts:
            begin, end = max(insert.start, start), min(insert.stop, stop)
            if begin < end:
                rows.append(torch.arange(begin, end) + (row - start))
                vectors.append(cast(torch.Tensor, insert.vectors)[begin - insert.start : end - insert.start])
        row += turn.count
    return Soft(torch.cat(rows), torch.cat(vectors)) if rows else None


def _last(turns: Seq[Turn], positions: torch.Tensor) -> torch.Tensor | None:
    """The last position each row sees where rows of one image see each other; None where there is no image."""
    last, row = None, 0
    for turn in turns:
        start, stop = turn.sequence.num_computed, turn.sequence.num_computed + turn.count
        for insert in turn.sequence.request.inserts:
            if insert.whole and start <= insert.start and insert.stop <= stop:
                last = positions.clone() if last is None else last
                last[row + insert.start - start : row + insert.stop - start] = insert.stop - 1
        row += turn.count
    return last


def _coming(turns: Seq[Turn]) -> list[int]:
    """Prompt ids of about the next step: of every prompt that goes on, as many as it has in this one."""
    ids: list[int] = []
    for turn in turns:
        if not turn.samples:
            start = turn.sequence.num_computed + turn.count
            ids += turn.sequence.request.prompt_ids[start : start + turn.count]
    return ids


def _sample(logits: torch.Tensor, best: int | None, turn: Turn, state: State) -> Sampled | None:
    if turn.sequence.error is not None:
        return None
    try:
        return _choose(logits, best, turn.sequence, state)
    except Exception as error:
        turn.sequence.error = error if isinstance(error, PocketgemError) else failure(turn.sequence, error)
        return None


def failure(sequence: Sequence, error: Exception) -> RunError:
    """What went wrong, for one of those it went wrong for: each raises an error of its own."""
    name = "" if isinstance(error, PocketgemError) else f"{type(error).__name__}: "
    found = RunError(f"{sequence.request.id}: the run failed: {name}{error}")
    found.__cause__ = error
    return found


def _choose(logits: torch.Tensor, best: int | None, sequence: Sequence, state: State) -> Sampled:
    request = sequence.request
    guide = request.guide
    sampled = sample(
        logits,
        request.params,
        prompt_ids=request.prompt_ids,
        output_ids=sequence.output_ids,
        generator=state.generator,
        allowed=None if guide is None else guide.allowed(),
        best=best,
    )
    if guide is not None:
        guide.push(sampled.id)
    return sampled
