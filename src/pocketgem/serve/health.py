"""``/health``, ``/metrics``, ``/version``, ``/v1/models``: how the server is and what it has, not what was said."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

import pocketgem
from pocketgem.serve.faults import Fault
from pocketgem.serve.metrics import CONTENT_TYPE
from pocketgem.serve.models import Entry, Loaded, Registry
from pocketgem.serve.replies import json_reply
from pocketgem.serve.wiring import Serving


async def live(serving: Serving, request: Request) -> Response:
    """The process answers."""
    return json_reply({"status": "ok"})


async def health(serving: Serving, request: Request) -> Response:
    """Ready for work: 503 when a model has work and made no step for a while."""
    if any(is_stuck(loaded, serving.settings.ready_seconds) for loaded in serving.registry.loaded):
        return json_reply({"status": "stuck"}, 503, {"retry-after": "10"})
    return json_reply({"status": "ok"})


def is_stuck(loaded: Loaded, seconds: float) -> bool:
    service = loaded.service
    return bool(service.running or service.waiting) and service.last_step_age > seconds


async def metrics(serving: Serving, request: Request) -> Response:
    """Counters for Prometheus."""
    meters, registry = serving.metrics, serving.registry
    for name, entry in registry.entries.items():
        service = None if entry.loaded is None else entry.loaded.service
        meters.loaded.labels(name).set(service is not None)
        meters.running.labels(name).set(0 if service is None else service.running)
        meters.waiting.labels(name).set(0 if service is None else service.waiting)
        meters.held.labels(name).set(0 if service is None else service.held)
    return Response(meters.text(), media_type=CONTENT_TYPE)


async def version(serving: Serving, request: Request) -> Response:
    return json_reply({"version": pocketgem.__version__})


async def models(serving: Serving, request: Request) -> Response:
    """All models, in a form that clients of OpenAI's and of Anthropic's API read."""
    names = list(serving.registry.entries)
    data = [_described(serving.registry, entry) for entry in serving.registry.entries.values()]
    return json_reply({"object": "list", "data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})


async def model(serving: Serving, request: Request) -> Response:
    """One model by name. Raises Fault 404."""
    name = request.path_params["name"]
    if not name:
        raise Fault(404, "give the name of a model")
    return json_reply(_described(serving.registry, serving.registry.find(name)))


def _described(registry: Registry, entry: Entry) -> dict[str, object]:
    made = datetime.fromtimestamp(registry.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    name = entry.source.name
    described: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": registry.created,
        "owned_by": "local",
        "type": "model",
        "display_name": name,
        "created_at": made,
        "loaded": entry.loaded is not None,
    }
    if entry.loaded is not None:
        llm = entry.loaded.llm
        described |= {"max_model_len": llm.engine.context, "can_chat": llm.can_chat}
    return described
