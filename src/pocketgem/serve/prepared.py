"""A job of a chat becomes a request of the engine: its media are fetched, decoded, seen and heard, away from the event
loop and from the engine's steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pocketgem.engine.request import Request
from pocketgem.errors import RunError
from pocketgem.llm import LLM
from pocketgem.senses.layout import Laid
from pocketgem.serve.call import Call
from pocketgem.serve.fetch import MAX_BYTES, SECONDS, fetch
from pocketgem.serve.fields import FieldError
from pocketgem.serve.job import ChatJob
from pocketgem.serve.parts import Remote, media_in
from pocketgem.serve.wiring import Serving

Proceed = Callable[[], bool]
NOT_FETCHED = (
    "is an http address; this server fetches nothing. Send the data itself (a data url, or base64), or start the "
    "server with --allow-remote-media"
)


@dataclass(frozen=True)
class Ready:
    """A request that can be submitted, and what its client should know of its media."""

    request: Request
    notes: tuple[str, ...] = ()


async def ready(serving: Serving, call: Call, llm: LLM, job: ChatJob) -> Ready:
    """Raises TemplateError for a model without a template, PromptError, MediaError, FieldError for an address."""
    if not media_in(job.messages):
        return await asyncio.to_thread(ready_of, serving, call, llm, job)
    return await serving.media.prepare(partial(ready_of, serving, call, llm, job))


async def counted(serving: Serving, call: Call, llm: LLM, job: ChatJob) -> Laid:
    """The same without a request: ids and places; no tower runs."""
    if not media_in(job.messages):
        return await asyncio.to_thread(_laid, serving, call, llm, job, thinks(serving, job), lambda: True)
    return await serving.media.prepare(lambda proceed: _laid(serving, call, llm, job, thinks(serving, job), proceed))


def ready_of(serving: Serving, call: Call, llm: LLM, job: ChatJob, proceed: Proceed = lambda: True) -> Ready:
    """See ``ready``. Blocks."""
    thinking = thinks(serving, job)
    laid = _laid(serving, call, llm, job, thinking, proceed)
    sampling: dict[str, Any] = dict(job.sampling)
    request = llm.request(laid, job.shape, thinking=thinking, proceed=proceed, adapter=job.adapter, **sampling)
    return Ready(request, laid.notes)


def thinks(serving: Serving, job: ChatJob) -> bool:
    return serving.settings.thinking if job.thinking is None else job.thinking


def _laid(serving: Serving, call: Call, llm: LLM, job: ChatJob, thinking: bool, proceed: Proceed) -> Laid:
    if media_in(job.messages):
        llm.senses.decoder = serving.media.decoder
        bring(job.messages, proceed, remote=serving.settings.allow_remote_media)
    tools = list(job.shape.tools) or None
    return llm.read_chat(job.messages, tools=tools, thinking=thinking, owner=call.owner, adapter=job.adapter)


def bring(messages: Iterable[Mapping[str, object]], proceed: Proceed = lambda: True, *, remote: bool) -> None:
    """What lies at http addresses, in the place of the addresses: also for who keeps these messages, so that an answer
    to them never depends on an address twice.

    All addresses of a request together get the bytes and the seconds of one. Raises FieldError, MediaError, and
    RunError where ``proceed`` says no.
    """
    left, until = MAX_BYTES, time.monotonic() + SECONDS
    for part in media_in(messages):
        kind = str(part["type"])
        found = part[kind]
        if not isinstance(found, Remote):
            continue
        if not remote:
            raise FieldError(found.field, NOT_FETCHED)
        if not proceed():
            raise RunError("the media were given up")
        content = fetch(found.url, most=left, seconds=until - time.monotonic())
        left -= len(content)
        part[kind] = content
