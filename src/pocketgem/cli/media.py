"""Images, sounds and videos on a command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketgem.cli.screen import Screen
from pocketgem.errors import MediaError

if TYPE_CHECKING:
    from pocketgem.checkpoint.load import Checkpoint
    from pocketgem.llm import LLM
    from pocketgem.media.given import Budget
    from pocketgem.text.media import Kind

KINDS: tuple[Kind, ...] = ("image", "audio", "video")

Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="A picture (PNG, JPEG, WebP, GIF). Repeatable.")
]
Audios = Annotated[
    list[Path] | None, typer.Option("--audio", metavar="FILE", help="A sound (WAV, FLAC, MP3, OGG). Repeatable.")
]
Videos = Annotated[
    list[Path] | None, typer.Option("--video", metavar="FILE", help="A video (MP4, WebM), seen, not heard. Repeatable.")
]
Mmproj = Annotated[
    Path | None, typer.Option("--mmproj", metavar="FILE", help="A GGUF file with the towers of a GGUF model.")
]
ImageBudget = Annotated[
    str,
    typer.Option("--image-budget", metavar="N", help="Tokens for an image: auto, 70, 140, 280, 560 or 1120."),
]
Part = dict[str, Any]


class Form(StrEnum):
    """How text with times is written."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"


Format = Annotated[Form, typer.Option("--format", help="Plain lines, or subtitles.")]


def budget(text: str) -> Budget:
    """Raises MediaError."""
    if text == "auto":
        return "auto"
    from pocketgem.media.given import parse_budget  # here: it loads numpy

    return parse_budget(text)


def parts_of(
    arguments: Sequence[str] | None, images: list[Path] | None, audios: list[Path] | None, videos: list[Path] | None
) -> list[Part]:
    """Parts of a message, each file read, in the order of the command line. Raises MediaError."""
    given = dict(zip(KINDS, (images or [], audios or [], videos or []), strict=True))
    kinds = [*_kinds(arguments or ())]
    usual = [kind for kind in KINDS for _ in given[kind]]
    left = {kind: iter(paths) for kind, paths in given.items()}
    order = kinds if sorted(kinds) == sorted(usual) else usual
    return [part_of(kind, next(left[kind])) for kind in order]


def part_of(kind: Kind, path: Path) -> Part:
    """A file as a part of a message. Raises MediaError."""
    from pocketgem.media.given import read_file

    return {"type": kind, kind: read_file(path)}


def check_towers(checkpoint: Checkpoint, parts: Sequence[Part]) -> None:
    """Raises MediaError, before the model is loaded, where nothing in the checkpoint sees or hears."""
    from pocketgem.checkpoint.load import towers_in
    from pocketgem.checkpoint.towers import TOWER_OF

    for kind in dict.fromkeys(part["type"] for part in parts):
        tower = TOWER_OF[kind]
        if tower not in towers_in(checkpoint):
            raise MediaError(
                f"{checkpoint.where}: no {tower} tower in this checkpoint, so --{kind} has no meaning for it; "
                "a GGUF model's towers are in an mmproj file: --mmproj FILE"
            )


def load_to_sense(
    model: str, parts: Sequence[Part], screen: Screen, *, offline: bool, mmproj: Path | None, **options: Any
) -> LLM:
    """A model that takes these media, loaded. ``options`` are those of ``LLM.load``. Raises InputError."""
    from pocketgem.checkpoint.load import open_checkpoint
    from pocketgem.checkpoint.resolve import resolve

    with screen.waiting(f"loading {Path(model).name or model}", "bytes") as bar:
        checkpoint = with_towers(open_checkpoint(resolve(model, offline=offline)), mmproj)
        check_towers(checkpoint, parts)
        from pocketgem.llm import LLM  # here: it imports torch, and all that can be wrong without it has been said

        return LLM.load(checkpoint, progress=bar, media={part["type"] for part in parts}, **options)


def ready(kind: Kind, model: str, path: Path, *, quiet: bool, as_json: bool, **options: Any) -> tuple[LLM, Any, Screen]:
    """The model loaded, the file as it was given, where to write. Raises InputError, for the file first."""
    part, screen = part_of(kind, path), Screen(quiet=quiet, silent=as_json)
    return load_to_sense(model, [part], screen, **options), part[kind], screen


def with_towers(checkpoint: Checkpoint, mmproj: Path | None) -> Checkpoint:
    """The checkpoint with the towers of an mmproj file, where one was given. Raises CheckpointError."""
    if mmproj is None:
        return checkpoint
    from pocketgem.checkpoint.mmproj import with_mmproj

    return with_mmproj(checkpoint, mmproj)


def _kinds(arguments: Sequence[str]) -> Iterator[Kind]:
    """Which options for media stand on a command line, in their order."""
    for argument in itertools.takewhile(lambda one: one != "--", arguments):
        name = argument.partition("=")[0].removeprefix("--")
        if argument.startswith("--"):
            yield from (kind for kind in KINDS if kind == name)
