"""How long an answer waits for a reader that takes nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from pocketgem.serve.call import Unread


class Patience:
    """Waits for what is sent, each time for so many seconds at most.

    One timer now and then instead of one for each piece: a stream sends a piece for every token, and hardly any waits.
    One task at a time may wait.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._loop = seconds, asyncio.get_running_loop()
        self._waits: asyncio.Task[object] | None = None
        self._since = 0.0
        self._lost = False
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, sending: Awaitable[None]) -> None:
        """Raises Unread when it is over."""
        task = self._waits = asyncio.current_task()
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + self._seconds, self._look)
        try:
            await sending
        except asyncio.CancelledError:
            if not self._lost or task is None or task.uncancel():  # somebody else wants its end, too
                raise
            raise Unread from None
        finally:
            self._waits = None

    def end(self) -> None:
        """Nothing more is sent."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._waits is None:
            return  # what is sent next winds it up again
        if (due := self._since + self._seconds) > self._loop.time():
            self._timer = self._loop.call_at(due, self._look)
        else:
            self._lost = True
            self._waits.cancel()
