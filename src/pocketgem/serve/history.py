"""Messages of the past as the dialects send them, in the one form that templates take (``text/messages.py``)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import NoReturn

from pocketgem.serve.fields import MAX_NAME, FieldError, Fields, shown, text_of
from pocketgem.serve.tools import arguments

MAX_MESSAGES = 8192
MAX_PARTS = 4096  # of one message

_MEDIA = {
    "image_url": "images",
    "input_image": "images",
    "image": "images",
    "input_audio": "audio",
    "audio": "audio",
    "video_url": "video",
    "input_file": "files",
    "file": "files",
    "document": "documents",
    "search_result": "search results",
}

Message = dict[str, object]


def joined(fields: Fields, key: str, kinds: Collection[str]) -> str:
    """Content that is a text or a list of parts of these kinds, as one text. Raises FieldError for any other part."""
    value = fields.raw(key)
    if isinstance(value, str):
        return text_of(value, fields.at(key))
    if not isinstance(value, list):
        fields.refuse(key, f"must be a text or a list of parts, not {shown(value)}")
    return "".join(part_text(part, kinds) for part in fields.sections(key, most=MAX_PARTS))


def part_text(part: Fields, kinds: Collection[str]) -> str:
    """The text of a part. Its other fields (annotations, cache_control) say nothing to the model."""
    kind = part.text("type", most=MAX_NAME)
    if kind not in kinds:
        refuse_part(part, kind, kinds)
    return part.text("refusal" if kind == "refusal" else "text")


def refuse_part(part: Fields, kind: str, kinds: Collection[str]) -> NoReturn:
    """Raises FieldError: what kind of part cannot be taken, and why."""
    if kind in _MEDIA:
        raise FieldError(part.path, f"is of type {kind}; {_MEDIA[kind]} are not taken here, only {', '.join(kinds)}")
    part.refuse("type", f"is {shown(kind)}; taken here: {', '.join(kinds)}")


def thought_of(fields: Fields, keys: Sequence[str]) -> Message:
    """What the assistant thought, from the first of these fields that has it."""
    key = next((key for key in keys if isinstance(fields.data.get(key), str) and fields.data[key]), None)
    return {"reasoning_content": fields.text(key)} if key else {}


def call(id: str, function: Fields, key: str) -> Message:
    """A call of the past: ``function`` has a name and, at ``key``, the arguments as JSON text or as an object."""
    given = function.raw(key, {})
    if isinstance(given, str):
        given = _parsed(given, function.at(key))
    named: Message = {"name": function.text("name", most=MAX_NAME), "arguments": arguments(given, function.at(key))}
    return {**({"id": id} if id else {}), "type": "function", "function": named}


def _parsed(text: str, path: str) -> object:
    """Arguments as OpenAI's clients send them. Some send nothing for a tool without parameters."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise FieldError(path, "is not JSON text") from error
