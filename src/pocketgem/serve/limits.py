"""How much at once and how often: places for requests, bytes for bodies, requests a minute."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pocketgem.serve.faults import Fault

KNOWN_CALLERS = 4096  # whose pace is remembered; the longest quiet one is forgotten first


class Places:
    """A number of something that requests hold for a while."""

    def __init__(self, most: int, what: str) -> None:
        self.most, self.what, self.taken = most, what, 0

    @contextmanager
    def held(self, count: int = 1) -> Iterator[None]:
        """Raises Fault 429 at once where there is no room."""
        self.take(count)
        try:
            yield
        finally:
            self.taken -= count

    def take(self, count: int) -> None:
        if self.taken + count > self.most:
            raise Fault(429, f"the server is at its limit of {self.most} {self.what}; try again", retry_after=1)
        self.taken += count


class Pace:
    """A bucket for each caller that fills at so many requests a minute and holds a minute's worth."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (left, when that was)

    def count(self, caller: str) -> None:
        """One request. Raises Fault 429 that says when there is room for the next."""
        now = self.clock()
        left, when = self._buckets.pop(caller, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - when) * self.per_minute / 60)
        granted = left >= 1
        self._buckets[caller] = (left - 1 if granted else left, now)
        if len(self._buckets) > KNOWN_CALLERS:
            self._buckets.popitem(last=False)
        if not granted:
            seconds = int((1 - left) * 60 / self.per_minute) + 1
            raise Fault(429, f"more than {self.per_minute} requests a minute; try again", retry_after=seconds)
