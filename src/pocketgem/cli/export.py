"""``pocketgem export``: a model for another runtime; ``pocketgem verify``: whether its files are still as written."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import pocketgem.cli.options as o
from pocketgem.cli.common import FAILED, one_line, refuse, size_text
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.convert.export import Exported


class Format(StrEnum):
    """What is written."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    LITERTLM = "litertlm"


class Dtype(StrEnum):
    """What weights are stored as in a safetensors folder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Target = Annotated[Path, typer.Argument(metavar="DST", help="The file to write; for safetensors the folder.")]
FormatChoice = Annotated[
    Format,
    typer.Option(
        "--format", help="gguf: llama.cpp, Ollama, LM Studio. safetensors: transformers, vLLM, MLX. litertlm: phones."
    ),
]
DtypeChoice = Annotated[
    Dtype | None, typer.Option("--dtype", help="safetensors: store weights so. Default: whatever rounds nothing.")
]
ShardSize = Annotated[
    float, typer.Option("--shard-size", min=0.001, metavar="GB", help="safetensors: the largest file, in gigabytes.")
]
Context = Annotated[
    int | None, typer.Option("--context", min=256, max=32_768, help="litertlm: tokens of a conversation, at most.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if an earlier export is there.")]
Path_ = Annotated[str, typer.Argument(metavar="PATH", help="A file or folder that export wrote, or a model by name.")]


def export_model(
    model: o.Model,
    target: Target,
    form: FormatChoice,
    dtype: DtypeChoice = None,
    shard_size: ShardSize = 5.0,
    context: Context = None,
    force: Force = False,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a model for another runtime: one GGUF file, a safetensors folder, or a package for phones.

    Tokenizer, chat template, sampling defaults and quality card go along. The result is complete or not there, and
    carries SHA-256 sums that `pocketgem verify` compares. docs/export.md says which runtime takes what.
    """
    _check_options(form, dtype, shard_size, context)
    screen = Screen(quiet=quiet or as_json)
    _check_target(target, form, force)
    with screen.waiting(f"writing {target.name}", "bytes") as bar:
        from pocketgem.convert import export, litertlm

        if form is Format.GGUF:
            done = export.export_to_gguf(model, target, offline=offline, progress=bar)
        elif form is Format.SAFETENSORS:
            done = export.export_to_safetensors(
                model,
                target,
                dtype=dtype.value if dtype else None,
                shard_size=int(shard_size * 1e9),
                offline=offline,
                replace=force,
                progress=bar,
            )
        else:
            done = litertlm.export_to_litertlm(
                model, target, context=context or litertlm.CONTEXT, offline=offline, say=screen.note, progress=bar
            )
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        _tell(screen, done)


def _check_options(form: Format, dtype: Dtype | None, shard_size: float, context: int | None) -> None:
    if form is not Format.SAFETENSORS and (dtype is not None or shard_size != 5.0):
        refuse(f"--dtype and --shard-size are for --format safetensors; a {form} file is not made with them.")
    if form is not Format.LITERTLM and context is not None:
        refuse("--context is for --format litertlm: other files serve any context the model can.")


def _check_target(target: Path, form: Format, force: bool) -> None:
    if not target.exists() or (form is Format.SAFETENSORS and target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        refuse(f"{target} is already there; choose another name, or give --force.")


def _tell(screen: Screen, done: Exported) -> None:
    exact = "nothing rounded" if done.lossless else "rounded"
    screen.note(f"{done.path}: {done.format}, {done.dtype}, {size_text(done.bytes)}, {exact}")
    for note in done.notes:
        screen.note(note)


def verify_files(path: Path_, offline: o.Offline = False, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Compare files with their SHA-256 sums: an export's, or those of a model in the hub's cache.

    Exit code 1 if one differs, is missing, or does not belong there.
    """
    screen = Screen(quiet=quiet or as_json)
    with screen.waiting("reading", "bytes") as bar:
        from pocketgem.checkpoint.manifest import verify
        from pocketgem.checkpoint.resolve import resolve

        if Path(path).expanduser().exists():
            found = verify(Path(path).expanduser(), bar)
        else:
            files = resolve(path, offline=offline).files
            found = [checked for file in files for checked in verify(file, bar)]
    bad = [checked for checked in found if not checked.good]
    if as_json:
        print(json.dumps({"good": not bad, "files": [asdict(checked) for checked in found]}))
    else:
        for checked in bad:
            print(one_line(f"{checked.name}: {checked.state}"))
        if not bad:
            screen.note(f"{path}: {len(found)} {'file' if len(found) == 1 else 'files'}, as written")
    if bad:
        raise typer.Exit(FAILED)
