"""Whether a text goes round in circles: the same passage again and again, whatever stands between.

One look at a dictionary for each id, so that a long thought costs what its length says. What is older than ``MEMORY``
ids is forgotten: a bound on memory, and on what counts as a circle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

PASSAGE = 32  # ids: about two dozen words, more than an idiom or the frame of a table's row
TIMES = 6  # a draft that is rewritten, a list in which every line begins alike, are legitimate
MEMORY = 16_384  # ids


class LoopDetector:
    """Feed it ids; ``push`` says whether the last ``PASSAGE`` of them now stand there for the ``TIMES``-th time.

    Passages that overlap count once, so 192 equal ids in a row are a circle and 191 are not.
    """

    def __init__(self, passage: int = PASSAGE, times: int = TIMES, memory: int = MEMORY) -> None:
        self._times, self._memory = times, memory
        self._last: deque[int] = deque(maxlen=passage)
        self._seen: dict[Sequence[int], tuple[int, int]] = {}  # passage -> (how often, where it last ended)
        self._order: deque[tuple[int, Sequence[int]]] = deque()  # (where it ended, passage), oldest first
        self._count = 0

    def push(self, id: int) -> bool:
        """Whether a circle is closed by this id."""
        self._last.append(id)
        self._count += 1
        self._forget()
        if len(self._last) < (self._last.maxlen or 0):
            return False
        key = _packed(self._last)
        often, end = self._seen.get(key, (0, -self._memory))
        if self._count - end < len(self._last):
            return False  # it overlaps the one that was counted
        self._seen[key] = (often + 1, self._count)
        self._order.append((self._count, key))
        return often + 1 >= self._times

    def _forget(self) -> None:
        while self._order and self._order[0][0] <= self._count - self._memory:
            end, key = self._order.popleft()
            if self._seen[key][1] == end:
                del self._seen[key]


def _packed(ids: deque[int]) -> Sequence[int]:
    """A passage as a key: bytes hash faster than a tuple and take a fifth of its memory."""
    return b"".join(id.to_bytes(4, "little") for id in ids)
