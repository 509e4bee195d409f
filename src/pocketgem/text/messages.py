"""Messages as a caller gives them to messages as a template takes them: checked, and without the thoughts of the past.

Gemma's rule for thoughts: what the model thought in earlier turns is not shown to it again, except inside an ongoing
chain of tool calls, where it needs to know why it called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from pocketgem.errors import TemplateError
from pocketgem.text.media import KINDS, media_part

Message = dict[str, object]

_ROLES = {"system": "system", "developer": "developer", "user": "user", "tool": "tool"}
_ROLES |= {"assistant": "assistant", "model": "assistant"}
_SHOWING = ("user", "tool")  # who can show media
_REASONING = ("reasoning", "reasoning_content", "thinking")  # names that clients and templates use for the same thing
_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "tool_responses", *_REASONING}
_NOTHING: tuple[object, ...] = (None, "", [], {}, ())

# A thought inside content, closed or cut off by the end.
_THOUGHT = re.compile(r"<\|channel>(?:thought\n?)?(.*?)(?:\n?<channel\|>|\Z)", re.DOTALL)


def normalize(messages: Sequence[Mapping[str, object]]) -> list[Message]:
    """Copies with roles and content as templates expect them: content is text, its text parts joined as they are.

    Content with media is a list of parts in their order, each ``{"type": "text", "text": ...}`` or ``{"type": kind}``.
    ``model`` becomes ``assistant``; arguments of tool calls that came as JSON text become values; fields that are null
    or empty are left out. Raises TemplateError for an unknown role, field or part, naming the message.
    """
    if not messages:
        raise TemplateError("there are no messages; a chat needs at least one")
    return [_normalized(message, f"message {index}") for index, message in enumerate(messages)]


def drop_past_thoughts(messages: Sequence[Message]) -> list[Message]:
    """Copies without the thoughts of the assistant, in fields or inside content, except in the ongoing tool chain.

    There, that is in messages with tool calls after the last user message, a thought inside content moves to
    the fields ``reasoning`` and ``reasoning_content``: templates read the one or the other.
    """
    last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [
        _without_thoughts(message, keep=index > last_user and bool(message.get("tool_calls")))
        if message["role"] == "assistant"
        else message
        for index, message in enumerate(messages)
    ]


def _normalized(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} is a {type(message).__name__}; it must be an object with a role and content")
    # Clients send every field of their message type; one that is null or empty says nothing, whatever its name.
    message = {name: value for name, value in message.items() if name == "content" or value not in _NOTHING}
    if surplus := message.keys() - _FIELDS:
        raise TemplateError(f"{where} has an unknown field {min(surplus)!r}; known are {', '.join(sorted(_FIELDS))}")
    if message.get("content") is None:
        message.pop("content", None)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise TemplateError(f"{where} has the role {role!r}; roles are {', '.join(_ROLES)}")
    normal: Message = {**message, "role": _ROLES[role], "content": _content(message, where)}
    for field in _REASONING:
        if not isinstance(message.get(field, ""), str):
            raise TemplateError(f"{where}: {field} must be text")
    if "tool_calls" in message:
        normal["tool_calls"] = list(_tool_calls(message["tool_calls"], where))
    return normal


def _content(message: Mapping[str, object], where: str) -> str | list[Message]:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and (message.get("tool_calls") or message.get("tool_responses")):
        return ""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TemplateError(f"{where} has no content; it must be text or a list of parts like {{'type': 'text', ...}}")
    parts = [_part(part, where) for part in content]
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    if message.get("role") not in _SHOWING:
        raise TemplateError(f"{where} is by {message.get('role')!r}; only {' and '.join(_SHOWING)} can show media")
    return list(_joined(parts))


def _part(part: object, where: str) -> str | Message:
    """A text, or what a template is told of a medium."""
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in KINDS:
        return media_part(part, kind, where)
    if not isinstance(part, Mapping) or kind != "text":
        raise TemplateError(f"{where} has a part of type {kind!r}; known are 'text', {', '.join(map(repr, KINDS))}")
    text = part.get("text")
    if not isinstance(text, str) or part.keys() != {"type", "text"}:
        raise TemplateError(f"{where} has a text part that is not just {{'type': 'text', 'text': '...'}}")
    return text


def _joined(parts: Sequence[str | Message]) -> Iterator[Message]:
    """Texts that stand side by side are one."""
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        if not is_text:
            yield from (part for part in group if not isinstance(part, str))
        elif text := "".join(map(str, group)):
            yield {"type": "text", "text": text}


def _tool_calls(calls: object, where: str) -> Iterator[Message]:
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise TemplateError(f"{where}: tool_calls must be a list")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TemplateError(f"{where}: a tool call must be an object with a function that has a name")
        yield {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), where)}}


def _arguments(arguments: object, where: str) -> object:
    """OpenAI's clients send the arguments of a call as JSON text; templates want the values."""
    if arguments is None:
        return {}
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{where}: the arguments of a tool call are not JSON") from error
    if not isinstance(value, Mapping):
        raise TemplateError(f"{where}: the arguments of a tool call must be an object")
    return value


def _without_thoughts(message: Message, *, keep: bool) -> Message:
    content = str(message["content"])
    kept = {name: value for name, value in message.items() if name not in _REASONING}
    thoughts = [message.get(name) for name in _REASONING] + ["\n".join(_THOUGHT.findall(content))]
    thought = next((thought for thought in thoughts if thought), None)
    if keep and thought:
        kept |= {"reasoning": thought, "reasoning_content": thought}
    return {**kept, "content": _THOUGHT.sub("", content)}
