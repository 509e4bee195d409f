"""Server-sent events: frames, comments while nothing happens, and a client that reads slowly or goes away.

Outputs are taken from the engine as they come, whoever reads them. While their client takes what is sent to it, each
goes out at once; else they wait in a box of bounded size. A client that lets the box overflow, or takes nothing for a
while, is cut off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pocketgem.serve.call import Unread, call_of, gone
from pocketgem.serve.dialect import Comment, Out

BOX_BYTES = 96 << 10  # with what the transport and a frame hold, a stalled reader costs less than 256 KiB
WRITE_BYTES = 16 << 10  # frames that wait are sent together up to here
DONE = b"data: [DONE]\n\n"
COMMENT = b": \n\n"
_BREAKS = {ord(one): f"\\u{ord(one):04x}" for one in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"}
_BREAKS |= {ord("\r"): " ", ord("\n"): " "}


def frame(out: Out) -> bytes:
    """One event as it goes over the wire. Its data has no line break."""
    if isinstance(out, Comment):
        return b": " + _line(out.text) + b"\n\n"
    head = b"" if out.event is None else b"event: " + _line(out.event) + b"\n"
    return head + b"data: " + _line(out.body) + b"\n\n"


def _line(text: str) -> bytes:
    """One line. Readers that split text as Python does see a break in more characters than CR and LF."""
    if not text.isprintable():  # which none of these are
        text = text.translate(_BREAKS)
    return text.encode("utf-8", "backslashreplace")


class Box:
    """Frames on their way, at most so many bytes of them. One side puts, the other takes."""

    def __init__(self, most: int = BOX_BYTES) -> None:
        self.most, self.size, self.closed = most, 0, False
        self.idle = False  # whether it is empty and the other side waits
        self._frames: deque[bytes] = deque()
        self._news = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Never waits. Raises Unread."""
        if self.size and self.size + len(data) > self.most:
            raise Unread
        self._frames.append(data)
        self.size += len(data)
        self._tell()

    def close(self) -> None:
        """No more will be put in."""
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        self.idle = False
        self._news.set()

    async def take(self) -> bytes | None:
        """What waits, several frames together; None at the end."""
        while not self._frames:
            if self.closed:
                return None
            self._news.clear()
            self.idle = True
            await self._news.wait()
        taken = [self._frames.popleft()]
        while self._frames and sum(map(len, taken)) + len(self._frames[0]) <= WRITE_BYTES:
            taken.append(self._frames.popleft())
        data = b"".join(taken)
        self.size -= len(data)
        return data


class Pulse:
    """Puts a comment into a box when nothing was sent for so many seconds: one timer, not one for each frame."""

    def __init__(self, box: Box, seconds: float) -> None:
        self._box, self._seconds, self._loop = box, seconds, asyncio.get_running_loop()
        self.beat()
        self._timer = self._loop.call_later(seconds, self._look)

    def beat(self) -> None:
        """Something is sent."""
        self._last = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._last + self._seconds - self._loop.time()
        if left <= 0:
            left = self._seconds
            if not self._box.size:  # else its reader is slow, not its writer
                self._box.put(COMMENT)
        self._timer = self._loop.call_later(left, self._look)


class EventStream(Response):
    """An answer in events. When its client goes, the generator of frames is closed at once."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes], stack: AsyncExitStack, *, comment_seconds: float) -> None:
        """``stack`` is closed when the stream ends, however that is and also if it never began."""
        self.frames, self.stack = frames, stack
        self.comment_seconds = comment_seconds
        self.status_code, self.background = 200, None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        box, call = Box(), call_of(scope)
        pulse, paused = Pulse(box, self.comment_seconds), scope["state"].get("paused", _always)
        write = asyncio.ensure_future(self._write(box, pulse, send))
        fill = asyncio.ensure_future(self._fill(box, pulse, send, paused))
        left = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({fill, write, left}, return_when=asyncio.FIRST_COMPLETED)
            if fill.done() and fill.exception() is None:
                await asyncio.wait({write, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pulse.stop()
            complete = write.done()  # after its last piece every client counts as gone
            for task in (fill, write, left):
                task.cancel()
            results = await asyncio.gather(fill, write, return_exceptions=True)
            await self.stack.aclose()
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise errors[0]
        elif left.done() and not left.cancelled() and not complete:
            call.note["ended"] = "client gone"

    async def _fill(self, box: Box, pulse: Pulse, send: Send, paused: Callable[[], bool]) -> None:
        async with aclosing(self.frames) as frames:
            async for data in frames:
                if box.idle and not paused():  # it goes out now, and no other task has to wake for it
                    pulse.beat()
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                else:
                    box.put(data)
        box.close()

    async def _write(self, box: Box, pulse: Pulse, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (data := await box.take()) is not None:
            pulse.beat()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body"})


def _always() -> bool:
    """A server that does not tell may keep us waiting with any piece."""
    return True
