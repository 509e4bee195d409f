"""The server in front of replicas: the same guard and the same routes, answered by one of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pocketgem.serve.app import routes
from pocketgem.serve.call import Call, call_of
from pocketgem.serve.conversation import conversation_of
from pocketgem.serve.dialect import Sent as Event
from pocketgem.serve.faults import ANTHROPIC, Fault, body_of
from pocketgem.serve.forward import Begun, Broken, Ended, Forward, Lost, Replicas, Sent
from pocketgem.serve.guard import FORM_PATHS
from pocketgem.serve.merged import merged
from pocketgem.serve.metrics import CONTENT_TYPE
from pocketgem.serve.replies import json_reply
from pocketgem.serve.sse import frame
from pocketgem.serve.wiring import Get, Reader, Serving, respond

RESPONSES = "/v1/responses"
LOCAL = frozenset({"/", "/page/{name:path}", "/livez", "/version"})  # for these no model is needed
TRIES = 3  # replicas that are tried for a request of which nothing has been answered yet
MAX_REMEMBERED = 1 << 16
LOST = "the replica that had this request was lost; send it again"


class Relay:
    """Hands requests to replicas, and remembers who keeps which response."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.keepers: OrderedDict[str, str] = OrderedDict()  # id of a response -> replica

    def table(self, serving: Serving) -> list[Route]:
        """The routes of the server, for ``App``."""
        own: dict[str, Reader] = {"/health": self.health, "/metrics": self.metrics}
        return [self._row(serving, route, own.get(route.path)) for route in routes(serving)]

    def _row(self, serving: Serving, route: Route, own: Reader | None) -> Route:
        if route.path in LOCAL:
            return route
        endpoint = Relayed(self, serving, route.path) if own is None else Get(serving, route.path, own)
        return Route(route.path, endpoint, methods=sorted(route.methods or ()))

    async def health(self, serving: Serving, request: Request) -> Response:
        """Ready for work: one replica at least is."""
        states = await self.replicas.states()
        well = sum(not state.stuck for state in states)
        if well:
            return json_reply({"status": "ok"})
        return json_reply({"status": "stuck" if states else "no replica"}, 503, {"retry-after": "10"})

    async def metrics(self, serving: Serving, request: Request) -> Response:
        """This server's counters, and those of replicas with their names."""
        meters = {state.replica: state.meters for state in await self.replicas.states()}
        return Response(merged(serving.metrics.text(), meters), media_type=CONTENT_TYPE)

    def keeper(self, id: object) -> str | None:
        """The replica that has a response, as far as is known."""
        return self.keepers.get(id) if isinstance(id, str) else None

    def remember(self, id: str, replica: str) -> None:
        self.keepers[id] = replica
        if len(self.keepers) > MAX_REMEMBERED:
            self.keepers.popitem(last=False)


class Relayed:
    """One route's endpoint."""

    def __init__(self, relay: Relay, serving: Serving, path: str) -> None:
        self.relay, self.serving, self.path = relay, serving, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        call.route = self.path
        await respond(self._answer(scope, call), scope, receive, send)

    async def _answer(self, scope: Scope, call: Call) -> Response:
        forward = await self._forward(scope, call)
        async with AsyncExitStack() as stack:
            begun, pieces = await self._begin(forward, call, stack)
            call.note["replica"] = begun.replica
            if self.path == RESPONSES:
                self.relay.remember(f"resp_{call.id}", begun.replica)
            if any(name == b"content-type" and b"event-stream" in value for name, value in begun.headers):
                return self.serving.stream(self._frames(pieces, call, scope["path"]), stack.pop_all())
            response = Response(b"".join([piece async for piece in self._body(pieces, call)]), begun.status)
            response.raw_headers = begun.headers
            return response

    async def _forward(self, scope: Scope, call: Call) -> Forward:
        """The request for a replica. Raises Fault 400."""
        body = call.body
        is_json = scope["method"] == "POST" and self.path not in FORM_PATHS
        data = await call.json() if is_json else {}
        id = data.get("previous_response_id") if self.path == RESPONSES else scope.get("path_params", {}).get("id")
        return Forward(
            scope["method"], scope["path"], scope.get("query_string", b""), body, call.id, call.caller, call.key,
            conversation_of(self.path, call.owner, data), only=self.relay.keeper(id),
            content_type=call.content_type,
        )  # fmt: skip

    async def _begin(self, forward: Forward, call: Call, stack: AsyncExitStack) -> tuple[Begun, AsyncGenerator[Sent]]:
        """The head of an answer, and what comes after it. Until it is there a lost replica costs time only."""
        for _ in range(TRIES):
            pieces = self.relay.replicas.answer(forward)
            try:
                first = await anext(pieces)
            except Lost:
                await pieces.aclose()
                continue
            except BaseException:
                await pieces.aclose()
                raise
            stack.push_async_callback(pieces.aclose)
            if isinstance(first, Begun):
                return first, pieces
            if isinstance(first, Broken):
                raise self._told(first, call)
            break
        raise Fault(503, LOST, retry_after=1)

    async def _body(self, pieces: AsyncGenerator[Sent], call: Call) -> AsyncGenerator[bytes]:
        """Bytes up to the end. Raises Fault."""
        try:
            async for sent in pieces:
                if isinstance(sent, bytes):
                    yield sent
                elif isinstance(sent, Broken):
                    raise self._told(sent, call)
                elif isinstance(sent, Ended):
                    call.note.update(sent.note)
                    return
        except Lost:
            call.note["failed"] = Lost.__name__
            raise Fault(503, LOST, retry_after=1) from None
        raise Fault(503, LOST, retry_after=1)

    async def _frames(self, pieces: AsyncGenerator[Sent], call: Call, path: str) -> AsyncGenerator[bytes]:
        """The same of a stream, whose errors are its last event."""
        async with aclosing(self._body(pieces, call)) as body:
            try:
                async for piece in body:
                    yield piece
            except Fault as fault:
                name = "error" if path.startswith(ANTHROPIC) else None
                yield frame(Event(name, body_of(fault, path, call.id)))

    def _told(self, broken: Broken, call: Call) -> Fault:
        """What went wrong in a replica, for its client; the log is told where."""
        if broken.error:
            self.serving.log.write("fault", request=call.id, error=broken.error, at=list(broken.at), **call.note)
        return broken.fault
