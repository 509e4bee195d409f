"""``/openapi.json``: what the server takes and gives, written from its route table for programs that read OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pocketgem
from pocketgem.serve.faults import ANTHROPIC
from pocketgem.serve.guard import FORM_PATHS, OPEN_PATHS
from pocketgem.serve.multipart import FORM
from pocketgem.serve.openapi_schemas import BODIES, Schema
from pocketgem.serve.pages import MEDIA_TYPES

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
STREAMS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions")
REFUSALS = (401, 403, 405, 414, 429, 431, 500, 503)  # what every route may answer
BODY_REFUSALS = (400, 404, 408, 413, 415)  # what those may that read a body


def answer(*names: str) -> Schema:
    """An object that has these fields at least."""
    return {"type": "object", "required": list(names)}


@dataclass(frozen=True)
class Operation:
    """What a method of a path does. ``content``: media types of a good answer, and what JSON there holds."""

    summary: str
    content: Mapping[str, Schema]
    refusals: tuple[int, ...] = ()
    query: tuple[str, ...] = ()


def _json(summary: str, *names: str, refusals: tuple[int, ...] = (), query: tuple[str, ...] = ()) -> Operation:
    return Operation(summary, {JSON: answer(*names)}, refusals, query)


_RESPONSE = ("id", "object", "created_at", "status", "model", "output", "usage")
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/"): Operation("The page for a person.", {"text/html": {"type": "string"}}, (404,)),
    ("GET", "/page/{name:path}"): Operation(
        "A file of the page.", {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}, (404,)
    ),
    ("GET", "/openapi.json"): _json("This document.", "openapi", "info", "paths"),
    ("GET", "/health"): _json("Whether work goes on.", "status"),
    ("GET", "/livez"): _json("Whether the process answers.", "status"),
    ("GET", "/version"): _json("The version of the server.", "version"),
    ("GET", "/metrics"): Operation("Counters for Prometheus.", {"text/plain": {"type": "string"}}),
    ("GET", "/v1/models"): _json("All models.", "object", "data"),
    ("GET", "/v1/models/{name:path}"): _json("One model.", "id", "object", refusals=(404,)),
    ("GET", "/v1/responses/{id}"): _json("A response that is kept.", *_RESPONSE, refusals=(404,)),
    ("DELETE", "/v1/responses/{id}"): _json("Forget a response.", "id", "deleted", refusals=(404,)),
    ("GET", "/tokenizer_info"): _json(
        "What a client needs to build prompts.", "eos_token", "vocab_size", refusals=(404,), query=("model",)
    ),
    ("POST", "/v1/chat/completions"): _json(
        "Answer a conversation (OpenAI).", "id", "object", "created", "model", "choices", "usage"
    ),
    ("POST", "/v1/responses"): _json("Answer a conversation (OpenAI's responses).", *_RESPONSE),
    ("POST", "/v1/messages"): _json(
        "Answer a conversation (Anthropic).", "id", "type", "role", "content", "model", "stop_reason", "usage"
    ),
    ("POST", "/v1/messages/count_tokens"): _json("Count a conversation's tokens.", "input_tokens"),
    ("POST", "/v1/completions"): _json(
        "Continue texts or token ids.", "id", "object", "created", "model", "choices", "usage"
    ),
    ("POST", "/v1/embeddings"): _json("Texts as vectors of length one.", "object", "data", "model", "usage"),
    ("POST", "/v1/audio/transcriptions"): Operation(
        "A recording as text.", {JSON: answer("text"), TEXT: {"type": "string"}}
    ),
    ("POST", "/v1/audio/translations"): Operation(
        "A recording as text in another language.", {JSON: answer("text"), TEXT: {"type": "string"}}
    ),
    ("POST", "/tokenize"): _json("A text or a conversation as token ids.", "count", "max_model_len", "tokens"),
    ("POST", "/detokenize"): _json("Token ids as a text.", "prompt"),
}

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR: Schema = {
    **_ERROR,
    "required": ["type", "error", "request_id"],
    "properties": {**_ERROR["properties"], "type": {"const": "error"}, "request_id": {"type": "string"}},
}
COMPONENTS: Schema = {
    "schemas": {"Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR},
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    },
}


def document(routes: Iterable[tuple[str, str]]) -> dict[str, object]:
    """The document for these (path, method) pairs. Raises KeyError for one that nothing above describes."""
    paths: dict[str, dict[str, object]] = {}
    for path, method in routes:
        paths.setdefault(re.sub(r":\w+}", "}", path), {})[method.lower()] = _operation(method, path)
    info = {"title": "pocketgem", "version": pocketgem.__version__, "description": "Limits are those of the readers."}
    security: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"header": []}]
    return {"openapi": "3.1.0", "info": info, "paths": paths, "security": security, "components": COMPONENTS}


def _operation(method: str, path: str) -> dict[str, object]:
    found = OPERATIONS[method, path]
    content = {kind: {"schema": schema} for kind, schema in found.content.items()}
    refusals = {*REFUSALS, *found.refusals, *(BODY_REFUSALS if method == "POST" else ())}
    good: dict[str, Any] = {"description": "The answer.", "content": content}
    operation: dict[str, object] = {"summary": found.summary, "operationId": _name(method, path)}
    if parameters := [_parameter(name, "path") for name in re.findall(r"{(\w+)", path)]:
        operation["parameters"] = parameters
    if found.query:
        operation["parameters"] = [_parameter(name, "query") for name in found.query]
    if path in OPEN_PATHS:
        operation["security"] = []
    if method == "POST":
        operation["requestBody"] = {"required": True, "content": {_taken(path): {"schema": BODIES[path]}}}
        if path in STREAMS:
            content[EVENTS] = {"schema": {"type": "string"}}
            good["description"] = "The answer; as server-sent events with stream: true."
    statuses = {str(code): _refusal(code, path) for code in sorted(refusals)}
    return {**operation, "responses": {"200": good, **statuses}}


def _taken(path: str) -> str:
    """The media type of a body."""
    return FORM if path in FORM_PATHS else JSON


def _parameter(name: str, where: str) -> dict[str, object]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}


def _refusal(code: int, path: str) -> dict[str, object]:
    name = "AnthropicError" if path.startswith(ANTHROPIC) else "Error"
    schema: Schema = {"$ref": f"#/components/schemas/{name}"}
    if path == "/health" and code == 503:
        schema = answer("status")
    return {"description": HTTPStatus(code).phrase, "content": {JSON: {"schema": schema}}}


def _name(method: str, path: str) -> str:
    words = re.findall(r"[a-z0-9]+", re.sub(r":\w+}", "", path))
    return "_".join([method.lower(), *words] if words else [method.lower(), "page"])
