"""What the requests hold, as JSON schemas: the types and limits that the readers check, for the OpenAPI document.

``tests/test_openapi.py`` compares them with the readers: the same names, and the same values let in at the limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pocketgem.engine.request import MAX_BIASES, MAX_ID, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS
from pocketgem.serve.audio import FORMATS as FORMATS_OF_RECORDINGS
from pocketgem.serve.audio import MAX_TEMPERATURE
from pocketgem.serve.chat_read import HARMLESS, ROLES
from pocketgem.serve.completions_read import MAX_N
from pocketgem.serve.fields import MAX_NAME
from pocketgem.serve.history import MAX_MESSAGES, MAX_PARTS
from pocketgem.serve.messages_read import HARMLESS as MESSAGES_HARMLESS
from pocketgem.serve.options import EFFORTS
from pocketgem.serve.parts import DETAILS
from pocketgem.serve.prompts import MAX_PROMPTS
from pocketgem.serve.responses_read import HARMLESS as RESPONSES_HARMLESS
from pocketgem.serve.tokens import MAX_IDS
from pocketgem.serve.tools import MAX_PATTERN, MAX_TOOLS
from pocketgem.speech import MAX_HINT

Schema = dict[str, Any]

ANY: Schema = {}
FLAG: Schema = {"type": ["boolean", "null"]}
OBJECT: Schema = {"type": ["object", "null"]}


def text(most: int | None = None, **more: object) -> Schema:
    return {"type": ["string", "null"], **({} if most is None else {"maxLength": most}), **more}


def whole(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def one_of(names: Collection[str]) -> Schema:
    return {"enum": [*names, None]}


def many(items: Schema, most: int, least: int = 0) -> Schema:
    bounds = {"maxItems": most, **({"minItems": least} if least else {})}
    return {"type": ["array", "null"], "items": items, **bounds}


def given(schema: Schema) -> Schema:
    """The same without null: a field that must be there."""
    if "enum" in schema:
        return {**schema, "enum": [name for name in schema["enum"] if name is not None]}
    kinds = schema.get("type")
    return {**schema, "type": kinds[0]} if isinstance(kinds, list) else schema


def fields(properties: Mapping[str, Schema], *required: str) -> Schema:
    """An object. Fields of other names are let in, and named in the answer."""
    found = {name: given(schema) if name in required else schema for name, schema in properties.items()}
    return {"type": "object", "properties": found, **({"required": list(required)} if required else {})}


def maybe(schema: Schema) -> Schema:
    return {**schema, "type": ["object", "null"]}


NAME = text(MAX_NAME)
ID: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
EXTENSIONS: dict[str, Schema] = {
    "top_k": whole(-1, MAX_ID),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 100),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": whole(-(2**63), 2**63 - 1),
    "logit_bias": {
        **OBJECT,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_BIASES,
    },
}
SAMPLING = {**EXTENSIONS, "temperature": number(0, 100), "top_p": number(0, 1)}
STOP_STRINGS = many({"type": "string", "maxLength": MAX_STOP_LENGTH}, MAX_STOPS)
STOPS: Schema = {"anyOf": [text(MAX_STOP_LENGTH), STOP_STRINGS]}
LIMIT = whole(0, MAX_ID)
THINKING: dict[str, Schema] = {
    "thinking_budget": whole(0, MAX_ID),
    "chat_template_kwargs": {**maybe(fields({"enable_thinking": FLAG})), "additionalProperties": False},
    "regex": text(MAX_PATTERN),
}
TOOL_NAME = text(pattern="^[A-Za-z0-9_.-]{1,128}$")
CHOICES = ("none", "auto", "required")
STREAM_OPTIONS = maybe(fields({"include_usage": FLAG, "include_progress": FLAG}))
FORMATS = ("text", "json_object", "json_schema")


def part(kinds: Collection[str], key: str = "text") -> Schema:
    return fields({"type": {"enum": list(kinds)}, key: text()}, "type", key)


def content(*parts: Schema) -> Schema:
    """A text, or a list of parts."""
    return {"anyOf": [{"type": "string"}, given(many({"anyOf": list(parts)}, MAX_PARTS))]}


LINK: Schema = {"type": "string", "pattern": "^(data:[^,]*;base64,|https?://)"}
DATA: Schema = {"type": "string", "contentEncoding": "base64"}
DATA_LINK: Schema = {"type": "string", "pattern": "^data:(image|audio|video)/[^,]*;base64,"}
DETAIL = one_of(tuple(DETAILS))


def medium(kind: str, key: str, schema: Schema, **more: Schema) -> Schema:
    """A part that is an image, a sound or a video."""
    return fields({"type": {"enum": [kind]}, key: schema, **more}, "type", key)


def declared(key: str) -> dict[str, Schema]:
    return {"name": TOOL_NAME, "description": text(), key: OBJECT}


# ---- completions and tokens -----------------------------------------------------------------------------------------

IDS = given(many(ID, MAX_IDS, 1))
PROMPT: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        IDS,
        given(many({"anyOf": [{"type": "string", "minLength": 1}, IDS]}, MAX_PROMPTS, 1)),
    ]
}
COMPLETIONS = fields(
    {
        **SAMPLING,
        "model": NAME,
        "adapter": NAME,
        "prompt": PROMPT,
        "max_tokens": LIMIT,
        "min_tokens": LIMIT,
        "n": whole(1, MAX_N),
        "best_of": whole(1, MAX_N),
        "echo": FLAG,
        "parse_special": FLAG,
        "logprobs": whole(0, MAX_LOGPROBS),
        "stop": STOPS,
        "stream": FLAG,
        "stream_options": STREAM_OPTIONS,
        "suffix": {"enum": ["", None]},
    },
    "prompt",
)
EMBEDDINGS = fields(
    {"model": NAME, "input": PROMPT, "dimensions": whole(1, MAX_ID), "encoding_format": one_of(("float", "base64"))},
    "input",
)
MESSAGE = fields({"role": NAME, "content": ANY}, "role")
TOKENIZE: Schema = {
    **fields(
        {
            "model": NAME,
            "prompt": text(),
            "messages": many(MESSAGE, 4096),
            "tools": many({"type": "object"}, 4096),
            "chat_template_kwargs": maybe(fields({"enable_thinking": FLAG})),
            "add_special_tokens": FLAG,
            "parse_special": FLAG,
            "return_token_strs": FLAG,
        }
    ),
    "anyOf": [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array", "minItems": 1}}},
    ],
}
DETOKENIZE = fields({"model": NAME, "tokens": many(ID, MAX_IDS)})

# ---- chat completions -----------------------------------------------------------------------------------------------

_CALL = fields(
    {
        "id": NAME,
        "type": one_of(("function",)),
        "function": fields({"name": NAME, "arguments": {"type": ["string", "object", "null"]}}, "name"),
    },
    "function",
)
_TEXTS = content(part(("text",)))
_SHOWN = content(
    part(("text",)),
    medium("image_url", "image_url", {"anyOf": [LINK, fields({"url": LINK, "detail": DETAIL}, "url")]}),
    medium("input_audio", "input_audio", fields({"data": DATA, "format": NAME}, "data")),
    medium("audio_url", "audio_url", fields({"url": LINK}, "url")),
    medium("video_url", "video_url", fields({"url": LINK}, "url")),
    medium("file", "file", fields({"file_data": DATA_LINK}, "file_data")),
)
_CHAT_MESSAGE: Schema = {
    "anyOf": [
        fields({"role": {"enum": [role for role in ROLES if role not in ("user", "assistant", "tool")]},
                "content": _TEXTS, "name": NAME}, "role", "content"),
        fields({"role": {"enum": ["user"]}, "content": _SHOWN, "name": NAME}, "role", "content"),
        fields({"role": {"enum": ["tool"]}, "content": _SHOWN, "tool_call_id": NAME, "name": NAME},
               "role", "content", "tool_call_id"),
        fields({"role": {"enum": ["assistant"]},
                "content": {"anyOf": [{"type": "null"}, content(part(("text",)), part(("refusal",), "refusal"))]},
                "refusal": text(), "name": NAME, "tool_calls": many(_CALL, MAX_TOOLS), "reasoning_content": ANY,
                "reasoning": ANY}, "role"),
    ]
}  # fmt: skip
_NAMED = fields({"name": NAME}, "name")
CHAT = fields(
    {
        **SAMPLING,
        **THINKING,
        **dict.fromkeys(sorted(HARMLESS), ANY),
        "model": NAME,
        "adapter": NAME,
        "messages": many(_CHAT_MESSAGE, MAX_MESSAGES, 1),
        "max_tokens": LIMIT,
        "max_completion_tokens": LIMIT,
        "min_tokens": LIMIT,
        "tools": many(
            fields({"type": one_of(("function",)), "function": fields(declared("parameters"), "name")}, "function"),
            MAX_TOOLS,
        ),
        "tool_choice": {
            "anyOf": [
                one_of(CHOICES),
                fields({"type": {"enum": ["function"]}, "function": _NAMED}, "type", "function"),
                fields({"type": {"enum": ["allowed_tools"]}, "allowed_tools": {"type": "object"}}, "type"),
            ]
        },
        "parallel_tool_calls": FLAG,
        "response_format": maybe(fields({"type": {"enum": list(FORMATS)}, "json_schema": OBJECT}, "type")),
        "stop": STOPS,
        "logprobs": FLAG,
        "top_logprobs": whole(0, MAX_LOGPROBS),
        "n": whole(1, 1),
        "stream": FLAG,
        "stream_options": STREAM_OPTIONS,
        "reasoning_effort": one_of(EFFORTS),
        "modalities": many({"enum": ["text"]}, 8),
    },
    "messages",
)

# ---- responses ------------------------------------------------------------------------------------------------------

_SAID = ("input_text", "text", "output_text")
_SEEN = (
    medium("input_image", "image_url", LINK, detail=DETAIL),
    medium("input_audio", "input_audio", fields({"data": DATA, "format": NAME}, "data")),
    medium("input_file", "file_data", DATA_LINK),
)
_ITEM: Schema = {
    "anyOf": [
        fields({"type": one_of(("message",)), "role": {"enum": ["user"]}, "content": content(part(_SAID), *_SEEN)},
               "role", "content"),
        fields({"type": one_of(("message",)), "role": {"enum": ["assistant", "system", "developer"]},
                "content": content(part(_SAID), part(("refusal",), "refusal"))}, "role", "content"),
        fields({"type": {"enum": ["function_call"]}, "call_id": NAME, "name": NAME,
                "arguments": {"type": ["string", "object", "null"]}}, "type", "call_id", "name"),
        fields({"type": {"enum": ["function_call_output"]}, "call_id": NAME, "output": content(part(_SAID), *_SEEN)},
               "type", "call_id", "output"),
        fields({"type": {"enum": ["reasoning"]}, "summary": many({"type": "object"}, 4096),
                "content": many({"type": "object"}, 4096)}, "type"),
    ]
}  # fmt: skip
_SUMMARY = one_of(("auto", "concise", "detailed"))
RESPONSES = fields(
    {
        **SAMPLING,
        **THINKING,
        **dict.fromkeys(sorted(RESPONSES_HARMLESS), ANY),
        "model": NAME,
        "adapter": NAME,
        "input": {"anyOf": [{"type": "string"}, given(many(_ITEM, MAX_MESSAGES, 1))]},
        "instructions": text(),
        "previous_response_id": NAME,
        "store": FLAG,
        "background": {"enum": [False, None]},
        "tools": many(fields({"type": NAME, **declared("parameters"), "name": ANY}, "type"), MAX_TOOLS),
        "tool_choice": {
            "anyOf": [
                one_of(CHOICES),
                fields({"type": {"enum": ["function"]}, "name": NAME}, "type", "name"),
                fields({"type": {"enum": ["allowed_tools"]}, "mode": {"enum": ["auto", "required"]},
                        "tools": many(_NAMED, MAX_TOOLS)}, "type", "mode"),
            ]
        },
        "parallel_tool_calls": FLAG,
        "max_output_tokens": LIMIT,
        "text": maybe(fields({"format": maybe(fields({"type": one_of(FORMATS), "schema": OBJECT}))})),
        "reasoning": maybe(fields({"effort": one_of(EFFORTS), "summary": _SUMMARY, "generate_summary": _SUMMARY})),
        "include": many(ANY, 64),
        "top_logprobs": whole(0, MAX_LOGPROBS),
        "metadata": OBJECT,
        "truncation": ANY,
        "stream": FLAG,
        "stream_options": STREAM_OPTIONS,
    },
    "input",
)  # fmt: skip

# ---- messages -------------------------------------------------------------------------------------------------------

_TEXT_BLOCK = part(("text",))
_SOURCE: Schema = {
    "anyOf": [
        fields({"type": {"enum": ["base64"]}, "media_type": NAME, "data": DATA}, "type", "media_type", "data"),
        fields({"type": {"enum": ["url"]}, "url": LINK}, "type", "url"),
    ]
}
_IMAGE = medium("image", "source", _SOURCE)
_RESULT = fields(
    {"type": {"enum": ["tool_result"]}, "tool_use_id": NAME,
     "content": {"anyOf": [{"type": "null"}, content(_TEXT_BLOCK, _IMAGE)]},
     "is_error": FLAG}, "type", "tool_use_id",
)  # fmt: skip
_USE = fields({"type": {"enum": ["tool_use"]}, "id": NAME, "name": NAME, "input": OBJECT}, "type", "name")
_THOUGHT = part(("thinking",), "thinking")
_HIDDEN = fields({"type": {"enum": ["redacted_thinking"]}}, "type")
_TURN: Schema = {
    "anyOf": [
        fields({"role": {"enum": ["user"]}, "content": content(_TEXT_BLOCK, _IMAGE, _RESULT)}, "role", "content"),
        fields({"role": {"enum": ["system"]}, "content": _TEXTS}, "role", "content"),
        fields({"role": {"enum": ["assistant"]}, "content": content(_TEXT_BLOCK, _USE, _THOUGHT, _HIDDEN)},
               "role", "content"),
    ]
}  # fmt: skip
_MESSAGES: dict[str, Schema] = {
    **SAMPLING,
    **THINKING,
    **dict.fromkeys(sorted(MESSAGES_HARMLESS), ANY),
    "model": NAME,
        "adapter": NAME,
    "messages": many(_TURN, MAX_MESSAGES, 1),
    "system": {"anyOf": [{"type": "null"}, _TEXTS]},
    "max_tokens": {**LIMIT, "minimum": 1},
    "tools": many(fields({"type": NAME, **declared("input_schema"), "name": ANY}), MAX_TOOLS),
    "tool_choice": maybe(
        fields({"type": {"enum": ["auto", "any", "none", "tool"]}, "name": NAME, "disable_parallel_tool_use": FLAG},
               "type")
    ),
    "stop_sequences": STOPS,
    "stream": FLAG,
    "thinking": maybe(
        fields({"type": {"enum": ["enabled", "disabled", "adaptive", "between_tools"]}, "budget_tokens": ANY}, "type")
    ),
    "output_config": maybe(
        fields({"effort": one_of(EFFORTS),
                "format": maybe(fields({"type": {"enum": ["json_schema"]}, "schema": OBJECT}, "type"))})
    ),
}  # fmt: skip
MESSAGES = fields(_MESSAGES, "messages", "max_tokens")
COUNT_TOKENS = fields(_MESSAGES, "messages")

# ---- recordings: a form, whose fields are texts ----------------------------------------------------------------------

_RECORDING: dict[str, Schema] = {
    "file": {"type": "string", "format": "binary"},
    "model": {"type": "string", "maxLength": MAX_NAME},
    "language": {"type": "string", "maxLength": MAX_NAME},
    "prompt": {"type": "string", "maxLength": MAX_HINT},
    "response_format": {"type": "string", "enum": list(FORMATS_OF_RECORDINGS)},
    "temperature": {"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE},
    "stream": {"type": "boolean", "enum": [False]},
    "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["segment"]}},
}
TRANSCRIPTION = fields(_RECORDING, "file")
TRANSLATION = fields({**_RECORDING, "target_language": {"type": "string", "maxLength": MAX_NAME}}, "file")

BODIES: dict[str, Schema] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/audio/transcriptions": TRANSCRIPTION,
    "/v1/audio/translations": TRANSLATION,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
