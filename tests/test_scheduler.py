"""Law 7: within its limits, no request is starved, lost or run twice, whatever arrives or leaves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.engine.queue import FairQueue
from pocketgem.engine.request import FinishReason, Request, SamplingParams, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError

Arrival = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 6), st.booleans())


def sequence(length: int, answer: int, owner: str = "") -> Sequence:
    return Sequence(Request("r", tuple(range(length)), SamplingParams(max_tokens=answer), owner=owner))


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
    reading = [one for one in scheduler.running if one.num_ids - one.num_computed > 1]
    planned = {id(turn.sequence): turn.count for turn in turns}
    beside = len(reading) < len(scheduler.running)
    limit = min(scheduler.chunk, scheduler.chunk_beside) if beside else scheduler.chunk
    assert sum(planned.get(id(one), 0) for one in reading) <= limit
    assert all(planned[id(one)] == 1 for one in scheduler.running if one not in reading), "nobody who writes waits"
    if reading:
        oldest = reading[0]
        assert planned[id(oldest)] >= min(limit / 2, oldest.num_ids - oldest.num_computed), "the oldest always gets on"
    assert scheduler.used == sum(one.num_ids for one in scheduler.running)
    if scheduler.max_cached is not None:
        assert scheduler.free is not None
        assert scheduler.free + scheduler.used == scheduler.max_cached
        assert scheduler.free >= 0 or len(scheduler.running) == 1
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


@given(seed=st.integers(0, 10**6), owners=st.integers(1, 4), cached=st.sampled_from([None, 60, 200]))
@settings(max_examples=25)
def test_hundreds_come_and_go_at_any_moment(seed: int, owners: int, cached: int | None) -> None:
    """Arrivals and aborts in every state; at the end all have finished, and nothing is held."""
    draw = random.Random(seed)
    scheduler = Scheduler(chunk=draw.randint(1, 64), chunk_beside=draw.randint(1, 64), max_running=4, max_cached=cached)
    everyone: list[Sequence] = []
    for _ in range(20_000):
        if len(everyone) < 200 and draw.random() < 0.5:
            owner = str(draw.randrange(owners))
            everyone.append(sequence(draw.randint(1, 50), draw.randint(1, 12), owner))
            scheduler.add(everyone[-1])
        alive = [one for one in everyone if one.finish is None]
        if alive and draw.random() < 0.1:
            leaves = draw.choice(alive)
            leaves.finish = FinishReason.ABORT
            scheduler.remove(leaves)
        run_step(scheduler)
        here = [*scheduler.running, *scheduler.waiting]
        assert len(here) == len({id(one) for one in here}) == sum(one.finish is None for one in everyone)
        assert len(scheduler.waiting) == len(list(scheduler.waiting))
        if len(everyone) == 200 and not here:
            break
    assert all(one.finish is not None for one in everyone)
    assert scheduler.used == 0


def test_owners_take_turns() -> None:
    queue = FairQueue()
    greedy = [sequence(3, 1, "greedy") for _ in range(50)]
    for one in greedy:
        queue.add(one)
    modest = [sequence(3, 1, "modest") for _ in range(3)]
    for one in modest:
        queue.add(one)
    late = sequence(3, 1, "late")
    queue.add(late)
    order = [queue.take() for _ in range(8)]
    assert order == [greedy[0], modest[0], late, greedy[1], modest[1], greedy[2], modest[2], greedy[3]]
    queue.put_back(modest[0])
    assert queue.first is modest[0]
    assert queue.remove(modest[0])
    assert not queue.remove(modest[0])
    assert [queue.take() for _ in range(len(queue))] == greedy[4:]
    assert not queue


def test_a_short_question_does_not_wait_for_a_long_document() -> None:
    scheduler = Scheduler(chunk=64, chunk_beside=16)
    long, short, writer = sequence(5000, 1), sequence(20, 1), sequence(2, 1000)
    for one in (writer, long, short):
        scheduler.add(one)
    run_step(scheduler)
    made = 0
    while short.finish is None:
        run_step(scheduler)
        made += 1
    assert made <= 4  # eight of sixteen rows a step are its
    assert len(writer.output_ids) == made + 1  # who writes never stood still
    assert long.num_computed > 0
