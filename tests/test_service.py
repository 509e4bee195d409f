"""One thread drives, event loops read: nobody waits for nobody, and one request's trouble is its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from pocketgem import LLM, FinishReason, PromptError, RunError, SamplingParams
from pocketgem.engine import decode, sampler
from pocketgem.engine.loop import Engine, Output
from pocketgem.engine.request import Request, Sampled, Sequence
from pocketgem.errors import BusyError, StalledError
from pocketgem.flight import FairLock
from pocketgem.model.gemma import Gemma
from pocketgem.service import MAX_UNREAD, Bell, ServedRun, Service
from tests.cli_models import VOCAB, save_model

PATIENCE = 30.0  # seconds before a test that hangs says so


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(save_model(tmp_path_factory.mktemp("service") / "model"), dtype=torch.float32)


@pytest.fixture
async def service(llm: LLM) -> AsyncIterator[Service]:
    service = Service(llm, max_waiting=200)
    service.start()
    yield service
    await service.close(0)
    assert not llm.engine.states
    assert not llm.flights.runs


def prompt(seed: int, length: int = 12) -> tuple[int, ...]:
    return tuple(torch.randint(290, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def request(seed: int, tokens: int | None = 12, length: int = 12, **sampling: Any) -> Request:
    return Request(f"r{seed}", prompt(seed, length), SamplingParams(max_tokens=tokens, **sampling))


async def ids(service: Service, asked: Request) -> list[int]:
    return [output.sampled.id async for output in service.outputs(service.submit(asked)) if output.sampled is not None]


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[int]]:
    """What requests 0 to 7 answer when nobody else is there."""
    return [list(llm.generate(prompt(seed), params=SamplingParams(max_tokens=12)).ids) for seed in range(8)]


async def test_many_callers_get_what_each_would_get_alone(service: Service, alone: list[list[int]]) -> None:
    assert await asyncio.gather(*(ids(service, request(seed)) for seed in range(8))) == alone
    await until(lambda: service.last_step_age == 0.0)
    assert service.running == service.waiting == 0


async def test_readers_are_woken_when_the_next_pass_has_its_kernels(
    service: Service, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a step at most, not once for each of them, and after all that a pass needs of Python."""
    seen: list[str] = []
    woken = asyncio.get_running_loop().call_soon_threadsafe

    def noted(name: str, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            seen.append(name)
            return method(*args, **options)

        return call

    def wake(call: Any, *args: Any) -> Any:
        if getattr(call, "__func__", None) is Bell._heard:
            seen.append("wake")
        return woken(call, *args)

    ready = Gemma.ready
    monkeypatch.setattr(Gemma, "embed", noted("embed", Gemma.embed))
    monkeypatch.setattr(Gemma, "ready", noted("ready", lambda *a, **options: noted("run", ready(*a, **options))))
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", wake)
    await asyncio.gather(*(ids(service, request(seed)) for seed in range(8)))
    await until(lambda: not service._busy)
    assert seen.count("wake") <= seen.count("run")
    assert all(after == "run" for one, after in itertools.pairwise(seen) if one == "wake")


async def test_leaving_early_ends_the_request_within_a_step(service: Service, llm: LLM) -> None:
    run = service.submit(request(1, None))
    async for output in service.outputs(run):
        if output.sampled is not None:
            break
    await until(lambda: run.sequence.finish is not None)
    made = len(run.sequence.output_ids)
    assert run.sequence.finish is FinishReason.ABORT
    assert made <= 3 + len(run.inbox)  # the step that ran, and those before the loop noticed
    await until(lambda: not llm.engine.states)  # a moment after it is said to be over


async def test_a_cancelled_task_ends_its_request(service: Service, llm: LLM) -> None:
    task = asyncio.create_task(ids(service, request(1, None)))
    await until(lambda: llm.engine.states)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not llm.engine.states)


async def test_outputs_that_nobody_ever_reads_end_their_request(service: Service, llm: LLM) -> None:
    outputs = service.outputs(service.submit(request(1, None)))
    await until(lambda: llm.engine.states)
    del outputs
    gc.collect()
    await until(lambda: not llm.engine.states)


async def test_a_request_is_ended_between_two_chunks_of_its_prompt(service: Service, llm: LLM) -> None:
    run = service.submit(request(1, 5, 30_000))
    await until(lambda: run.sequence.num_computed > 0)
    service.end(run, FinishReason.ABORT)
    assert run.reason is FinishReason.ABORT
    await until(lambda: run.sequence.finish is not None)
    assert run.sequence.num_computed < 30_000
    unread = len(run.inbox)
    assert [output.sampled async for output in service.outputs(run)] == [None] * unread


async def test_an_end_says_why(service: Service) -> None:
    run = service.submit(request(1, None))
    outputs = service.outputs(run)
    await anext(outputs)
    service.end(run)
    service.end(run, FinishReason.ABORT)  # too late to be another reason
    await until(lambda: run.sequence.finish is not None)
    assert run.sequence.finish is FinishReason.STOP


