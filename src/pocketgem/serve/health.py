"""``/health``, ``/metrics``, ``/version``, ``/v1/models``: how the server is and what it has, not what was said."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

import pocketgem
from pocketgem.serve.catalog import Listed, catalog, entry
from pocketgem.serve.metrics import CONTENT_TYPE
from pocketgem.serve.models import Entry, Loaded, Registry
from pocketgem.serve.replies import json_reply
from pocketgem.serve.wiring import Serving
from pocketgem.service import Held
from pocketgem.text.media import KINDS

NOTHING = Held(0, 0, 0, 0)


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
    return service.last_step_age > seconds


async def metrics(serving: Serving, request: Request) -> Response:
    """Counters for Prometheus."""
    meters, registry = serving.metrics, serving.registry
    for name, found in registry.entries.items():
        service = None if found.loaded is None else found.loaded.service
        meters.loaded.labels(name).set(service is not None)
        meters.running.labels(name).set(0 if service is None else service.running)
        meters.waiting.labels(name).set(0 if service is None else service.waiting)
        held = NOTHING if service is None else service.held
        meters.cache.labels(name, "running").set(held.bytes)
        meters.cache.labels(name, "kept").set(held.kept_bytes)
        if found.loaded is not None:
            meters.senses(name, found.loaded.llm.senses)
    return Response(meters.text(), media_type=CONTENT_TYPE)


async def version(serving: Serving, request: Request) -> Response:
    return json_reply({"version": pocketgem.__version__})


async def models(serving: Serving, request: Request) -> Response:
    """All models, each also with every adapter that can be asked for."""
    registry = serving.registry
    named = [(entry, name) for entry in registry.entries.values() for name in (None, *entry.adapters)]
    return json_reply(catalog([_listed(registry, entry, name) for entry, name in named]))


async def model(serving: Serving, request: Request) -> Response:
    """One model by name. Raises Fault 404."""
    registry = serving.registry
    return json_reply(entry(_listed(registry, *registry.choose(request.path_params["name"]))))


def _listed(registry: Registry, found: Entry, adapter: str | None = None) -> Listed:
    llm = None if found.loaded is None else found.loaded.llm
    name = found.source.name
    return Listed(
        name if adapter is None else f"{name}:{adapter}",
        registry.created,
        context=None if llm is None else llm.engine.context,
        chat=None if llm is None else llm.chats_with(adapter),
        loaded=llm is not None and (adapter is None or llm.adapters.is_loaded(adapter)),
        takes=None if llm is None else ("text", *(kind for kind in KINDS if llm.can_chat and llm.senses.can(kind))),
        parent=None if adapter is None else name,
    )
