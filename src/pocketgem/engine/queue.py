"""Who is let in next: owners take turns, and each one's requests are served in order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from pocketgem.engine.request import Sequence


class FairQueue:
    """Waiting sequences. Those that were let in once and had to go come first, in the order of their return."""

    def __init__(self) -> None:
        self._returned: deque[Sequence] = deque()
        self._owners: OrderedDict[str, deque[Sequence]] = OrderedDict()  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._returned
        for queue in self._owners.values():
            yield from queue

    def add(self, sequence: Sequence) -> None:
        """A new one, behind its owner's others; a new owner's turn comes after all who wait already."""
        self._owners.setdefault(sequence.request.owner, deque()).append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """One that was let in before, ahead of all."""
        self._returned.appendleft(sequence)
        self._count += 1

    @property
    def first(self) -> Sequence:
        """Whose turn it is. There must be one."""
        return self._returned[0] if self._returned else next(iter(self._owners.values()))[0]

    def take(self) -> Sequence:
        """Let the first one in; its owner's next turn comes after everybody else's."""
        self._count -= 1
        if self._returned:
            return self._returned.popleft()
        owner, queue = self._owners.popitem(last=False)
        sequence = queue.popleft()
        if queue:
            self._owners[owner] = queue
        return sequence

    def remove(self, sequence: Sequence) -> bool:
        """Forget one; whether it was there."""
        owner = sequence.request.owner
        queue = self._returned if sequence in self._returned else self._owners.get(owner)
        if queue is None or sequence not in queue:
            return False
        queue.remove(sequence)
        self._count -= 1
        if not self._owners.get(owner, True):
            del self._owners[owner]
        return True
