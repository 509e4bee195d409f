"""``pocketgem serve --ray``: the same server in front of several replicas."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from pocketgem.cli.common import refuse
from pocketgem.cli.screen import Screen
from pocketgem.serve.scale import Scale
from pocketgem.serve.settings import Settings

if TYPE_CHECKING:
    from pocketgem.serve.worker import Plan

REPLICAS = 2


def scale_of(replicas: int | None, threads: int | None, address: str | None, *, wanted: bool) -> Scale | None:
    """What the command line says; None without --ray. Raises UsageError, and InputError where Ray is missing."""
    if not wanted:
        for name, value in (("--replicas", replicas), ("--ray-address", address)):
            if value is not None:
                refuse(f"{name} is for --ray; give it too.")
        return None
    count = replicas or REPLICAS
    scale = Scale.here(count, threads) if address is None else Scale(count, threads, address)
    scale.check()
    return scale


def run_replicas(
    settings: Settings, sock: socket.socket, plan: Plan, scale: Scale, *, log: Path | None, access: bool, screen: Screen
) -> None:
    """Start them, serve until a signal says to end, and end them."""
    from pocketgem.serve.app import App
    from pocketgem.serve.log import Log
    from pocketgem.serve.metrics import Metrics
    from pocketgem.serve.models import Registry
    from pocketgem.serve.ray import started
    from pocketgem.serve.relay import Relay
    from pocketgem.serve.server import address_of, server_of
    from pocketgem.serve.server import run as run_server
    from pocketgem.serve.wiring import Serving

    lines = Log(requests=access) if log is None else Log.to_file(log, requests=access)
    each = "a machine each" if scale.threads is None else f"threads of each: {scale.threads}"
    screen.note(f"starting replicas behind Ray: {scale.replicas}; {each}")
    with started(plan, scale) as replicas:
        app = App(Serving(settings, Registry([], lines), Metrics(), lines), table=Relay(replicas).table)
        screen.note(f"serving at {address_of(sock)}; for OpenAI's clients {address_of(sock)}/v1; Ctrl-C ends")
        run_server(server_of(app, settings, lines), sock)
