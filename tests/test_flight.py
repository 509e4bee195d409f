"""Runs and their readers: when an answer is over, whoever drives."""

from __future__ import annotations

from pocketgem.engine.loop import Output
from pocketgem.engine.request import FinishReason, Request, Sampled, SamplingParams, Sequence
from pocketgem.flight import Run


def output(run: Run, id: int) -> Output:
    return Output(run.sequence, Sampled(id, None, ()))


def read(run: Run) -> Output:
    run._read = run.inbox.popleft()
    return run._read


def test_an_answer_is_over_with_its_last_output_and_not_before() -> None:
    """Another thread drives: it ends the sequence, and only then brings the last output."""
    run = Run(Sequence(Request("r", (5,), SamplingParams())))
    first, last = output(run, 1), output(run, 2)
    run.take(first)
    assert run.finish is None
    run.sequence.finish = FinishReason.LENGTH
    assert read(run) is first
    assert run.finish is None
    run.take(last)
    assert run.finish is None
    assert read(run) is last
    assert run.finish is FinishReason.LENGTH


def test_an_answer_that_was_ended_is_over_once_it_is_read() -> None:
    run = Run(Sequence(Request("r", (5,), SamplingParams())))
    run.take(output(run, 1))
    run.sequence.finish = FinishReason.STOP
    run.ended()
    assert run.finish is None
    read(run)
    assert run.finish is FinishReason.STOP
