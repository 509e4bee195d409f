"""``pocketgem adapters``: adapters by name, what each is made for, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pocketgem.cli.options as o
from pocketgem.cli.common import HELP, count_text, one_line, size_text
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.adapters.adapter import Adapter
    from pocketgem.adapters.manifest import Manifest
    from pocketgem.adapters.registry import Entry, Registry
    from pocketgem.model.lora import LowRank

UNWRAPPED = 1000  # columns where no terminal limits them: in a pipe every row is one line

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a registered adapter.")]
AnyAdapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="A registered or shipped name, a folder, or a GGUF adapter.")
]
Folder = Annotated[
    Path | None,
    typer.Option("--registry", metavar="FOLDER", help="Default: $POCKETGEM_ADAPTERS, or the person's data folder."),
]
Keep = Annotated[
    int | None, typer.Option("--keep", min=0, metavar="N", help="Earlier adapters of a name to keep. Default: all.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed.")]
To = Annotated[
    str | None, typer.Option("--to", metavar="DIGITS", help="The object to stand for, by its first digits (show).")
]

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Adapters by name: add, look at, check against a base, convert, merge, go back.",
    context_settings=HELP,
)


def registry_at(folder: Path | None) -> Registry:
    from pocketgem.adapters.registry import Registry, default_folder

    return Registry(default_folder() if folder is None else folder)


@app.command("list", context_settings=HELP)
def list_adapters(folder: Folder = None, as_json: o.Json = False) -> None:
    """Show the registered adapters, and those that came with pocketgem."""
    from pocketgem.adapters.where import shipped

    entries = registry_at(folder).entries()
    if as_json:
        print(json.dumps({"adapters": [entry_json(one) for one in entries], "shipped": shipped()}))
        return
    table = _table("name", "kind", "rank", "size", "made for", "earlier", numbers=("rank", "size", "earlier"))
    if not entries:
        Screen().note("nothing is registered; `pocketgem adapters add FOLDER --name NAME --model MODEL` does it")
    for one in entries:
        about = one.manifest
        table.add_row(
            one.name,
            about.kind,
            str(about.rank),
            size_text(about.nbytes),
            one_line(about.base_name),
            str(len(one.before)),
        )
    show(table)
    if came := shipped():
        print(f"shipped: {', '.join(came)}")


@app.command("show", context_settings=HELP)
def show_adapter(adapter: AnyAdapter, folder: Folder = None, as_json: o.Json = False) -> None:
    """Show what an adapter changes, kind by kind, what it was made for, and what its name stood for before."""
    from pocketgem.adapters.manifest import manifest_in
    from pocketgem.adapters.where import where_is

    registry = registry_at(folder)
    path = where_is(adapter, registry)
    manifest = manifest_in(path) if path.is_dir() else None
    found = open_with(path, manifest)
    history = registry.history(adapter) if adapter in registry.names() else []
    if as_json:
        print(json.dumps({**adapter_json(found, manifest), "history": [entry_json(one) for one in history]}))
        return
    _say(_facts(found, manifest))
    show(_kinds(found))
    if history:
        print("\nhistory, what it stands for now first (adapters rollback, with --to for any)")
        for one in history:
            print(f"  {one.identity[:12]}  rank {one.manifest.rank}, made for {one_line(one.manifest.base_name)}")


def open_with(path: Path, manifest: Manifest | None, experts: int | None = None) -> Adapter:
    """The adapter there; how many experts its base has follows from the manifest where nobody says it."""
    from pocketgem.adapters.forms import experts_in
    from pocketgem.adapters.peft import open_adapter

    return open_adapter(path, experts or experts_in(manifest))


def _facts(found: Adapter, manifest: Manifest | None) -> dict[str, str]:
    scales = sorted({delta.scale for delta in found.deltas.values()})
    facts = {
        "kind": f"{found.kind}, scale {', '.join(f'{one:g}' for one in scales[:4])}",
        "size": f"{count_text(sum(_parameters(delta) for delta in found.deltas.values()))} parameters",
        "identity": found.identity[:12],
    }
    if found.invocation:
        facts["acts"] = f"from the ids {', '.join(map(str, found.invocation[:16]))} on"
    if manifest is None:
        return {
            **facts,
            "base": f"{one_line(found.base or 'not said')}; no manifest, so it is not known to be any other",
        }
    capsule = manifest.capsule or "none: it can be carried to another base only while this one is there"
    return {**facts, "base": f"{one_line(manifest.base_name)} ({manifest.family})", "capsule": capsule}


def _parameters(delta: LowRank) -> int:
    return sum(part.numel() for part in (delta.A, delta.B, delta.magnitude) if part is not None)


def _kinds(found: Adapter) -> Table:
    from pocketgem.adapters.base import kind_of

    groups: dict[str, list[LowRank]] = {}
    for module, delta in found.deltas.items():
        groups.setdefault(kind_of(module), []).append(delta)
    table = _table(
        "matrix", "changed", "rank", "shapes", "parameters", "change", numbers=("changed", "parameters", "change")
    )
    for kind, deltas in groups.items():
        ranks = sorted({delta.A.shape[-2] for delta in deltas})
        shapes = sorted({" x ".join(map(str, delta.shape)) for delta in deltas})
        table.add_row(
            kind,
            str(len(deltas)),
            _span(ranks),
            ", ".join(shapes[:3]) + (" ..." if len(shapes) > 3 else ""),
            count_text(sum(map(_parameters, deltas))),
            f"{max(_length(delta) for delta in deltas):.3g}",
        )
    return table


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _length(delta: LowRank) -> float:
    """Frobenius' norm of a change, without making it: the trace of (B^T B)(A A^T)."""
    a, b = delta.A.double(), delta.B.double()
    squared = ((b.mT @ b) * (a @ a.mT)).sum()
    return abs(delta.scale) * float(squared.clamp(min=0.0).sqrt())