# ---- errors ----------------------------------------------------------------------------------------------------------


async def test_a_bad_prompt_is_refused_at_once(service: Service) -> None:
    for bad, words in ((Request("r", (VOCAB,), SamplingParams()), "vocabulary"), (request(1, 1, 40_000), "context")):
        with pytest.raises(PromptError, match=words):
            service.submit(bad)


async def test_one_request_that_cannot_be_sampled_ends_alone(service: Service, alone: list[list[int]]) -> None:
    bad = request(9, 12, logit_bias={VOCAB: 1.0})
    *good, error = await asyncio.gather(
        *(ids(service, request(seed)) for seed in range(8)), ids(service, bad), return_exceptions=True
    )
    assert good == alone
    assert isinstance(error, PromptError)
    assert "logit_bias" in str(error)


async def test_logits_that_are_not_numbers_end_one_request(
    service: Service, llm: LLM, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decode._choose

    def spoiled(logits: torch.Tensor, best: int | None, sequence: Any, state: Any) -> Any:
        if sequence.request.id == "r9" and len(sequence.output_ids) == 3:
            logits = torch.full_like(logits, float("nan"))
            best = sampler.peaks(logits[None])[0]
        if sequence.request.id == "r10":
            raise KeyError("a fault in somebody's rules")
        return real(logits, best, sequence, state)

    monkeypatch.setattr(decode, "_choose", spoiled)
    *good, spoilt, faulty = await asyncio.gather(
        *(ids(service, request(seed)) for seed in (*range(8), 9, 10)), return_exceptions=True
    )
    assert good == alone
    assert isinstance(spoilt, RunError)
    assert "logits hold nan" in str(spoilt)
    assert isinstance(faulty, RunError)
    assert "KeyError" in str(faulty)


async def test_a_failed_pass_ends_its_requests_and_the_engine_lives_on(
    service: Service, llm: LLM, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a kernel gave up")

    with monkeypatch.context() as broke:
        broke.setattr(Gemma, "forward", broken)
        found = await asyncio.gather(ids(service, request(0)), ids(service, request(1)), return_exceptions=True)
    assert all(isinstance(error, RunError) and "kernel gave up" in str(error) for error in found)
    assert found[0] is not found[1]
    assert await ids(service, request(0)) == alone[0]


async def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(
    service: Service, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as broke:
        broke.setattr(Engine, "step", broken)
        with pytest.raises(RunError, match="engine failed: a bug"):
            await asyncio.wait_for(ids(service, request(0)), PATIENCE)
    assert await ids(service, request(0)) == alone[0]


# ---- limits ----------------------------------------------------------------------------------------------------------


async def test_no_more_wait_than_may(llm: LLM) -> None:
    service = Service(llm, max_waiting=3)
    service.start()
    with llm.flights.lock:  # the engine comes to nothing meanwhile
        runs = [service.submit(request(seed)) for seed in range(3)]
        with pytest.raises(BusyError, match="3 requests wait"):
            service.submit(request(4))
    for run in runs:
        assert len([output async for output in service.outputs(run)]) == 12
    await service.close(None)
    with pytest.raises(BusyError, match="closing"):
        service.submit(request(1))


async def test_a_reader_that_stops_is_ended_and_holds_up_nobody(llm: LLM, alone: list[list[int]]) -> None:
    service = Service(llm, max_unread=20)
    service.start()
    stalled = [service.submit(request(seed, None, logprobs=3)) for seed in (20, 21, 22)]
    read = service.submit(request(23, 100))
    assert await ids(service, request(0)) == alone[0]
    assert len([output async for output in service.outputs(read)]) == 100
    await until(lambda: all(run.sequence.finish for run in stalled))
    for run in stalled:
        assert 5 <= len(run.inbox) <= 6  # each with three alternatives
        with pytest.raises(StalledError, match="unread"):
            assert [output async for output in service.outputs(run)] == []
    await service.close(0)


async def test_closing_lets_requests_finish_or_ends_them(llm: LLM) -> None:
    service = Service(llm)
    service.start()
    run = service.submit(request(1, 30))
    closing = asyncio.create_task(service.close(None))
    assert len([output async for output in service.outputs(run)]) == 30
    await closing
    service = Service(llm)
    service.start()
    run = service.submit(request(1, None))
    await until(lambda: run.sequence.output_ids)
    await service.close(0.01)
    assert run.sequence.finish is FinishReason.ABORT
    assert len([output async for output in service.outputs(run)]) == len(run.sequence.output_ids)


# ---- beside others ---------------------------------------------------------------------------------------------------


async def test_synchronous_calls_go_on_beside_it(service: Service, llm: LLM, alone: list[list[int]]) -> None:
    def sync(seed: int) -> list[int]:
        return list(llm.generate(prompt(seed), params=SamplingParams(max_tokens=12)).ids)

    calls = [ids(service, request(seed)) for seed in range(4)]
    assert await asyncio.gather(*calls, *(asyncio.to_thread(sync, seed) for seed in range(4, 8))) == alone
    assert sync(3) == alone[3]  # on the loop's own thread


async def test_the_event_loop_never_waits_for_a_step(service: Service, llm: LLM) -> None:
    begun, enough = threading.Event(), threading.Event()

    def step() -> None:  # one that takes its time
        with llm.flights.lock:
            begun.set()
            enough.wait(60)

    thread = threading.Thread(target=step)
    thread.start()
    begun.wait()
    run = service.submit(request(1))
    service.end(run)
    held = service.held, service.running, service.waiting, service.last_step_age
    assert thread.is_alive()  # the step is not over: nothing here waited for it
    enough.set()
    thread.join()
    assert held[2] == 1
    await until(lambda: run.sequence.finish is not None)


async def test_what_is_held_is_told(service: Service) -> None:
    run = service.submit(request(1, None))
    await until(lambda: run.sequence.output_ids)
    held = service.held
    assert held.tokens >= 12
    assert held.bytes > 0
    assert service.running == 1
    service.end(run)


async def test_a_stuck_engine_shows_its_age(service: Service, llm: LLM) -> None:
    with llm.flights.lock:
        service.submit(request(1))
        await asyncio.sleep(0.05)
        assert service.last_step_age >= 0.04


def test_a_fair_lock_goes_round() -> None:
    lock, order, go = FairLock(), list[str](), threading.Event()

    def other() -> None:
        go.set()
        with lock:
            order.append("other")

    with lock, lock:  # re-entrant
        thread = threading.Thread(target=other)
        thread.start()
        go.wait()
        time.sleep(0.05)  # it waits for the lock now
    for _ in range(100):
        with lock:
            order.append("driver")
    thread.join()
    assert "other" in order[:2]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "pocketgem-engine"]


def test_a_run_of_a_closed_loop_ends(llm: LLM) -> None:
    service = Service(llm, max_unread=8)
    service.start()

    async def leave() -> ServedRun:
        run = service.submit(request(1, None))
        assert isinstance(run, ServedRun)
        return run

    run = asyncio.run(leave())
    deadline = time.monotonic() + PATIENCE
    while run.sequence.finish is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert run.stalled
    asyncio.run(service.close(0))


# ---- many at once ----------------------------------------------------------------------------------------------------


async def test_a_crowd_that_comes_and_goes(llm: LLM) -> None:
    """Conversations that share beginnings, read slowly or fast, given up at any moment: each as if it were alone."""
    draw, starts = random.Random(5), [prompt(seed, 60) for seed in range(3)]
    service = Service(llm, max_waiting=1000)
    service.start()

    def asked(number: int) -> Request:
        ids = (*starts[number % 3][: draw.randint(1, 60)], *prompt(number, draw.randint(1, 20)))
        params = SamplingParams(max_tokens=draw.randint(0, 20), temperature=number % 2, seed=number, logprobs=0)
        return Request(f"r{number}", ids, params, owner=str(number % 4), cache_salt=str(number % 2))

    requests = [asked(number) for number in range(80)]
    leaves = {number: draw.randint(0, 8) for number in range(80) if draw.random() < 0.4}

    async def call(number: int) -> list[int]:
        await asyncio.sleep(draw.random() * 0.5)
        run, found = service.submit(requests[number]), list[int]()
        outputs = service.outputs(run)
        async for output in outputs:
            found += [] if output.sampled is None else [output.sampled.id]
            if number in leaves and len(found) >= leaves[number]:
                break
            if draw.random() < 0.1:
                await asyncio.sleep(0.02)
        await outputs.aclose()
        return found

    found = await asyncio.gather(*(call(number) for number in range(80)))
    await until(lambda: not llm.engine.states)
    assert (service.running, service.waiting, service.held.tokens, llm.engine.scheduler.used) == (0, 0, 0, 0)
    await service.close(0)
    llm.engine.prefixes.clear()
    for request, ids in zip(requests, found, strict=True):
        alone = llm.flights.start(request)
        assert [one.sampled.id for one in llm.flights.outputs(alone) if one.sampled is not None][: len(ids)] == ids


def test_an_unread_inbox_is_small() -> None:
    """A quarter of a mebibyte at most, whatever is listed beside each token."""
    for alternatives in (0, 1, 20):
        params = SamplingParams(logprobs=alternatives)
        loop = asyncio.new_event_loop()
        run = ServedRun(Sequence(Request("r", (5,), params)), Bell(loop), MAX_UNREAD)
        gc.collect()
        tracemalloc.start()
        for id in range(300, 2000):
            if run.stalled:
                break
            top = tuple((id + i, -1.0 - i / (id + 1)) for i in range(alternatives))
            run.take(Output(run.sequence, Sampled(id, -id / 3, top)))
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.stalled
        assert size < 256 << 10
        loop.close()
