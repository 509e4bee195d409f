"""A whole answer of OpenAI's responses, and what is kept of it for the next turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from pocketgem.engine.request import FinishReason
from pocketgem.errors import InputError
from pocketgem.serve.dialect import Asked, Stamp
from pocketgem.serve.fields import Fields
from pocketgem.serve.history import Message
from pocketgem.serve.job import Done, Update
from pocketgem.serve.responses_items import messages_of
from pocketgem.serve.responses_output import OUTPUT, REASONING, SUMMARY, Json, PartKind, Place, call_item, item, part
from pocketgem.serve.said import Said, empty_reason, failure, said
from pocketgem.serve.usage import extension, logprobs, media_tokens
from pocketgem.text.events import Content, Event, FailedCall, Thought, ToolCall


def whole(asked: Asked, stamp: Stamp, updates: Iterable[Update]) -> Json:
    """The answer at once. Raises RunError where the updates end before it does."""
    answer = said(updates)
    words, thought = bool(answer.text.strip()), bool(answer.thought)
    nothing = None if answer.calls else empty_reason(answer.done, words=words, thought=thought)
    return ended(asked, stamp, answer.done, _items(answer, asked, stamp), nothing)


def remembered(asked: Asked, response: Mapping[str, object]) -> tuple[Message, ...] | None:
    """The conversation with this answer, to go on from; None where it is not to be kept, or cannot be read again."""
    output = response.get("output")
    if asked.keep is None or not isinstance(output, list):
        return None
    try:
        return (*map(dict, asked.keep), *messages_of(Fields.of(one, "output") for one in output))
    except InputError:
        return None


def _items(answer: Said, asked: Asked, stamp: Stamp) -> list[Json]:
    """The whole answer's items: neighbours of one kind in one, each call in one of its own."""
    items: list[Json] = []
    last = answer.events[-1] if answer.events else None
    for kind, group in groupby(answer.events, lambda event: _kind(asked, event)):
        events = list(group)
        if kind is None:
            items += [
                call_item(one, stamp, len(items) + n) for n, one in enumerate(events) if isinstance(one, ToolCall)
            ]
            continue
        how = status(answer.done) if events[-1] is last else "completed"
        parts = [_part(kind, one, last_logprobs(asked, stamp, answer.done) if one is last else {}) for one in events]
        items.append(item(Place(kind, stamp, len(items)), parts, how))
    return items


def _part(kind: PartKind, event: Event, more: Json) -> Json:
    if isinstance(event, FailedCall):
        return part(kind, event.raw, {"tool_call_error": failure(event)})
    text = event.text if isinstance(event, Content | Thought) else ""
    return part(kind, text, more if kind is OUTPUT else {})


def _kind(asked: Asked, event: Event) -> PartKind | None:
    if isinstance(event, Thought):
        return thought_kind(asked)
    return None if isinstance(event, ToolCall) else OUTPUT


def thought_kind(asked: Asked) -> PartKind:
    """The kind of text that a thought is, as it was asked for."""
    return SUMMARY if asked.summary else REASONING


def last_logprobs(asked: Asked, stamp: Stamp, done: Done) -> Json:
    """Those of the whole answer, for the last part where that is text."""
    return {"logprobs": logprobs(done.logprobs, stamp.piece)} if "logprobs" in asked.job.sampling else {}


def status(done: Done) -> str:
    """How the response ended, and its last item with it."""
    return "incomplete" if done.finish is FinishReason.LENGTH else "completed"


def ended(asked: Asked, stamp: Stamp, done: Done, output: list[Json], nothing: str | None) -> Json:
    """The response when it has come to its end; ``nothing``: why there is nothing to read."""
    found = response(asked, stamp, status(done), output)
    if done.finish is FinishReason.LENGTH:
        found["incomplete_details"] = {"reason": "max_output_tokens"}
    found["usage"] = _usage(done)
    return found | ({"empty_reason": nothing} if nothing else {})


def response(asked: Asked, stamp: Stamp, status: str, output: list[Json]) -> Json:
    """The response as far as it is known."""
    head: Json = {
        "id": f"resp_{stamp.id}",
        "object": "response",
        "created_at": stamp.created,
        "model": asked.job.model,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "output": list(output),
        "usage": None,
    }
    return {**head, **asked.echo, **({"ignored": list(asked.ignored)} if asked.ignored else {})}


def _usage(done: Done) -> Json:
    stats = done.stats
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.reused_tokens, "cache_write_tokens": 0, **media_tokens(stats)},
        "output_tokens": stats.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.thought_tokens or 0},
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        **extension(done),
    }
