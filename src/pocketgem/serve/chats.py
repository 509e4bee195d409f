"""The chat APIs: a dialect reads the request, the engine answers, the dialect writes what comes.

One class serves all dialects (``dialect.py`` says what a dialect is). What is kept of OpenAI's responses for the next
turn is kept here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from pocketgem.flight import Run
from pocketgem.serve import chat, messages, responses
from pocketgem.serve.answering import Desk
from pocketgem.serve.call import Call, call_of
from pocketgem.serve.dialect import Asked, Out, Stamp
from pocketgem.serve.faults import Fault, fault_of
from pocketgem.serve.job import Update
from pocketgem.serve.prepared import counted, ready
from pocketgem.serve.replies import json_reply
from pocketgem.serve.sse import frame
from pocketgem.serve.store import Conversations
from pocketgem.serve.wiring import Serving


class Stream(Protocol):
    """A dialect's stream of one answer."""

    def start(self) -> list[Out]: ...
    def push(self, update: Update) -> list[Out]: ...
    def fail(self, status: int, message: str) -> list[Out]: ...


Read = Callable[[Call, dict[str, object]], Asked]
Whole = Callable[[Asked, Stamp, Iterable[Update]], dict[str, object]]
Keep = Callable[[Call, Asked, Mapping[str, object]], None]


class Chat:
    """One dialect's route. ``keep`` is told of every answer that is complete."""

    def __init__(self, read: Read, stream: Callable[[Asked, Stamp], Stream], whole: Whole, keep: Keep | None = None):
        self.read, self.stream, self.whole, self.keep = read, stream, whole, keep

    async def create(self, serving: Serving, call: Call, data: dict[str, object]) -> Response:
        """Answer a request, or begin to."""
        asked = await asyncio.to_thread(self.read, call, data)
        async with AsyncExitStack() as stack:
            loaded = await stack.enter_async_context(serving.registry.use(asked.job.model or None, asked.job.adapter))
            call.note["model"] = loaded.name
            job = replace(asked.job, model=asked.job.model or loaded.asked, adapter=loaded.adapter)
            asked = replace(asked, job=job)
            made = await ready(serving, call, loaded.llm, asked.job)
            desk = Desk(loaded, serving.metrics, stack, call, made.notes)
            run = desk.submit(made.request)
            answer = Answer(self, desk, run, asked, Stamp(call.id, int(time.time()), loaded.llm.tokenizer.piece), call)
            if asked.job.stream:
                return serving.stream(answer.frames(), stack.pop_all())
            return json_reply(await answer.whole())


class Answer:
    """One answer on its way."""

    def __init__(self, route: Chat, desk: Desk, run: Run, asked: Asked, stamp: Stamp, call: Call) -> None:
        self.route, self.desk, self.run = route, desk, run
        self.asked, self.stamp, self.call = asked, stamp, call

    async def whole(self) -> dict[str, object]:
        """In one piece. Raises RunError."""
        updates = [update async for update in self.desk.updates(self.run, self.asked.job.shape)]
        answer = self.route.whole(self.asked, self.stamp, updates)
        self._keep(answer)
        return answer

    async def frames(self) -> AsyncGenerator[bytes]:
        """As events. What breaks on the way is told in the dialect's own form."""
        stream = self.route.stream(self.asked, self.stamp)
        for out in stream.start():
            yield frame(out)
        try:
            async with aclosing(self.desk.updates(self.run, self.asked.job.shape)) as updates:
                async for update in updates:
                    for out in stream.push(update):
                        yield frame(out)
            if (answer := getattr(stream, "whole", None)) is not None:
                self._keep(answer)
        except Exception as error:
            fault = fault_of(error)
            self.call.note["failed"] = type(error).__name__
            for out in stream.fail(fault.status, fault.message):
                yield frame(out)

    def _keep(self, answer: Mapping[str, object]) -> None:
        if self.route.keep is not None:
            self.route.keep(self.call, self.asked, answer)


class Kept:
    """OpenAI's responses that a later request goes on from, each for its own caller only."""

    def __init__(self) -> None:
        self.store = Conversations()

    def read(self, call: Call, data: dict[str, object]) -> Asked:
        return responses.read(data, lambda id: self.store.recall(call.owner, id))

    def keep(self, call: Call, asked: Asked, answer: Mapping[str, object]) -> None:
        conversation = responses.remembered(asked, answer)
        if conversation is not None:
            self.store.keep(call.owner, str(answer["id"]), conversation, answer)

    async def show(self, serving: Serving, request: HttpRequest) -> Response:
        """A response that is kept. Raises Fault 404."""
        id = request.path_params["id"]
        kept = self.store.find(call_of(request.scope).owner, id)
        if kept is None:
            raise _no_response(id)
        return json_reply(kept.response)

    async def forget(self, serving: Serving, request: HttpRequest) -> Response:
        """Raises Fault 404."""
        id = request.path_params["id"]
        if not self.store.forget(call_of(request.scope).owner, id):
            raise _no_response(id)
        return json_reply({"id": id, "object": "response", "deleted": True})


def _no_response(id: str) -> Fault:
    return Fault(404, f"there is no response {id[:100]!r} here, or not any more", field="id")


def completions_route() -> Chat:
    return Chat(lambda call, data: chat.read(data), chat.Stream, chat.whole)


def messages_route() -> Chat:
    return Chat(lambda call, data: messages.read(data), messages.Stream, messages.whole)


def responses_route(kept: Kept) -> Chat:
    return Chat(kept.read, responses.Stream, responses.whole, kept.keep)


async def count_tokens(serving: Serving, call: Call, data: dict[str, object]) -> Response:
    """Anthropic's count of a prompt, without an answer to it."""
    job = messages.read(data, counting=True).job
    async with serving.registry.use(job.model or None, job.adapter) as loaded:
        call.note["model"] = loaded.name
        laid = await counted(serving, call, loaded.llm, replace(job, adapter=loaded.adapter))
        return json_reply(messages.count(len(laid.ids), laid.media))
