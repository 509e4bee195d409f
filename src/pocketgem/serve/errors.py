"""The bodies of refusals, as the official clients of each dialect read them."""

from __future__ import annotations

from pocketgem.errors import InputError, PocketgemError
from pocketgem.serve.fields import FieldError

_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def status_of(error: Exception) -> int:
    """400 for what the caller did, 500 for what we did."""
    return 400 if isinstance(error, InputError) else 500


def message_of(error: Exception) -> str:
    """What may be said of an error: ours are written for people, others may hold addresses and paths."""
    return str(error) if isinstance(error, PocketgemError) else "the server failed on this request; its log says why"


def field_of(error: Exception) -> str | None:
    return error.field if isinstance(error, FieldError) else None


def openai(status: int, message: str, *, field: str | None = None, code: str | None = None) -> dict[str, object]:
    """The body of an error for OpenAI's clients. ``code`` where the status alone does not say enough."""
    kind = _OPENAI.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code or _OPENAI_CODES.get(status)}}


def anthropic(status: int, message: str, *, field: str | None = None, code: str | None = None) -> dict[str, object]:
    """The body of an error for Anthropic's clients, who have no place for the field beside the message."""
    kind = code or _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
