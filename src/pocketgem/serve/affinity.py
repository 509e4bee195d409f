"""Which of several replicas a conversation goes to: the one that has its past, unless that one is too busy.

A new conversation goes where rendezvous hashing puts it [Thaler and Ravishankar 1998]: each replica has a score for
each conversation and the highest wins, so that a replica that is lost moves only what it had. The choice is remembered.
No replica takes much more than its share [Mirrokni, Thorup and Zadimoghaddam 2018]: beyond a bound the conversation
goes to the least busy one and stays there. Names and integers only; for one thread.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection

MAX_REMEMBERED = 1 << 16  # conversations; the one that said nothing for longest is forgotten first
SLACK = 2  # requests that a replica may have above its share for a conversation whose past it has


class Affinity:
    """Where conversations live, and how many requests each replica has."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED, slack: int = SLACK) -> None:
        self.max_remembered, self.slack = max_remembered, slack
        self.homes: OrderedDict[str, str] = OrderedDict()  # conversation -> replica
        self.running: dict[str, str] = {}  # request -> replica

    def order(self, conversation: str | None, replicas: Collection[str]) -> list[str]:
        """The replicas, the one to take first. None for a request without a past: the least busy one."""
        loads = Counter(self.running.values())
        turn = conversation or f"request {len(self.running)}"  # equals: not always the same one
        ranked = sorted(replicas, key=lambda replica: score(turn, replica), reverse=True)
        by_load = sorted(ranked, key=lambda replica: loads[replica])
        if conversation is None or not ranked:
            return by_load
        known = self.homes.get(conversation)
        home = known if known in ranked else ranked[0]
        spare = self.slack if known in ranked else 0
        if loads[home] < share(sum(loads[one] for one in ranked), len(ranked)) + spare:
            return [home, *(one for one in by_load if one != home)]
        return by_load

    def began(self, request: str, conversation: str | None, replica: str) -> None:
        """A replica took a request, and with it the conversation."""
        self.running[request] = replica
        if conversation is not None:
            self.homes[conversation] = replica
            self.homes.move_to_end(conversation)
            if len(self.homes) > self.max_remembered:
                self.homes.popitem(last=False)

    def ended(self, request: str) -> None:
        """However it ended, also one that no replica took."""
        self.running.pop(request, None)


def share(running: int, replicas: int) -> int:
    """Most requests that one replica may have with one more than are running: the mean and a quarter, rounded up."""
    return -(-5 * (running + 1) // (4 * replicas))


def score(conversation: str, replica: str) -> bytes:
    """A number as bytes, the same on every machine and at every start."""
    return hashlib.blake2b(f"{replica}\0{conversation}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
