"""submit / step / abort: the whole life of a request on one screen. One thread owns the model."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from pocketgem.engine.decode import State, advance
from pocketgem.engine.prefix import PrefixStore
from pocketgem.engine.request import FinishReason, Request, Sampled, Sequence, checked_context
from pocketgem.engine.sampler import make_generator
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError
from pocketgem.model.cache import Cache
from pocketgem.model.gemma import Gemma


@dataclass(frozen=True)
class Output:
    """What one step did for one request."""

    sequence: Sequence
    sampled: Sampled | None  # None: the prompt is still being read

    @property
    def prefilled(self) -> int:
        """Prompt ids read so far."""
        return min(self.sequence.num_computed, self.sequence.num_prompt)


class Engine:
    """Runs requests against one model, many at a time.

    scheduler: limits and order. context: tokens a sequence may have in all (None: the model's own limit).
    kept: how many finished pasts to keep for prompts that begin with them.
    """

    def __init__(
        self, model: Gemma, scheduler: Scheduler | None = None, *, context: int | None = None, kept: int = 1
    ) -> None:
        self.model = model
        self.context = checked_context(context, model.config)
        self.scheduler = Scheduler() if scheduler is None else scheduler
        self.prefixes: PrefixStore[Cache] = PrefixStore(kept)
        self.states: dict[Sequence, State] = {}

    def check(self, ids: Seq[int]) -> None:
        """Raise PromptError unless ``ids`` are in the vocabulary and leave room for an answer."""
        if not ids:
            raise PromptError("the prompt is empty; give at least one token")
        if len(ids) >= self.context:
            raise PromptError(f"the prompt has {len(ids)} tokens, but the context holds {self.context} with the answer")
        if not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            raise PromptError(f"an id of the prompt is outside the vocabulary of {self.model.config.vocab_size}")

    def submit(self, request: Request) -> Sequence:
        """Queue a request. Raises PromptError for a prompt that cannot be answered."""
        self.check(request.prompt_ids)
        sequence = Sequence(request)
        self.scheduler.add(sequence)
        self.states[sequence] = State(make_generator(request.params.seed))
        return sequence

    def step(self) -> list[Output]:
        """Admit, plan, run, sample, finish: one forward pass. Returns what happened; empty when nothing is left to do.

        If the pass fails, every request in it is ended before the error goes on: no half-written past is read again.
        If no id can be chosen for one request, that one ends, with ``Sequence.error``.
        """
        for sequence in self.scheduler.admit():
            self._start(sequence)
        turns, preempted = self.scheduler.plan()
        for sequence in preempted:
            self.states[sequence].cache = None
        try:
            sampled = advance(self.model, turns, [self.states[turn.sequence] for turn in turns]) if turns else []
        except BaseException:
            for turn in turns:
                self.states[turn.sequence].cache = None
                self._finish(turn.sequence, FinishReason.ABORT)
            raise
        return [self._record(turn.sequence, one) for turn, one in zip(turns, sampled, strict=True)]

    def abort(self, sequence: Sequence, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request now; its cache is free at once. No effect on one that has finished."""
        if sequence.finish is None:
            self._finish(sequence, reason)

    def _start(self, sequence: Sequence) -> None:
        """Give an admitted sequence a cache, continuing a kept past where one fits."""
        reused, cache = self.prefixes.find(sequence.ids)
        sequence.num_computed = sequence.num_reused = reused
        self.states[sequence].cache = self.model.new_cache(self.context) if cache is None else cache

    def _record(self, sequence: Sequence, sampled: Sampled | None) -> Output:
        if sampled is not None:
            sequence.output_ids.append(sampled.id)
            reason = self._end(sequence, sampled.id)
            if reason is not None:
                self._finish(sequence, reason)
        elif sequence.error is not None:
            self._finish(sequence, FinishReason.ABORT)
        return Output(sequence, sampled)

    def _end(self, sequence: Sequence, last: int) -> FinishReason | None:
        params = sequence.request.params
        if last in params.stop_ids:
            return FinishReason.STOP
        full = sequence.num_ids >= self.context
        return FinishReason.LENGTH if full or len(sequence.output_ids) == params.max_tokens else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish = reason
        self.scheduler.remove(sequence)
        cache = self.states.pop(sequence).cache
        if cache is not None and sequence.num_computed:
            self.prefixes.keep(sequence.ids[: sequence.num_computed], cache)
