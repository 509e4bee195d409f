"""Answers in one piece."""

from __future__ import annotations

import json

from starlette.responses import Response


def json_reply(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as ASCII: whatever a model said, every reader finds its way through it."""
    return Response(json.dumps(data, allow_nan=False), status, headers, media_type="application/json")
