"""One HTTP request on its way through the server: what the guard found out, and what the log will say of it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import cast

from starlette.types import Receive, Scope

from pocketgem.serve.body import read_json
from pocketgem.serve.multipart import Form, read_form


class Unread(Exception):
    """A client did not read what was sent to it."""


@dataclass
class Call:
    """caller: the key's name, or the address. content_type: the body's, as its sender says; only forms need it.
    note: what handlers add to the access log; never a word of a prompt."""

    caller: str
    key: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    began: float = field(default_factory=time.monotonic)
    body: bytes = b""
    content_type: str = "application/json"
    status: int = 0
    route: str = ""
    note: dict[str, object] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Whose things this call may see: its key's. Without keys all is everybody's."""
        return self.key or ""

    async def json(self) -> dict[str, object]:
        """The body as an object. Raises Fault 400."""
        body, self.body = self.body, b""
        return await read_json(body)

    async def form(self) -> Form:
        """The body as a form. Raises Fault 400."""
        body, self.body = self.body, b""
        return await read_form(body, self.content_type)


def call_of(scope: Scope) -> Call:
    return cast(Call, scope["state"]["call"])


async def gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