@app.command("compatible", context_settings=HELP)
def compatible_adapters(
    model: o.Model, folder: Folder = None, offline: o.Offline = False, as_json: o.Json = False, quiet: o.Quiet = False
) -> None:
    """Show which registered adapters go on a model: exactly, with drift, or not. The model is not loaded."""
    screen = Screen(quiet=quiet or as_json)
    with screen.waiting("comparing", "bytes"):
        from pocketgem.adapters.base import Base
        from pocketgem.adapters.drift import drift
        from pocketgem.checkpoint.load import open_checkpoint
        from pocketgem.checkpoint.resolve import resolve

        base = Base(open_checkpoint(resolve(model, offline=offline)))
        found = [(one.name, drift(one.manifest, base)) for one in registry_at(folder).entries()]
    if as_json:
        rows = [{"name": name, "state": one.state, **_drift_json(one)} for name, one in found]
        print(json.dumps({"model": model, "adapters": rows}))
        return
    table = _table("name", "goes on", "why")
    for name, one in found:
        table.add_row(name, {"exact": "exactly", "drift": "with drift", "misfit": "no"}[one.state], one_line(one.text))
    show(table)


def _drift_json(found: object) -> dict[str, object]:
    return {key: getattr(found, key) for key in ("changes", "misfits", "others")}


@app.command("rollback", context_settings=HELP)
def roll_back(
    name: Name, to: To = None, folder: Folder = None, as_json: o.Json = False, quiet: o.Quiet = False
) -> None:
    """Let a name stand for the adapter before, or for any that is still there."""
    registry = registry_at(folder)
    entry = registry.rollback(name) if to is None else registry.point(registry.find(name).name, to)
    _told(entry, f"{name} stands for {entry.identity[:12]} now", as_json=as_json, quiet=quiet)


@app.command("remove", context_settings=HELP)
def remove_adapter(name: Name, folder: Folder = None, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Forget a name. Its files stay until prune."""
    entry = registry_at(folder).remove(name)
    _told(
        entry,
        f"{name} is forgotten; `pocketgem adapters prune --yes` gives its disk space back",
        as_json=as_json,
        quiet=quiet,
    )


@app.command("prune", context_settings=HELP)
def prune_adapters(
    keep: Keep = None, yes: Yes = False, folder: Folder = None, as_json: o.Json = False, quiet: o.Quiet = False
) -> None:
    """Show the files that no name needs any more, and remove them with --yes."""
    found = registry_at(folder).prune(keep=keep, remove=yes)
    size = sum(one.nbytes for one in found)
    if as_json:
        rows = [{"identity": one.identity, "bytes": one.nbytes} for one in found]
        print(json.dumps({"removed": yes, "bytes": size, "objects": rows}))
        return
    for one in found:
        print(f"{one.identity[:12]}  {size_text(one.nbytes)}")
    verb = "removed" if yes else "would be given back; --yes removes them"
    Screen(quiet=quiet).note(f"{len(found)} adapters, {size_text(size)} {verb}")


# ---- how they are shown ----------------------------------------------------------------------------------------------


def entry_json(entry: Entry) -> dict[str, object]:
    about = entry.manifest
    return {
        "name": entry.name, "identity": entry.identity, "folder": str(entry.folder), "kind": about.kind,
        "rank": about.rank, "bytes": about.nbytes, "base": about.base_name, "family": about.family,
        "capsule": about.capsule, "before": entry.before, "after": entry.after,
    }  # fmt: skip


def adapter_json(found: Adapter, manifest: Manifest | None) -> dict[str, object]:
    targets = {
        name: {"shape": delta.shape, "rank": delta.A.shape[-2], "scale": delta.scale}
        for name, delta in found.deltas.items()
    }
    base = found.base if manifest is None else manifest.base_name
    return {
        "folder": found.where, "identity": found.identity, "kind": found.kind, "rank": found.rank, "base": base,
        "bytes": found.nbytes, "manifest": manifest is not None, "invocation": found.invocation, "targets": targets,
    }  # fmt: skip


def _told(entry: Entry, line: str, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(entry_json(entry)))
    else:
        Screen(quiet=quiet).note(line)


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    return table


def show(table: Table) -> None:
    """On stdout, without the spaces that tables leave at line ends."""
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = console.width if console.is_terminal else UNWRAPPED
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().rstrip().splitlines()))


def _say(facts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value))
    show(table)
    print()
