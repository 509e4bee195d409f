"""``/openapi.json``: the routes for programs, with what each takes in outline; the pages in ``docs`` say all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pocketgem

Schema = dict[str, object]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}


def _whole(low: int, high: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: Schema, low: int = 0, high: int = 2048) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


_ID = _whole(0)
_PROMPT: Schema = {
    "oneOf": [
        {"type": "string", "minLength": 1},
        _list(_ID, 1, 131_072),
        _list({"type": "string", "minLength": 1}, 1),
        _list(_list(_ID, 1, 131_072), 1),
    ]
}
_SAMPLING: dict[str, Schema] = {
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "top_k": _whole(-1),
    "repetition_penalty": _number(0.01, 100),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
}
_STOP: Schema = {"oneOf": [{"type": "string", "maxLength": 1024}, _list({"type": "string", "maxLength": 1024}, 0, 64)]}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT},
}
_USER: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "user"}, "content": {"type": "string", "minLength": 1}},
}
_TOOLS = _list(_OBJECT, 0, 256)


def _body(required: Iterable[str], properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "required": list(required), "properties": {"model": _TEXT, **properties}}


BODIES: dict[str, Schema] = {
    "/v1/chat/completions": _body(
        ["messages"],
        {
            **_SAMPLING, "messages": _list(_MESSAGE, 1, 8192), "tools": _TOOLS, "stop": _STOP, "stream": _FLAG,
            "max_completion_tokens": _whole(1), "max_tokens": _whole(1), "response_format": _OBJECT, "logprobs": _FLAG,
            "top_logprobs": _whole(0, 20), "reasoning_effort": _TEXT, "thinking_budget": _whole(0),
        },
    ),
    "/v1/responses": _body(
        ["input"],
        {
            **_SAMPLING, "input": {"oneOf": [_TEXT, _list(_OBJECT, 0, 8192)]}, "instructions": _TEXT, "tools": _TOOLS,
            "stream": _FLAG, "store": _FLAG, "max_output_tokens": _whole(1), "previous_response_id": _TEXT,
            "reasoning": _OBJECT, "text": _OBJECT,
        },
    ),
    "/v1/messages": _body(
        ["messages", "max_tokens"],
        {
            **_SAMPLING, "messages": _list(_USER, 1, 8192), "system": _TEXT, "max_tokens": _whole(1), "tools": _TOOLS,
            "stop_sequences": _list({"type": "string", "maxLength": 1024}, 0, 64), "stream": _FLAG, "thinking": _OBJECT,
        },
    ),
    "/v1/messages/count_tokens": _body(
        ["messages"], {"messages": _list(_USER, 1, 8192), "system": _TEXT, "tools": _TOOLS}
    ),
    "/v1/completions": _body(
        ["prompt"],
        {
            **_SAMPLING, "prompt": _PROMPT, "max_tokens": _whole(0), "n": _whole(1, 128), "echo": _FLAG,
            "logprobs": _whole(0, 20), "stop": _STOP, "stream": _FLAG, "stream_options": _OBJECT,
            "min_tokens": _whole(0), "logit_bias": _OBJECT, "parse_special": _FLAG,
        },
    ),
    "/v1/embeddings": _body(
        ["input"],
        {"input": _PROMPT, "dimensions": _whole(1), "encoding_format": {"enum": ["float", "base64"]}},
    ),
    "/tokenize": {
        "oneOf": [
            _body(
                ["prompt"],
                {"prompt": _TEXT, "add_special_tokens": _FLAG, "parse_special": _FLAG, "return_token_strs": _FLAG},
            ),
            _body(["messages"], {"messages": _list(_MESSAGE, 1, 8192), "tools": _TOOLS}),
        ]
    },
    "/detokenize": _body(["tokens"], {"tokens": _list(_ID, 0, 1_000_000)}),
}  # fmt: skip

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "object", "required": ["message", "type"], "properties": {"message": _TEXT, "type": _TEXT}}
    },
}
_STREAMS = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"})
_OTHERS = {"/metrics": "text/plain", "/": "text/html", "/page/{name}": "*/*"}


def document(routes: Iterable[tuple[str, str]]) -> Schema:
    """The OpenAPI document of (path, method) pairs."""
    paths: dict[str, dict[str, object]] = {}
    for path, method in routes:
        shown = path.replace(":path}", "}")
        paths.setdefault(shown, {})[method.lower()] = _operation(shown, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketgem", "version": pocketgem.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {"Error": _ERROR}},
        "security": [{}, {"key": []}],
    }


def _operation(path: str, method: str) -> Schema:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    kinds = [_OTHERS.get(path, "application/json"), *(["text/event-stream"] if path in _STREAMS else [])]
    error = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    operation: Schema = {
        "operationId": f"{method.lower()} {path}",
        "responses": {"200": {"description": "The answer", "content": {kind: {} for kind in kinds}}, "default": error},
    }
    if names:
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    if path in BODIES and method == "POST":
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": BODIES[path]}}}
    return operation
