"""What goes wrong, as a status and a body that the clients of each API read. No path, address or traceback gets out."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException

from pocketgem.errors import CheckpointError, InputError, PocketgemError
from pocketgem.serve.fields import FieldError

ANTHROPIC = "/v1/messages"  # the one family of routes whose errors look different

_OPENAI_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class Fault(Exception):
    """An answer that is an error. ``field`` is what of the request was wrong, ``code`` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)


def fault_of(error: Exception) -> Fault:
    """An exception as what a client may know of it."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, HTTPException):  # no route takes it
        return Fault(error.status_code, "there is no such route; see docs/serve.md", headers=dict(error.headers or {}))
    if isinstance(error, FieldError):
        return Fault(400, str(error), field=error.field)
    if isinstance(error, CheckpointError):  # its text names files
        return Fault(500, "the model's files cannot be used; the server's log says why", code="model_unusable")
    if isinstance(error, InputError):
        return Fault(400, str(error))
    if isinstance(error, MemoryError):
        return Fault(503, "the server is out of memory; try again with less", retry_after=5)
    kind = "the run failed" if isinstance(error, PocketgemError) else "a fault of the server"
    return Fault(500, f"{kind}; its log says more")


def body_of(fault: Fault, path: str, request_id: str) -> dict[str, object]:
    """The fault in the form of the API that ``path`` belongs to."""
    if path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/"):
        return anthropic_body(fault, request_id)
    kind = _OPENAI_KINDS.get(fault.status, "invalid_request_error")
    return {
        "error": {"message": fault.message, "type": kind, "param": fault.field, "code": fault.code or code_of(fault)}
    }


def anthropic_body(fault: Fault, request_id: str) -> dict[str, object]:
    kind = _ANTHROPIC_KINDS.get(fault.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": fault.message}, "request_id": request_id}


def code_of(fault: Fault) -> str:
    """``rate_limited`` for 429 and so on: the status in words."""
    try:
        return HTTPStatus(fault.status).phrase.lower().replace(" ", "_").replace("-", "_")
    except ValueError:
        return "error"
