"""One layer in front of every route: nothing behind it sees a request that it did not let through.

In this order: the Host header, the Origin, the key, the form of the body, how often, how large, how many at once. What
comes out again passes here as well: headers that keep browsers careful, errors in the form of their API, the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketgem.serve.call import Call, Unread
from pocketgem.serve.doors import Doors
from pocketgem.serve.faults import Fault, body_of, fault_of
from pocketgem.serve.head import Head
from pocketgem.serve.keys import given_keys
from pocketgem.serve.limits import Pace, Places
from pocketgem.serve.multipart import FORM
from pocketgem.serve.patience import Patience
from pocketgem.serve.settings import Settings

OPEN_PATHS = frozenset({"/health", "/livez"})  # what answers without a key: that the server lives, and no more
FORM_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})  # that take a form, and no JSON
MAX_TARGET = 8 << 10  # bytes of path and query
MAX_HEADERS = 100
MAX_HEAD = 32 << 10  # bytes of all headers
PIECE = 32 << 10  # bytes of an answer that are handed on at a time
DRAIN_SECONDS = 2.0  # a refused upload is read on for so long, so that its sender gets to see the answer
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})
WITH_BODY = frozenset({"POST"})
CLIENT_GONE = 499  # in the log only
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]


class Gone(Exception):
    """The client closed its connection."""


class Guard:
    """An ASGI application around another. ``tell(call, error)`` is told of every request once it is over."""

    def __init__(self, app: ASGIApp, settings: Settings, tell: Callable[[Call, Scope, Exception | None], None]) -> None:
        self.app, self.settings, self.tell = app, settings, tell
        self.doors = Doors(settings)
        self.places = Places(settings.max_requests, "requests")
        self.bodies = Places(settings.max_bodies, "bytes of requests")
        per_minute = settings.requests_per_minute
        self.pace = None if per_minute is None else Pace(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets here: the server closes the connection
        head = Head(scope)
        call = Call(caller=head.address)
        scope.setdefault("state", {})["call"] = call
        answer = Answer(send, call, self._cors(head), self.settings.stall_seconds, unread=head.method in WITH_BODY)
        failed: Exception | None = None
        try:
            await self._pass(scope, receive, head, call, answer)
        except Gone:
            call.status = CLIENT_GONE
        except Unread:
            call.note["ended"] = "client did not read"
            _cut(scope)
            await asyncio.sleep(0)  # until the connection knows
        except Exception as error:
            failed = error
            await answer.fault(fault_of(error), scope, receive)
        finally:
            answer.patience.end()
            self.tell(call, scope, failed)

    async def _pass(self, scope: Scope, receive: Receive, head: Head, call: Call, answer: Answer) -> None:
        self._check_doors(head)
        if head.method == "OPTIONS" and answer.cors:
            await answer.empty(204)
            return
        self._check_key(head, call)
        self._check_form(head)
        if self.pace is not None and head.path not in OPEN_PATHS:
            self.pace.count(call.caller)
        if head.method not in WITH_BODY:
            await self.app(scope, receive, answer)
            return
        with self.bodies.held(head.length or 0):
            call.body = await self._body(receive, head)
        call.content_type = head.one(b"content-type") or ""
        answer.unread = False
        with self.places.held():
            await self.app(scope, receive, answer)

    def _check_doors(self, head: Head) -> None:
        if len(head.target) > MAX_TARGET:
            raise Fault(414, f"the address is longer than {MAX_TARGET} bytes")
        if len(head.headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in head.headers) > MAX_HEAD:
            raise Fault(431, f"more than {MAX_HEADERS} headers, or {MAX_HEAD} bytes of them")
        if not self.doors.knows_host(head.host):
            raise Fault(403, "the Host header does not name this server; start it with --allow-host to add a name")
        origin = head.origin
        if origin is not None:
            if not self.doors.is_own(origin, head.host) and not self.doors.allows(origin):
                raise Fault(403, "pages of another origin may not use this server; see --allow-origin")
        elif head.one(b"sec-fetch-site") in ("cross-site", "same-site") and not head.is_visit:
            raise Fault(403, "pages of another site may not use this server")

    def _check_key(self, head: Head, call: Call) -> None:
        keys = self.settings.keys
        if not keys:
            return
        for given in given_keys(head.headers):
            call.key = keys.name_of(given) or call.key
        if call.key is not None:
            call.caller = f"key {call.key}"
        elif head.path not in OPEN_PATHS:
            raise Fault(
                401,
                "a valid API key is needed, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": _challenge(head.path)},
            )

    def _check_form(self, head: Head) -> None:
        if head.method not in METHODS:
            raise Fault(405, f"the method {head.method[:20]!r} is not known here", headers={"allow": "GET, POST"})
        if head.method not in WITH_BODY:
            return
        kind, _, rest = (head.one(b"content-type") or "").partition(";")
        if head.path in FORM_PATHS:
            # A page of another site can send this without asking first; its Origin has given it away by now.
            if kind.strip().lower() != FORM:
                raise Fault(415, f"the body must be a form with a file, with the header 'Content-Type: {FORM}'")
        elif kind.strip().lower() != "application/json" or not _is_utf8(rest):
            raise Fault(415, "the body must be JSON, with the header 'Content-Type: application/json'")
        if (head.one(b"content-encoding") or "identity").lower() != "identity":
            raise Fault(415, "a compressed body is not taken; send it as it is")
        if head.length is not None and head.length > self.settings.max_body:
            raise self._too_large()

    async def _body(self, receive: Receive, head: Head) -> bytes:
        """The whole body. Raises Fault 413 or 408, and Gone."""
        pieces: list[bytes] = []
        size = held = 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    piece: bytes = message.get("body", b"")
                    size += len(piece)
                    if size > self.settings.max_body:
                        raise self._too_large()
                    if head.length is None:  # chunked: nobody knew how much would come
                        self.bodies.take(len(piece))
                        held += len(piece)
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise Fault(408, f"the body did not arrive within {seconds:g} seconds", code="timeout") from None
        finally:
            self.bodies.taken -= held

    def _too_large(self) -> Fault:
        return Fault(413, f"the body is larger than {self.settings.max_body} bytes", code="request_too_large")

    def _cors(self, head: Head) -> list[tuple[bytes, bytes]]:
        """Headers for a page of another origin, where it was let in by name."""
        origin = head.origin
        if origin is None or not self.doors.allows(origin) or not self.doors.knows_host(head.host):
            return []
        headers = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
        if head.method == "OPTIONS":
            wanted = head.one(b"access-control-request-headers") or ""
            headers += [
                (b"access-control-allow-methods", b"GET, POST, DELETE"),
                (b"access-control-allow-headers", wanted.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        return headers


class Answer:
    """What is sent back, with the headers that every answer has. Sending raises Unread where nobody reads."""

    def __init__(self, send: Send, call: Call, cors: list[tuple[bytes, bytes]], stall: float, *, unread: bool) -> None:
        self.send, self.call, self.cors, self.unread = send, call, cors, unread
        self.patience = Patience(stall)
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.call.status = True, message["status"]
            given = {name.lower() for name, _ in message.get("headers", ())}
            ours = [*HEADERS, (b"x-request-id", self.call.id.encode()), *self.cors]
            headers = [*message.get("headers", ()), *(pair for pair in ours if pair[0] not in given)]
            message = {**message, "headers": headers}
        rest = message.get("body", b"")
        while len(rest) > PIECE:
            await self.patience.wait(self.send({**message, "body": rest[:PIECE], "more_body": True}))
            rest = rest[PIECE:]
        await self.patience.wait(self.send({**message, "body": rest} if "body" in message else message))

    async def empty(self, status: int) -> None:
        await self({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await self({"type": "http.response.body"})

    async def fault(self, fault: Fault, scope: Scope, receive: Receive) -> None:
        """An error, unless the answer has begun. What is left of a body is read for a moment before the line is cut."""
        if self.started:
            return
        body = json.dumps(body_of(fault, scope["path"], self.call.id)).encode()
        named = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fault.headers.items()]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *named]
        if self.unread:
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": fault.status, "headers": headers})
        await self({"type": "http.response.body", "body": body, "more_body": True})
        if self.unread and not any(name == b"expect" for name, _ in scope["headers"]):
            await _drain(receive)
        await self({"type": "http.response.body"})


def _cut(scope: Scope) -> None:
    """Drop the connection, what waits in it included."""
    abort = cast("Callable[[], None] | None", scope["state"].get("abort"))
    if abort is not None:
        abort()


async def _drain(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


def _challenge(path: str) -> str:
    """For the page a browser asks its person, for programs a word."""
    return 'Basic realm="pocketgem: any name, and an API key as the password"' if path == "/" else "Bearer"


def _is_utf8(parameters: str) -> bool:
    name, _, value = parameters.strip().lower().partition("=")
    return not name or name != "charset" or value.strip('" ') in ("utf-8", "utf8")
