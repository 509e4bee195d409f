"""The routes of the server and what answers them, behind one guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketgem.llm import LLM
from pocketgem.serve import audio, chats, completions, embeddings, health, tokens
from pocketgem.serve.call import Call
from pocketgem.serve.guard import Guard
from pocketgem.serve.openapi import document
from pocketgem.serve.pages import Pages
from pocketgem.serve.replies import json_reply
from pocketgem.serve.wiring import FormHandler, Get, Handler, Post, Reader, Serving


class App:
    """The ASGI application of one server.

    ready: models that were loaded before it starts, by name. table: makes the routes, all of them unless given.
    """

    def __init__(
        self,
        serving: Serving,
        ready: Mapping[str, LLM] | None = None,
        table: Callable[[Serving], list[Route]] | None = None,
    ) -> None:
        self.serving, self.ready = serving, dict(ready or {})
        rows = [
            *(table or routes)(serving),
            Route("/openapi.json", Get(serving, "/openapi.json", self._describe), methods=["GET"]),
        ]
        self.described = document((route.path, method) for route in rows for method in verbs(route))
        self.router = Router(rows, redirect_slashes=False, lifespan=self._life)
        self.guard = Guard(self.behind, serving.settings, self._tell)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the guard lets through."""
        scope["app"] = self  # so that what no route takes is raised, for the guard to answer
        await self.router(scope, receive, send)

    async def _describe(self, serving: Serving, request: Request) -> Response:
        return json_reply(self.described)

    def _tell(self, call: Call, scope: Scope, error: Exception | None) -> None:
        self.serving.metrics.request(call, scope)
        self.serving.log.request(call, scope, error)

    @asynccontextmanager
    async def _life(self, app: ASGIApp) -> AsyncIterator[None]:
        await self.serving.registry.start(self.ready)
        self.ready.clear()
        try:
            yield
        finally:
            await self.serving.registry.close(0)
            await asyncio.to_thread(self.serving.media.close)


def verbs(route: Route) -> list[str]:
    """The methods of a route, without HEAD, which comes with GET."""
    return sorted((route.methods or set()) - {"HEAD"})


def routes(serving: Serving) -> list[Route]:
    """Every route there is."""
    pages, kept = Pages(), chats.Kept()
    gets: dict[str, Reader] = {
        "/": pages.index,
        "/page/{name:path}": pages.file,
        "/health": health.health,
        "/livez": health.live,
        "/version": health.version,
        "/metrics": health.metrics,
        "/v1/models": health.models,
        "/v1/models/{name:path}": health.model,
        "/v1/responses/{id}": kept.show,
        "/tokenizer_info": tokens.tokenizer_info,
    }
    posts: dict[str, Handler] = {
        "/v1/chat/completions": chats.completions_route().create,
        "/v1/responses": chats.responses_route(kept).create,
        "/v1/messages": chats.messages_route().create,
        "/v1/messages/count_tokens": chats.count_tokens,
        "/v1/completions": completions.create,
        "/v1/embeddings": embeddings.create,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
    }
    forms: dict[str, FormHandler] = {
        "/v1/audio/transcriptions": audio.transcribe,
        "/v1/audio/translations": audio.translate,
    }
    deletes: dict[str, Reader] = {"/v1/responses/{id}": kept.forget}
    return [
        *(Route(path, Get(serving, path, reader), methods=["GET"]) for path, reader in gets.items()),
        *(Route(path, Post(serving, path, handler, Call.json), methods=["POST"]) for path, handler in posts.items()),
        *(Route(path, Post(serving, path, handler, Call.form), methods=["POST"]) for path, handler in forms.items()),
        *(Route(path, Get(serving, path, reader), methods=["DELETE"]) for path, reader in deletes.items()),
    ]
