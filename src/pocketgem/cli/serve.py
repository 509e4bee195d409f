"""``pocketgem serve``: models behind a local port that OpenAI's and Anthropic's clients speak to."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import pocketgem.cli.options as o
from pocketgem.cli.common import refuse
from pocketgem.cli.media import ImageBudget
from pocketgem.cli.media import budget as budget_of
from pocketgem.cli.run import effect_text
from pocketgem.cli.screen import Screen
from pocketgem.cli.serve_ray import run_replicas, scale_of
from pocketgem.memory.arena import one_arena
from pocketgem.memory.place import Place
from pocketgem.serve.keys import Keys
from pocketgem.serve.loading import Loader
from pocketgem.serve.settings import Settings

if TYPE_CHECKING:
    from pocketgem.llm import LLM
    from pocketgem.serve.models import Source

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="As for run; NAME=MODEL serves it under another name. The first is loaded."
    ),
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.")]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="API keys, one a line, or a name and a key.")
]
OpenToNetwork = Annotated[
    bool,
    typer.Option("--open-to-network-without-key", help="Listen beyond this machine although there are no keys."),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Another name of this server in a Host header. Repeatable."),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", metavar="ORIGIN", help="A web page, such as http://localhost:3000, that may call."),
]
Alias = Annotated[
    list[str] | None,
    typer.Option("--alias", metavar="NAME=MODEL", help="Another name for a served model. Repeatable."),
]
Sequences = Annotated[int, typer.Option("--sequences", min=1, max=256, help="Requests that --memory has room for.")]
Kept = Annotated[
    str | None, typer.Option("--kept", metavar="SIZE", help="Memory of each model for past conversations; 0 for none.")
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="DIR", help="Keep pasts here from one start to the next.")
]
CacheSize = Annotated[str, typer.Option("--cache-size", metavar="SIZE", help="Most bytes of each model there.")]
IdleMinutes = Annotated[
    float | None, typer.Option("--unload-after", metavar="MINUTES", min=0.01, help="Unload a model that nobody used.")
]
Lazy = Annotated[bool, typer.Option("--lazy", help="Load the first model too only when somebody asks for it.")]
MaxBody = Annotated[str, typer.Option("--max-body", metavar="SIZE", help="Largest request.")]
MaxRequests = Annotated[int, typer.Option("--max-requests", min=1, help="Requests in flight; more are told to wait.")]
PerMinute = Annotated[
    int | None, typer.Option("--requests-per-minute", min=1, help="For each key; without keys for each address.")
]
DrainSeconds = Annotated[
    float, typer.Option("--drain-seconds", min=0, help="For requests in flight, when told to end.")
]
LogFile = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="The log's lines go here, not to stderr.")
]
Ray = Annotated[bool, typer.Option("--ray", help="Several replicas, each a process, behind this port: docs/scale.md.")]
Count = Annotated[int | None, typer.Option("--replicas", min=1, max=1024, help="How many with --ray; 2 unless given.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="A Ray cluster that is there: HOST:PORT, or auto."),
]
Mmproj = Annotated[
    list[str] | None,
    typer.Option("--mmproj", metavar="[NAME=]FILE", help="A GGUF file with a GGUF model's towers."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="[[MODEL:]NAME=]FOLDER",
        help="An adapter's folder or registered name, asked for as MODEL:NAME. Repeatable.",
    ),
]
AdapterMemory = Annotated[
    str, typer.Option("--adapter-memory", metavar="SIZE", help="For adapters of each model; idle ones make room.")
]
Remote = Annotated[
    bool, typer.Option("--allow-remote-media", help="Fetch images and the like from public http addresses on request.")
]
AccessLog = Annotated[bool, typer.Option("--access-log/--no-access-log", help="A line of JSON for each request.")]


def serve_models(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    open_to_network: OpenToNetwork = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    alias: Alias = None,
    context: o.Context = None,
    threads: o.Threads = None,
    dtype: o.DtypeChoice = o.Dtype.AUTO,
    ple: o.Ple = Place.AUTO,
    device: o.DeviceChoice = o.Device.CPU,
    keep_packed: o.KeepPacked = True,
    expert_memory: o.ExpertMemory = None,
    memory: o.Memory = None,
    sequences: Sequences = 4,
    kept: Kept = None,
    cache_dir: CacheDir = None,
    cache_size: CacheSize = "4GiB",
    mmproj: Mmproj = None,
    adapter: Adapters = None,
    adapter_memory: AdapterMemory = "1GiB",
    allow_drift: o.AllowDrift = False,
    image_budget: ImageBudget = "auto",
    allow_remote_media: Remote = False,
    think: o.Think = False,
    unload_after: IdleMinutes = None,
    lazy: Lazy = False,
    max_body: MaxBody = "32MiB",
    max_requests: MaxRequests = 128,
    requests_per_minute: PerMinute = None,
    drain_seconds: DrainSeconds = 30.0,
    log_file: LogFile = None,
    access_log: AccessLog = True,
    ray: Ray = False,
    replicas: Count = None,
    ray_address: RayAddress = None,
    offline: o.Offline = False,
    quiet: o.Quiet = False,
) -> None:
    """Serve models to programs on this machine: OpenAI's and Anthropic's APIs, and a page for a person.

    Only this machine can reach it unless --host says else, and then it wants --api-key-file. Several models are loaded
    when they are asked for; with --memory the one that was idle longest makes room. docs/serve.md says more.
    """
    settings = Settings(
        host=host,
        port=port,
        keys=Keys() if api_key_file is None else Keys.from_file(api_key_file),
        allow_hosts=tuple(allow_host or ()),
        allow_origins=tuple(allow_origin or ()),
        max_body=o.size(max_body) or 0,
        max_requests=max_requests,
        requests_per_minute=requests_per_minute,
        drain_seconds=drain_seconds,
        allow_remote_media=allow_remote_media,
        thinking=think,
    )
    settings.check(open_to_all=open_to_network)
    scale = scale_of(replicas, threads, ray_address, wanted=ray)
    limit, budget = o.size(memory), o.size(expert_memory)
    pasts = 0 if kept == "0" else o.size(kept)
    room = o.size(cache_size)
    names = named(models)
    aliases = aliases_of(alias or [], names)
    screen = Screen(quiet=quiet, silent=False)
    one_arena()  # before torch and the engine start their threads
    from pocketgem.serve.server import address_of, bind  # here: the help does not wait for a web server

    sock = bind(host, port)
    if scale is not None:
        threads = scale.threads
    options = {
        "dtype": None if dtype is o.Dtype.AUTO else dtype.value, "context": context, "threads": threads, "ple": ple,
        "device": device, "keep_packed": keep_packed, "expert_memory": budget, "memory": limit,
        "sequences": sequences, "kept": pasts, "cache_size": room, "offline": offline,
        "image_budget": budget_of(image_budget), "adapter_memory": o.size(adapter_memory), "allow_drift": allow_drift,
    }  # fmt: skip
    load = Loader(options, mmprojs_of(mmproj or [], names), cache_dir, adapters_of(adapter or [], names))
    with sock:
        weights = {name: load.weight(name, model) for name, model in names.items()}
        first = next(iter(names))
        idle = None if unload_after is None else unload_after * 60
        if scale is not None:
            from pocketgem.serve.worker import Plan

            hidden, early = replace(settings, keys=Keys()), () if lazy else (first,)
            plan = Plan(load, names, weights, early, hidden, aliases, limit, idle)
            run_replicas(settings, sock, plan, scale, log=log_file, access=access_log, screen=screen)
            return
        ready = {} if lazy else {first: loaded(load, first, names[first], screen)}
        for name in names:
            screen.note(f"{name}: {'ready' if name in ready else 'is loaded when it is asked for'}")
        screen.note(f"serving at {address_of(sock)}; for OpenAI's clients {address_of(sock)}/v1; Ctrl-C ends")
        sources = [load.source(name, model, weights[name]) for name, model in names.items()]
        run(settings, sock, sources, ready, aliases=aliases, budget=limit, idle=idle, log=log_file, access=access_log)


def loaded(load: Loader, name: str, model: str, screen: Screen) -> LLM:
    """The model, with a bar while it is read; its adapters are proved to act before anybody asks for them."""
    with screen.waiting(f"loading {Path(model).name or model}", "bytes") as progress:
        llm = load(name, model, progress)
    for adapter, folder in load.adapters.get(name, {}).items():
        worn = llm.adapters.add(adapter, folder)
        screen.note(f"{name}:{adapter}: {effect_text(worn)}")
    return llm


def run(
    settings: Settings,
    sock: socket.socket,
    sources: list[Source],
    ready: dict[str, LLM],
    *,
    aliases: dict[str, str],
    budget: int | None,
    idle: float | None,
    log: Path | None,
    access: bool,
) -> None:
    """Serve until a signal says to end."""
    from pocketgem.serve.app import App
    from pocketgem.serve.log import Log
    from pocketgem.serve.metrics import Metrics
    from pocketgem.serve.models import Registry
    from pocketgem.serve.server import run as run_server
    from pocketgem.serve.server import server_of
    from pocketgem.serve.wiring import Serving

    lines = Log(requests=access) if log is None else Log.to_file(log, requests=access)
    registry = Registry(sources, lines, budget=budget, idle_seconds=idle, aliases=aliases)
    app = App(Serving(settings, registry, Metrics(), lines), ready)
    ready.clear()
    run_server(server_of(app, settings, lines), sock)


def named(models: list[str]) -> dict[str, str]:
    """Names to models, in the order given. Raises UsageError for two of one name."""
    found: dict[str, str] = {}
    for text in models:
        name, _, model = text.partition("=")
        if not model or Path(text).exists():
            name, model = short_name(text), text
        if name in found:
            refuse(f"two models have the name {name!r}; give one as NAME=MODEL.")
        found[name] = model
    return found


def short_name(model: str) -> str:
    """A file's name without its ending, a folder's name; a name on the hub stays whole."""
    path = Path(model)
    if not path.exists():
        return model
    return path.resolve().name.removesuffix(".gguf")


def adapters_of(texts: list[str], names: dict[str, str]) -> dict[str, dict[str, Path]]:
    """Of each model, folders of adapters by name. Raises UsageError, InputError for one that is not there."""
    from pocketgem.adapters.where import where_is

    found: dict[str, dict[str, Path]] = {}
    for text in texts:
        given, _, place = ("", "", text) if Path(text).exists() else text.rpartition("=")
        folder = where_is(place)
        model, _, name = given.rpartition(":")
        model, name = model or next(iter(names)), name or named_after(folder, place)
        if len(names) > 1 and ":" not in given:
            refuse(f"--adapter {text[:80]!r}: say whose it is, MODEL:NAME=FOLDER ({', '.join(names)}).")
        if model not in names or name in found.setdefault(model, {}) or ":" in name:
            refuse(f"--adapter {text[:80]!r}: give each a NAME=FOLDER of its own, for a served model.")
        found[model][name] = folder
    return found


def named_after(folder: Path, place: str) -> str:
    """A name for an adapter that was given none: the registered one, its folder's, or its run's where that is just
    ``adapter``."""
    if not Path(place).exists():
        return place
    folder = folder.resolve()
    return (folder.parent if folder.name == "adapter" else folder).name.replace(":", "-")


def mmprojs_of(texts: list[str], names: dict[str, str]) -> dict[str, Path]:
    """Files of towers by the names of their models. Raises UsageError for a name that is not served."""
    found: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not file or Path(text).exists():
            name, file = next(iter(names)), text
        if name not in names or name in found:
            refuse(f"--mmproj {text[:80]!r}: give one FILE, or NAME=FILE for each served model ({', '.join(names)}).")
        found[name] = Path(file)
    return found


def aliases_of(texts: list[str], names: dict[str, str]) -> dict[str, str]:
    """Other names. Raises UsageError for one that points nowhere or is taken."""
    found: dict[str, str] = {}
    for text in texts:
        alias, _, name = text.partition("=")
        if not alias or name not in names or alias in names:
            refuse(f"--alias {text[:80]!r}: give NAME=MODEL with the name of a served model ({', '.join(names)}).")
        found[alias] = name
    return found
