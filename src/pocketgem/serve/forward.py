"""What goes between the server in front and a replica: a request that the guard let through, and its answer in pieces.

No header but the body's type and no API key is sent on, only the key's name. All of it can be pickled.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pocketgem.serve.faults import Fault


@dataclass(frozen=True)
class Forward:
    """A request. conversation: see ``conversation.py``. only: the one replica that can answer it."""

    method: str
    path: str
    query: bytes
    body: bytes
    id: str
    caller: str
    key: str | None
    conversation: str | None = None
    only: str | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class Begun:
    """The head of an answer, and whose it is."""

    replica: str
    status: int
    headers: list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Broken:
    """What went wrong, as its client may know it; where, for the log: ``error`` is empty for the client's own fault."""

    status: int
    message: str
    field: str | None
    code: str | None
    headers: dict[str, str]
    error: str = ""
    at: tuple[str, ...] = ()

    @property
    def fault(self) -> Fault:
        return Fault(self.status, self.message, field=self.field, code=self.code, headers=self.headers)


@dataclass(frozen=True)
class Ended:
    """The end of an answer, and what the log says of it."""

    note: dict[str, object]


Sent = Begun | bytes | Broken | Ended


class Lost(Exception):
    """A replica is gone, or cannot be reached, before it had answered to the end."""


@dataclass(frozen=True)
class State:
    """How a replica is. meters: its counters as Prometheus reads them."""

    replica: str
    stuck: bool
    meters: bytes


class Replicas(Protocol):
    """Several workers behind one door."""

    def answer(self, forward: Forward) -> AsyncGenerator[Sent]:
        """Pieces of an answer, the last of which is Ended or Broken. Raises Lost. Closing it ends the request."""

    async def states(self) -> list[State]:
        """Of all that answer within a moment."""
