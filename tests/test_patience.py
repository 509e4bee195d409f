"""A slow reader is waited for, but not for ever, and who reads costs no timer for each piece."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from pocketgem.serve.call import Unread
from pocketgem.serve.patience import Patience
from pocketgem.serve.server import new_loop

SECONDS = 0.5


async def test_what_goes_out_at_once_needs_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), []
    call_at = loop.call_at

    def counted(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **options))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", counted)
    patience = Patience(60)
    for _ in range(100):
        await patience.wait(asyncio.sleep(0))
    patience.end()
    assert [timer.cancelled() for timer in timers] == [True]


async def test_who_takes_nothing_is_given_up() -> None:
    patience, began, task = Patience(SECONDS), asyncio.get_running_loop().time(), asyncio.current_task()
    with pytest.raises(Unread):
        await patience.wait(asyncio.sleep(30))
    assert asyncio.get_running_loop().time() - began < 10
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)  # and the task goes on


async def test_each_piece_has_the_whole_time() -> None:
    patience = Patience(SECONDS)
    for _ in range(15):
        await patience.wait(asyncio.sleep(SECONDS / 10))
    await asyncio.sleep(1.5 * SECONDS)  # nothing is sent meanwhile
    await patience.wait(asyncio.sleep(SECONDS / 10))
    with pytest.raises(Unread):
        await patience.wait(asyncio.sleep(30))


async def test_another_end_of_the_task_stays_one() -> None:
    task = asyncio.ensure_future(Patience(60).wait(asyncio.sleep(30)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_breaks_while_sending_is_told() -> None:
    async def broken() -> None:
        raise OSError("the line is cut")

    with pytest.raises(OSError, match="cut"):
        await Patience(60).wait(broken())


def test_without_uvloop_the_usual_loop_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop()
    assert type(loop).__module__.startswith("asyncio")
    loop.close()
