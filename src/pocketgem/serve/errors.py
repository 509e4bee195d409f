"""The bodies of errors, as the official clients of each API read them."""

from __future__ import annotations

_OPENAI = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_OPENAI_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def openai(status: int, message: str, *, field: str | None = None, code: str | None = None) -> dict[str, object]:
    """The body of an error for OpenAI's clients. ``code`` where the status alone does not say enough."""
    kind = _OPENAI.get(status, _kind(status, "server_error"))
    return {"error": {"message": message, "type": kind, "param": field, "code": code or _OPENAI_CODES.get(status)}}


def anthropic(status: int, message: str, *, field: str | None = None, code: str | None = None) -> dict[str, object]:
    """The same for Anthropic's, who have no place for a field or a code: the message names the field."""
    kind = _ANTHROPIC.get(status, _kind(status, "api_error"))
    return {"type": "error", "error": {"type": kind, "message": message}}


def _kind(status: int, ours: str) -> str:
    return "invalid_request_error" if status < 500 else ours
