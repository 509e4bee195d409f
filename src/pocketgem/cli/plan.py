"""``pocketgem plan``: where every byte of a model will lie, before anything is loaded, and whether that fits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pocketgem.cli.options as o
from pocketgem.cli.common import one_line, refuse
from pocketgem.memory.place import Place
from pocketgem.sizes import gib

if TYPE_CHECKING:
    from pocketgem.checkpoint.types import StoredType
    from pocketgem.info.plan import Bar
    from pocketgem.memory.fit import Wish
    from pocketgem.memory.plan import Plan

UNWRAPPED = 1000  # columns where no terminal limits them: in a pipe every row is one line
BAR = 60  # columns
MOST_SEQUENCES = 1024
# Letters tell the parts apart where there is no colour.
STYLES = {
    "weights, mapped": ("W", "blue"),
    "weights": ("w", "cyan"),
    "experts' memory": ("e", "bright_blue"),
    "tables' rows": ("t", "bright_cyan"),
    "keys and values": ("k", "green"),
    "work": ("a", "yellow"),
    "program": ("p", "magenta"),
}
OTHER = (".", "bright_black")  # what stays on the disk


class DeviceChoice(StrEnum):
    """What the weights are multiplied on."""

    CPU = "cpu"
    CUDA = "cuda"


Target = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="As for run; or a config.json, or a released layout such as gemma-4-31B."),
]
DeviceMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="The card's memory, such as 24GiB.")]
Device = Annotated[DeviceChoice, typer.Option("--device", help="Where the layers would run.")]
Sequences = Annotated[int, typer.Option(min=1, max=MOST_SEQUENCES, help="Conversations side by side, each as long.")]
Format = Annotated[str | None, typer.Option(metavar="TYPE", help="As if the weights were stored so: q4_0, q8_0, bf16.")]
Images = Annotated[bool, typer.Option("--images", help="Images will be shown: count what sees them.")]
Audio = Annotated[bool, typer.Option("--audio", help="Sound will be played: count what hears it.")]
Svg = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw the bars into an SVG file.")]


def plan_model(
    model: Target,
    memory: o.Memory = None,
    device: Device = DeviceChoice.CPU,
    device_memory: DeviceMemory = None,
    context: o.Context = None,
    sequences: Sequences = 1,
    ple: o.Ple = Place.AUTO,
    expert_memory: o.ExpertMemory = None,
    format: Format = None,
    threads: o.Threads = None,
    dtype: o.DtypeChoice = o.Dtype.AUTO,
    keep_packed: o.KeepPacked = True,
    images: Images = False,
    audio: Audio = False,
    offline: o.Offline = False,
    svg: Svg = None,
    as_json: o.Json = False,
) -> None:
    """Show where every byte of a model will lie, and the most memory it will take, before anything is loaded.

    With --memory or --device-memory, places and context are chosen so that it fits; what cannot fit is refused, with
    the smallest budget that can and what would help.
    """
    if device_memory is not None and device is DeviceChoice.CPU:
        refuse("--device-memory is a card's; add --device cuda.")
    if svg is not None and (svg.suffix != ".svg" or not svg.parent.is_dir()):
        refuse(f"--svg {svg}: give a name that ends in .svg in a folder that exists.")
    from pocketgem.engine.request import checked_context
    from pocketgem.info.plan import as_data, held_by
    from pocketgem.memory.fit import Wish
    from pocketgem.memory.options import Options, plan_for
    from pocketgem.memory.program import base_of_a_new_process

    wish = Wish(o.size(memory), o.size(device_memory), context, ple, o.size(expert_memory))
    held = held_by(model, stored_type(format), offline=offline)
    checked_context(context, held.config)
    options = Options(
        sequences=sequences,
        threads=threads,
        device=device is DeviceChoice.CUDA,
        dtype=None if dtype is o.Dtype.AUTO else dtype.value,
        keep_packed=keep_packed,
        media=frozenset(kind for kind, wanted in (("vision", images), ("audio", audio)) if wanted),
    )
    made = plan_for(held, wish, options, base_of_a_new_process())
    if svg is not None:
        from pocketgem.cli.plan_svg import write_svg

        write_svg(svg, made, wish)
    if as_json:
        print(json.dumps(as_data(made, wish)))
        return
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = console.width if console.is_terminal else UNWRAPPED
    show(console, made, wish)


def stored_type(text: str | None) -> StoredType | None:
    """``q4_0`` -> the type. Raises UsageError for a word that names none weights are stored as."""
    from pocketgem.checkpoint.types import StoredType

    known = [type for type in StoredType if type.packed or type in ("BF16", "F16", "F32")]
    found = next((type for type in known if text is not None and type.lower() == text.lower()), None)
    if text is not None and found is None:
        refuse(f"--format {text[:40]!r}: give one of {', '.join(type.lower() for type in known)}.")
    return found


def show(console: Console, plan: Plan, wish: Wish) -> None:
    """The table, the bars, the phases and the answer."""
    from pocketgem.info.plan import answer, bars_of, title

    console.print(Text(one_line(title(plan)), style="bold"), soft_wrap=True)
    console.print(_lines(plan))
    console.print()
    for row in draw_bars(bars_of(plan, wish), colour=console.is_terminal and not console.no_color):
        console.print(row, soft_wrap=True)
    console.print()
    console.print(_phases(plan))
    console.print()
    console.print(Text(one_line(answer(plan, wish)), style="bold"))


def _lines(plan: Plan) -> Table:
    table = _table(
        ("part", "left"), ("in the file", "right"), ("in memory", "right"), ("place", "left"), ("why", "left")
    )
    for line in plan.lines:
        stored = "" if line.stored is None else gib(line.stored)
        table.add_row(line.name, stored, gib(line.size), line.place + ("*" if line.mapped else ""), one_line(line.why))
    table.add_row("while it runs", "", gib(plan.at("ram") + plan.at("disk")), "ram", "* pages of a file")
    if plan.setting.device:
        table.add_row("", "", gib(plan.on_device), "device", "")
    return table


def _phases(plan: Plan) -> Table:
    table = _table(
        ("memory by phase", "left"), ("private", "right"), ("of files", "right"), ("together", "right"), ("", "left")
    )
    for phase in plan.phases:
        notes = [f"{gib(phase.passing)} pass through once and can go" if phase.passing else ""]
        notes.append("predicted peak (VmHWM)" if phase is plan.highest else "")
        shown = "; ".join(filter(None, reversed(notes)))
        table.add_row(phase.name, gib(phase.private), gib(phase.mapped), gib(phase.total), shown)
    return table


def draw_bars(bars: Iterable[Bar], *, colour: bool) -> list[Text]:
    """A stacked bar for each place, all to one scale, a mark at its budget, and what the letters mean."""
    bars = list(bars)
    scale = max(max(bar.total, bar.limit or 0) for bar in bars) / BAR
    rows, seen = [], {}
    for bar in bars:
        row = Text(f"{bar.place:5}")
        at = edge = 0
        for name, size in bar.parts.items():
            letter, style = STYLES.get(name, OTHER)
            seen[name] = letter, style
            at += size
            width, edge = round(at / scale) - edge, round(at / scale)
            row.append("\u2588" * width if colour else letter * width, style=style if colour else "")
        row.append(f"{_mark(bar, edge, scale)}  {gib(bar.total)}" + (f" of {gib(bar.limit)}" if bar.limit else ""))
        rows.append(row)
    rows.append(_legend(seen, colour=colour))
    return rows


def _mark(bar: Bar, edge: int, scale: float) -> str:
    """Room up to the budget, and where that is."""
    return "" if bar.limit is None else " " * max(0, round(bar.limit / scale) - edge) + "|"


def _legend(seen: dict[str, tuple[str, str]], *, colour: bool) -> Text:
    row = Text("     ")
    for name, (letter, style) in seen.items():
        row.append("\u2588 " if colour else f"{letter} ", style=style if colour else "")
        row.append(f"{name}   " if name in STYLES else f"{name} (on the disk)   ")
    return row


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    return table
