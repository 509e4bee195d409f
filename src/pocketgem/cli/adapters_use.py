"""The verbs of ``pocketgem adapters`` that open a base or write an adapter: add, check, merge, export, convert."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import pocketgem.cli.options as o
from pocketgem.cli.adapters import AnyAdapter, Folder, app, entry_json, open_with, registry_at
from pocketgem.cli.common import FAILED, HELP, one_line, refuse, size_text
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.adapters.adapter import Adapter
    from pocketgem.adapters.manifest import Manifest
    from pocketgem.adapters.registry import Entry, Registry
    from pocketgem.checkpoint.load import Checkpoint
    from pocketgem.llm import LLM


class Form(StrEnum):
    """What is written; the same words as in ``adapters/forms.py``, which imports torch."""

    PEFT = "peft"
    MLX = "mlx"
    GGUF = "gguf"


class MergedType(StrEnum):
    """What changed matrices are stored as."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Base = Annotated[str, typer.Option("--model", metavar="MODEL", help="The base, as for run.")]
MaybeBase = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The base, as for run: where nothing else says what it is."),
]
As = Annotated[str, typer.Option("--name", metavar="NAME", help="The name it gets: letters, digits, . _ and -.")]
Out = Annotated[Path, typer.Option("--out", metavar="PATH", help="The folder to write, or the file for GGUF.")]
FormChoice = Annotated[
    Form, typer.Option("--format", help="peft: transformers, vLLM, pocketgem. mlx: mlx-lm. gguf: llama.cpp.")
]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="A folder of PEFT's or mlx-lm's, or a GGUF adapter.")]
Merged = Annotated[Path, typer.Option("--out", metavar="DST", help="A .gguf file, or a folder that gets safetensors.")]
Store = Annotated[
    MergedType | None,
    typer.Option("--dtype", help="Of the changed matrices. Default: the base's own, float32 where it has blocks."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]


@app.command("add", context_settings=HELP)
def add_adapter(
    source: Source,
    name: As,
    model: MaybeBase = None,
    dtype: o.DtypeChoice = o.Dtype.AUTO,
    folder: Folder = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Register an adapter under a name. The base is loaded once, to record what it is and what the adapter does on it.

    A folder that brings its manifest (rebase and export write one) needs no base. What the name stood for before
    is kept; `pocketgem adapters rollback` goes back.
    """
    screen, registry = Screen(quiet=quiet or as_json), registry_at(folder)
    from pocketgem.adapters.manifest import manifest_in

    manifest = manifest_in(source) if source.is_dir() else None
    if model is not None:
        manifest, found = _described(screen, source, model, dtype, manifest, offline=offline)
    elif manifest is None:
        refuse(f"{source} has no manifest: give the base it was made for with --model.")
    else:
        found = open_with(source, manifest)
    entry = _added(registry, name, source, found, manifest)
    if as_json:
        print(json.dumps(entry_json(entry)))
    screen.note(f"{name} stands for {entry.identity[:12]} now, made for {manifest.base_name}")


def _described(
    screen: Screen, source: Path, model: str, dtype: o.Dtype, before: Manifest | None, *, offline: bool
) -> tuple[Manifest, Adapter]:
    """A manifest made on the base; the capsule of an earlier one is still true."""
    llm = _loaded(screen, model, dtype, offline=offline)
    from pocketgem.adapters.manifest import manifest_of

    found = open_with(source, before, _experts(llm.checkpoint))
    capsule = before.capsule if before is not None else None
    return manifest_of(llm.model, llm.checkpoint, found, llm.tokenizer, capsule=capsule), found


def _added(registry: Registry, name: str, source: Path, found: Adapter, manifest: Manifest) -> Entry:
    """Another format becomes PEFT's first: one is enough to serve."""
    from pocketgem.adapters import forms
    from pocketgem.adapters.peft import WEIGHTS

    if (source / WEIGHTS).is_file():
        return registry.add(name, source, manifest)
    with tempfile.TemporaryDirectory() as made:
        forms.write_adapter(found, forms.Form.PEFT, Path(made) / "adapter")
        return registry.add(name, Path(made) / "adapter", manifest)


@app.command("check", context_settings=HELP)
def check_adapter(
    adapter: AnyAdapter,
    model: Base,
    dtype: o.DtypeChoice = o.Dtype.AUTO,
    folder: Folder = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Put an adapter on a base and say whether all of it is used, whether it acts, and whether the base is its own.

    Exit code 1 if something is wrong.
    """
    screen = Screen(quiet=quiet or as_json)
    from pocketgem.adapters.where import where_is

    path = where_is(adapter, registry_at(folder))
    llm = _loaded(screen, model, dtype, offline=offline)
    from pocketgem.adapters.check import check

    found = check(path, llm.model, llm.checkpoint, llm.tokenizer)
    good = all(one.good for one in found)
    if as_json:
        print(json.dumps({"good": good, "checks": [asdict(one) for one in found]}))
    else:
        for one in found:
            print(f"{'ok  ' if one.good else 'FAIL'}  {one.name:9} {one_line(one.text)}")
    if not good:
        raise typer.Exit(FAILED)


@app.command("merge", context_settings=HELP)
def merge_adapter(
    model: o.Model,
    adapter: AnyAdapter,
    out: Merged,
    dtype: Store = None,
    allow_drift: o.AllowDrift = False,
    force: Force = False,
    folder: Folder = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a model with an adapter's changes in its weights, for runtimes that know no adapters.

    Changed matrices of a quantised base are stored in float32 unless --dtype says otherwise; `pocketgem quantize` makes
    the result small again.
    """
    if out.exists() and not force:
        refuse(f"{out} is already there; choose another name, or give --force.")
    screen = Screen(quiet=quiet or as_json)
    from pocketgem.adapters.drift import checked
    from pocketgem.adapters.manifest import manifest_in
    from pocketgem.adapters.merge import changes_of
    from pocketgem.adapters.where import where_is
    from pocketgem.checkpoint.save_gguf import Retyped
    from pocketgem.convert import export

    path, checkpoint = where_is(adapter, registry_at(folder)), _checkpoint(model, offline=offline)
    manifest = manifest_in(path) if path.is_dir() else None
    found = open_with(path, manifest, _experts(checkpoint))
    if manifest is not None:
        screen.note(checked(manifest, checkpoint, allow_drift, identity=found.identity).text)
    changes = Retyped(changes_of(checkpoint, found.deltas), None if dtype is None else export.TYPES[dtype.value])
    with screen.waiting(f"writing {out.name}", "bytes") as bar:
        if out.suffix == ".gguf":
            done = export.export_to_gguf(model, out, offline=offline, progress=bar, changes=changes)
        else:
            done = export.export_to_safetensors(
                model, out, offline=offline, replace=force, progress=bar, changes=changes
            )
    if as_json:
        print(json.dumps(asdict(done)))
    screen.note(f"{done.path}: {done.format}, {size_text(done.bytes)}, {len(found.deltas)} matrices changed")


@app.command("export", context_settings=HELP)
def export_adapter(
    adapter: AnyAdapter,
    form: FormChoice,
    out: Out,
    model: MaybeBase = None,
    force: Force = False,
    folder: Folder = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a registered or shipped adapter in the format of another runtime."""
    from pocketgem.adapters.where import where_is

    path = where_is(adapter, registry_at(folder))
    _write(path, form, out, model, force=force, offline=offline, as_json=as_json, quiet=quiet)


@app.command("convert", context_settings=HELP)
def convert_adapter(
    source: Source,
    form: FormChoice,
    out: Out,
    model: MaybeBase = None,
    force: Force = False,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write an adapter's file or folder in another format; nothing is registered."""
    _write(source, form, out, model, force=force, offline=offline, as_json=as_json, quiet=quiet)


def _write(
    path: Path, form: Form, out: Path, model: str | None, *, force: bool, offline: bool, as_json: bool, quiet: bool
) -> None:
    if out.exists() and not force:
        refuse(f"{out} is already there; choose another name, or give --force.")
    if force and out.exists():
        _check_ours(out)
    from pocketgem.adapters import forms
    from pocketgem.adapters.dialect import read_dialect
    from pocketgem.adapters.manifest import manifest_in

    checkpoint = None if model is None else _checkpoint(model, offline=offline)
    manifest = manifest_in(path) if path.is_dir() else None
    found = open_with(path, manifest, _experts(checkpoint))
    dialect = read_dialect(path) if path.is_dir() else None
    notes = forms.write_adapter(
        found,
        forms.Form(form.value),
        out,
        family=_family(checkpoint, manifest),
        layers=None if checkpoint is None else checkpoint.config.num_layers,
        manifest=manifest,
        dialect=dialect,
    )
    if as_json:
        print(json.dumps({"path": str(out), "format": form.value, "identity": found.identity, "notes": notes}))
    screen = Screen(quiet=quiet or as_json)
    screen.note(f"{out}: {form.value}, {len(found.deltas)} matrices")
    for note in notes:
        screen.note(note)


def _family(checkpoint: Checkpoint | None, manifest: Manifest | None) -> str | None:
    if checkpoint is not None:
        return checkpoint.config.family
    return None if manifest is None else manifest.family


def _check_ours(out: Path) -> None:
    """What --force replaces is an adapter, not somebody's folder."""
    if out.is_dir() and any(out.iterdir()) and not (out / "adapter_config.json").is_file():
        refuse(f"{out} holds something that is no adapter; choose another name.")


# ---- opening ---------------------------------------------------------------------------------------------------------


def _loaded(screen: Screen, model: str, dtype: o.Dtype, *, offline: bool) -> LLM:
    with screen.waiting("loading", "bytes") as bar:
        from pocketgem.llm import LLM

        return LLM.load(model, dtype=o.torch_dtype(dtype), offline=offline, progress=bar)


def _checkpoint(model: str, *, offline: bool) -> Checkpoint:
    from pocketgem.checkpoint.load import open_checkpoint
    from pocketgem.checkpoint.resolve import resolve

    return open_checkpoint(resolve(model, offline=offline))


def _experts(checkpoint: Checkpoint | None) -> int | None:
    found = None if checkpoint is None else checkpoint.config.experts
    return None if found is None else found.num_experts
