"""``pocketgem synth``: a file of a released layout's size with random weights, to measure with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import pocketgem.cli.options as o
from pocketgem.cli.common import refuse
from pocketgem.cli.screen import Screen


class Spread(StrEnum):
    """How rows spread over experts."""

    EVEN = "even"
    SKEWED = "skewed"


class Format(StrEnum):
    """What the matrices are stored as."""

    Q4_0 = "q4_0"
    Q8_0 = "q8_0"


Layout = Annotated[str, typer.Argument(metavar="LAYOUT", help="A released layout, such as gemma-4-E2B.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="The GGUF file to write.")]
FormatChoice = Annotated[Format, typer.Option("--format", help="How matrices are stored.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="The same seed gives the same weights.")]
RoutingChoice = Annotated[Spread, typer.Option("--routing", help="Whether some experts are used more than others.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")]


def write_synthetic(
    layout: Layout,
    file: Target,
    form: FormatChoice = Format.Q4_0,
    seed: Seed = 0,
    routing: RoutingChoice = Spread.EVEN,
    force: Force = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a checkpoint with a released layout's shapes and random weights.

    It has the size and the speed of the real one, and writes noise: for measuring where the weights cannot be had.
    """
    if file.exists() and not force:
        refuse(f"{file} is already there; choose another name, or give --force.")
    screen = Screen(quiet=quiet)
    with screen.waiting(f"writing {file.name}", "bytes") as bar:
        from pocketgem.checkpoint.synth import Routing, synthesize
        from pocketgem.checkpoint.types import StoredType

        kind = StoredType(form.value.upper())
        synthesize(layout, file, kind, seed=seed, routing=Routing(routing.value), progress=bar)
    screen.note(f"{file}: synthetic {layout}, random weights, {file.stat().st_size / 1e9:.2f} GB")
