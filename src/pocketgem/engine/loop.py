"""submit / step / abort: the whole life of a request on one screen. One thread owns the model."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from pocketgem.engine.decode import State, advance, failure
from pocketgem.engine.inserts import begun, past_ids
from pocketgem.engine.past_folder import PastFolder
from pocketgem.engine.points import keep_points
from pocketgem.engine.prefix import WHOLE, Hit, PrefixStore, Scope
from pocketgem.engine.prefix_tree import Ids
from pocketgem.engine.reach import Slide
from pocketgem.engine.request import FinishReason, Request, Sampled, Sequence, checked_context
from pocketgem.engine.sampler import make_generator
from pocketgem.engine.scheduler import Scheduler, Turn
from pocketgem.errors import PromptError
from pocketgem.memory.kv_rows import kv_costs
from pocketgem.model.gemma import Gemma
from pocketgem.model.past import Past, Rows, Stored, restore

KEPT_BYTES = 512 << 20  # for kept pasts where nobody says, or one long past where that is more
LONG_PAST = 8192  # tokens
WORTH_LOADING = 64  # tokens more than memory has; fewer are read again while a file is checked
MOST_ENDS = 5  # to go on from in a past on disk: the end of its first turn, and the last ones
DAMAGED = "the file that kept it is damaged"


def _nothing() -> None:
    """Nobody is to be told."""


@dataclass(frozen=True)
class Output:
    """What one step did for one request."""

    sequence: Sequence
    sampled: Sampled | None  # None: the prompt is still being read, or nothing was to be written
    prompt: tuple[
        Sampled, ...
    ] = ()  # the next ids of the prompt, from the second on, where their probability was asked

    @property
    def prefilled(self) -> int:
        """Prompt ids read so far."""
        return min(self.sequence.num_computed, self.sequence.num_prompt)


class Engine:
    """Runs requests against one model, many at a time.

    scheduler: limits and order. context: tokens a sequence may have in all (None: the model's own limit).
    kept: bytes for pasts that are kept for prompts that begin with them; 0: none. turn_ids: ids that open a turn of a
    chat: where kept pasts are likely to be of use. folder: where pasts are kept on disk, too.
    """

    def __init__(
        self,
        model: Gemma,
        scheduler: Scheduler | None = None,
        *,
        context: int | None = None,
        kept: int | None = None,
        turn_ids: frozenset[int] = frozenset(),
        folder: PastFolder | None = None,
    ) -> None:
        self.model = model
        self.context = checked_context(context, model.config)
        self.scheduler = Scheduler() if scheduler is None else scheduler
        self.turn_ids, self.folder = turn_ids, folder
        usual = self._usual_bytes() if kept is None else kept
        self.prefixes: PrefixStore[Rows] = PrefixStore(usual, Slide.of(model.config))
        self.states: dict[Sequence, State] = {}

    def check(self, ids: Seq[int]) -> None:
        """Raise PromptError unless ``ids`` are in the vocabulary and leave room for an answer. Any thread may ask."""
        if not ids:
            raise PromptError("the prompt is empty; give at least one token")
        if len(ids) >= self.context:
            raise PromptError(f"the prompt has {len(ids)} tokens, but the context holds {self.context} with the answer")
        if not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            raise PromptError(f"an id of the prompt is outside the vocabulary of {self.model.config.vocab_size}")
        self.scheduler.check(len(ids))

    def submit(self, request: Request) -> Sequence:
        """Queue a request. Raises PromptError for a prompt that cannot be answered."""
        self.check(request.prompt_ids)
        sequence = Sequence(request)
        self.enter(sequence)
        return sequence

    def enter(self, sequence: Sequence) -> None:
        """Queue the sequence of a request that was checked."""
        self.scheduler.add(sequence)
        request = sequence.request
        ids = past_ids(request.prompt_ids, request.inserts)
        self.states[sequence] = State(make_generator(request.params.seed), ids, keep_points(request, self.turn_ids))

    def step(self, before_run: Callable[[], None] = _nothing) -> list[Output]:
        """Admit, plan, run, sample, finish: one forward pass. Returns what happened; empty when nothing is left to do.

        ``before_run`` is called when the pass is prepared and its kernels are next, unless there is no pass.

        A request that no id can be chosen for ends with ``Sequence.error``, and the others go on. If the pass itself
        fails, every request in it ends so: no half-written past is read again.
        """
        for sequence in self.scheduler.admit():
            self._start(sequence)
        turns, preempted = self.scheduler.plan()
        for sequence in preempted:
            self._leave(sequence)
        try:
            states = [self.states[turn.sequence] for turn in turns]
            sampled = advance(self.model, turns, states, before_run) if turns else []
        except Exception as error:
            return self._fail(turns, error)
        except BaseException:  # an interrupt
            self._drop(turns)
            raise
        return [self._record(turn.sequence, one) for turn, one in zip(turns, sampled, strict=True)]

    def abort(self, sequence: Sequence, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request now; its cache is free at once. No effect on one that has finished."""
        if sequence.finish is None:
            self._finish(sequence, reason)

    def _start(self, sequence: Sequence) -> None:
        """Give an admitted sequence a cache, continuing a kept past where one fits."""
        state = self.states[sequence]
        returns, state.begun = state.begun, True
        state.cache = self.model.new_cache(self.context)
        if sequence.request.params.prompt_logprobs is not None and sequence.num_scored < sequence.num_prompt:
            sequence.reuse_reason = WHOLE
            return
        known = _known(sequence, state, sequence.num_ids)
        hit = self._longest(sequence.request, known)
        if (whole := begun(sequence.request.inserts, hit.position)) < hit.position:
            hit = self._longest(sequence.request, known[: whole + 1])
        if hit.position:
            restore(state.cache, hit.rows, hit.slid, hit.position)
        sequence.num_computed = hit.position
        if not returns:  # what a preempted sequence finds again is its own
            sequence.num_reused, sequence.reuse_reason = hit.position, hit.reason
        while state.points and state.points[-1] <= hit.position:
            state.points.pop()

    def _longest(self, request: Request, ids: Ids) -> Hit[Rows]:
        """The longest kept past: the adapter's, or the base's of what is before it."""
        hit = self._find(_scope(request, len(ids)), ids)
        if request.adapter is None or request.adapter_from <= hit.position:
            return hit
        base = self._find(_scope(request, 0), ids[: request.adapter_from + 1])
        return base if base.position > hit.position else hit

    def _find(self, scope: Scope, ids: Ids) -> Hit[Rows]:
        """The longest kept past; one that lies on disk comes to memory first."""
        hit = self.prefixes.find(scope, ids)
        reached, entry = (0, None) if self.folder is None else self.folder.reach(scope, ids)
        if self.folder is None or entry is None or reached < hit.position + WORTH_LOADING:
            return hit
        stored = self.folder.load(entry)
        if stored is None:
            return replace(hit, reason=DAMAGED)
        for end in entry.about.ends:
            self._keep(scope, entry.about.ids[:end], stored)
        return self.prefixes.find(scope, ids)

    def _save(self, sequence: Sequence, state: State) -> None:
        """Have what is kept of a finished sequence written to disk."""
        if self.folder is not None and sequence.error is None:
            known = _known(sequence, state, sequence.num_ids)
            scope = _scope(sequence.request, len(known))
            kept = self.prefixes.kept(scope, known)
            ends = [*kept.ends[:1], *kept.ends[1:][-(MOST_ENDS - 1) :]]
            self.folder.save(scope, replace(kept, ends=ends))

    def _keep_points(self, sequence: Sequence, state: State) -> None:
        """Keep the past at the positions that the last step has passed: what they see is still there."""
        while state.points and state.points[-1] <= sequence.num_computed and state.cache is not None:
            ids = state.ids[: state.points.pop()]
            self._keep(_scope(sequence.request, len(ids)), ids, Past(state.cache))

    def _leave(self, sequence: Sequence) -> None:
        """Give a sequence's cache up, and keep what it knew where there is room."""
        state = self.states[sequence]
        cache, state.cache = state.cache, None
        if cache is not None and cache.length:
            ids = _known(sequence, state, cache.length)
            self._keep(_scope(sequence.request, len(ids)), ids, Past(cache), modest=True)

    def _keep(self, scope: Scope, ids: Ids, past: Past | Stored, *, modest: bool = False) -> None:
        """Keep a past if there is room: also where the system has less memory than was thought."""
        with suppress(MemoryError, RuntimeError):
            self.prefixes.keep(scope, ids, past, modest=modest)

    def _usual_bytes(self) -> int:
        dtype = self.model.cache_dtype or self.model.dtype
        costs = kv_costs(self.model.config, min(self.context, LONG_PAST), self.scheduler.chunk, dtype.itemsize)
        return max(KEPT_BYTES, sum(cost.held for cost in costs))

    def _fail(self, turns: Seq[Turn], error: Exception) -> list[Output]:
        for turn in turns:
            turn.sequence.error = failure(turn.sequence, error)
        self._drop(turns)
        return [Output(turn.sequence, None) for turn in turns]

    def _drop(self, turns: Seq[Turn]) -> None:
        """End all of a pass that was not finished, and their pasts with them."""
        for turn in turns:
            self.states[turn.sequence].cache = None
            self._finish(turn.sequence, FinishReason.ABORT)

    def _record(self, sequence: Sequence, sampled: Sampled | None) -> Output:
        state = self.states[sequence]
        scored, state.scored = state.scored, ()
        if state.points:
            self._keep_points(sequence, state)
        if sampled is not None:
            sequence.output_ids.append(sampled.id)
            reason = self._end(sequence, sampled.id)
            if reason is not None:
                self._finish(sequence, reason)
        elif sequence.error is not None:
            self._finish(sequence, FinishReason.ABORT)
        elif sequence.request.params.max_tokens == 0 and sequence.num_computed == sequence.num_prompt:
            self._finish(sequence, FinishReason.LENGTH)
        return Output(sequence, sampled, scored)

    def _end(self, sequence: Sequence, last: int) -> FinishReason | None:
        params = sequence.request.params
        if last in params.stop_ids:
            return FinishReason.STOP
        full = sequence.num_ids >= self.context
        return FinishReason.LENGTH if full or len(sequence.output_ids) == params.max_tokens else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish = reason
        self.scheduler.remove(sequence)
        self._leave(sequence)
        self._save(sequence, self.states.pop(sequence))


def _scope(request: Request, count: int) -> Scope:
    """Whose the past of the first ``count`` ids is. An adapter that acts from some position on has pasts of its own for
    each: the same ids with another beginning are another past."""
    adapter, start = request.adapter, request.adapter_from
    if adapter is None or (start and count <= start):
        return Scope(None, request.cache_salt)
    return Scope(f"{adapter}@{start}" if start else adapter, request.cache_salt)


def _known(sequence: Sequence, state: State, count: int) -> Ids:
    """The first ``count`` ids of prompt and output."""
    if count <= len(state.ids):
        return state.ids[:count]
    return np.concatenate((state.ids, np.array(sequence.output_ids[: count - len(state.ids)], np.int32)))
