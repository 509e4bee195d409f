"""What handlers have in common: the server's parts, and an endpoint that stops when its client is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pocketgem.serve.call import Call, call_of, gone
from pocketgem.serve.log import Log
from pocketgem.serve.media import Media
from pocketgem.serve.metrics import Metrics
from pocketgem.serve.models import Registry
from pocketgem.serve.multipart import Form
from pocketgem.serve.settings import Settings
from pocketgem.serve.sse import EventStream


@dataclass(frozen=True)
class Serving:
    """The parts of one server."""

    settings: Settings
    registry: Registry
    metrics: Metrics
    log: Log
    media: Media = field(default_factory=Media)

    def stream(self, frames: AsyncGenerator[bytes], stack: AsyncExitStack) -> EventStream:
        return EventStream(frames, stack, comment_seconds=self.settings.comment_seconds)


Handler = Callable[[Serving, Call, dict[str, object]], Awaitable[Response]]
FormHandler = Callable[[Serving, Call, Form], Awaitable[Response]]
Reader = Callable[[Serving, Request], Awaitable[Response]]
Body = TypeVar("Body")  # what a handler gets of a call


async def respond(making: Awaitable[Response], scope: Scope, receive: Receive, send: Send) -> None:
    """Send what is being made. It is cancelled when its client closes the connection."""
    work = asyncio.ensure_future(making)
    left = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        if not work.done():
            work.cancel()
            call_of(scope).note["ended"] = "client gone"
            with contextlib.suppress(asyncio.CancelledError, Exception):  # a task tells where it failed once only
                await work
    if not work.cancelled():
        response = work.result()
        await response(scope, receive, send)


class Post(Generic[Body]):
    """An endpoint with a body: JSON, or a form with a file in it, as ``read`` makes it of the call.

    Its work is cancelled when its client closes the connection.
    """

    def __init__(
        self,
        serving: Serving,
        path: str,
        handler: Callable[[Serving, Call, Body], Awaitable[Response]],
        read: Callable[[Call], Awaitable[Body]],
    ) -> None:
        self.serving, self.path, self.handler, self.read = serving, path, handler, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        call.route = self.path
        await respond(self._work(call), scope, receive, send)

    async def _work(self, call: Call) -> Response:
        return await self.handler(self.serving, call, await self.read(call))


class Get:
    """An endpoint without a body."""

    def __init__(self, serving: Serving, path: str, reader: Reader) -> None:
        self.serving, self.path, self.reader = serving, path, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).route = self.path
        response = await self.reader(self.serving, Request(scope, receive))
        await response(scope, receive, send)
