"""Law 7 in its first form: within its limits, no request is starved, lost or run twice, whatever arrives or leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError

Arrival = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 6), st.booleans())


def sequence(length: int, answer: int) -> Sequence:
    return Sequence(Request("r", tuple(range(length)), SamplingParams(max_tokens=answer)))


@given(
    arrivals=st.lists(Arrival, min_size=1, max_size=25),
    chunk=st.integers(1, 50),
    max_running=st.integers(1, 5),
    max_cached=st.one_of(st.none(), st.integers(60, 150)),
)
def test_every_request_is_served_within_the_limits(
    arrivals: list[tuple[int, int, int, bool]], chunk: int, max_running: int, max_cached: int | None
) -> None:
    scheduler = Scheduler(chunk=chunk, max_running=max_running, max_cached=max_cached)
    todo = [(sequence(length, answer), pause, abort) for length, answer, pause, abort in arrivals]
    everyone = [one for one, _, _ in todo]
    for _ in range(20_000):
        if todo and not todo[0][1]:
            arrived, _, leaves = todo.pop(0)
            scheduler.add(arrived)
            if leaves:
                arrived.finish = FinishReason.ABORT
                scheduler.remove(arrived)
        elif todo:
            todo[0] = (todo[0][0], todo[0][1] - 1, todo[0][2])
        run_step(scheduler)
        if not todo and not scheduler.running and not scheduler.waiting:
            break
    assert all(one.finish is not None for one in everyone)


def run_step(scheduler: Scheduler) -> None:
    """Play the engine: compute what the plan says, append a token where a sequence reached its end."""
    scheduler.admit()
    turns, preempted = scheduler.plan()
    assert len(scheduler.running) <= scheduler.max_running
    assert scheduler.running == [] or turns, "running sequences must advance"
    assert len({id(turn.sequence) for turn in turns}) == len(turns)
    assert not {id(one) for one in preempted} & {id(turn.sequence) for turn in turns}
    prompt_rows = sum(turn.count for turn in turns if turn.count > 1)
    assert prompt_rows <= scheduler.chunk
    cached = sum(one.num_ids for one in scheduler.running)
    assert scheduler.max_cached is None or cached <= scheduler.max_cached or len(scheduler.running) == 1
    for turn in turns:
        advance(scheduler, turn.sequence, turn.count, turn.samples)


def advance(scheduler: Scheduler, one: Sequence, count: int, samples: bool) -> None:
    one.num_computed += count
    assert one.num_computed <= one.num_ids
    assert samples == (one.num_computed == one.num_ids)
    if samples:
        one.output_ids.append(0)
        if len(one.output_ids) == one.request.params.max_tokens:
            one.finish = FinishReason.LENGTH
            scheduler.remove(one)


def test_the_first_to_come_is_the_last_to_be_preempted() -> None:
    scheduler = Scheduler(max_cached=20)
    first, second = sequence(8, 20), sequence(8, 20)
    scheduler.add(first)
    scheduler.add(second)
    for _ in range(8):
        run_step(scheduler)
    assert second in scheduler.waiting
    assert second.num_computed == 0
    assert scheduler.running == [first]


def test_limits_and_prompts_that_cannot_be() -> None:
    with pytest.raises(PromptError, match="chunk is 0"):
        Scheduler(chunk=0)
    with pytest.raises(PromptError, match="max_running is -1"):
        Scheduler(max_running=-1)
    with pytest.raises(PromptError, match="max_cached is 0"):
        Scheduler(max_cached=0)
    with pytest.raises(PromptError, match="over the cache's 10"):
        Scheduler(max_cached=10).add(sequence(11, 1))
