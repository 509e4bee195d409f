"""What goes wrong, as a status and a body that the clients of each API read. No path, address or traceback gets out."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException

from pocketgem.errors import BusyError, CheckpointError, InputError, PocketgemError
from pocketgem.serve.errors import anthropic, openai
from pocketgem.serve.fields import FieldError

ANTHROPIC = "/v1/messages"  # the one family of routes whose errors look different


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
        text = "this route does not take that method" if error.status_code == 405 else "there is no such route"
        return Fault(error.status_code, text, headers=dict(error.headers or {}))
    if isinstance(error, FieldError):
        return Fault(400, str(error), field=error.field)
    if isinstance(error, CheckpointError):  # its text names files
        return Fault(500, "the model's files cannot be used; the server's log says why", code="model_unusable")
    if isinstance(error, BusyError):
        return Fault(503, str(error), code="overloaded", retry_after=1)
    if isinstance(error, InputError):
        return Fault(400, str(error))
    if isinstance(error, MemoryError):
        return Fault(503, "the server is out of memory; try again with less", retry_after=5)
    kind = "the run failed" if isinstance(error, PocketgemError) else "a fault of the server"
    return Fault(500, f"{kind}; its log says more")


def body_of(fault: Fault, path: str, request_id: str) -> dict[str, object]:
    """The fault in the form of the API that ``path`` belongs to."""
    if path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/"):
        return {**anthropic(fault.status, fault.message), "request_id": request_id}
    return openai(fault.status, fault.message, field=fault.field, code=fault.code or _code(fault.status))


def _code(status: int) -> str | None:
    """What the dialects leave open: ``unsupported_media_type`` for 415 and so on."""
    if status in (400, 401, 413, 429) or status >= 500:
        return None
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
