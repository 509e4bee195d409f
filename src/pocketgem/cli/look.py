"""``pocketgem detect``, ``point`` and ``caption``: what is where in a picture, what happens when in a video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import pocketgem.cli.media as m
import pocketgem.cli.options as o
from pocketgem.cli.common import harmless
from pocketgem.cli.lines import write_whole
from pocketgem.cli.screen import Screen

if TYPE_CHECKING:
    from pocketgem.pointing import Box, Point

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture: PNG, JPEG, WebP or GIF.")]
Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="MP4 or WebM; its first minute is seen, not heard.")]
What = Annotated[str, typer.Argument(metavar="WHAT", help='What to look for, such as "every cat".')]
Draw = Annotated[Path | None, typer.Option("--draw", metavar="FILE", help="Write the picture with them on it, as PNG.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, max=256, help="Pictures taken from the video; 32.")]


def detect_in(
    model: o.Model,
    image: Image,
    what: What,
    draw: Draw = None,
    mmproj: m.Mmproj = None,
    image_budget: m.ImageBudget = "auto",
    max_tokens: o.MaxTokens = None,
    context: o.Context = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Find things in a picture: a box around each, in pixels.

    A line for each: left, top, right, bottom, label, with tabs between. Right and bottom are the first pixels outside.
    """
    llm, given, screen = m.ready(
        "image", model, image, quiet=quiet, as_json=as_json, offline=offline, mmproj=mmproj,
        image_budget=m.budget(image_budget), context=context, threads=threads, memory=o.size(memory),
    )  # fmt: skip
    from pocketgem.pointing import detect

    picture = llm.senses.picture(given)
    boxes = detect(llm, picture, what, tell=screen.note, **o.given(max_tokens=max_tokens))
    if draw is not None:
        _draw(picture, draw, boxes=boxes)
    _show([asdict(one) for one in boxes], as_json=as_json, screen=screen)


def point_in(
    model: o.Model,
    image: Image,
    what: What,
    draw: Draw = None,
    mmproj: m.Mmproj = None,
    image_budget: m.ImageBudget = "auto",
    max_tokens: o.MaxTokens = None,
    context: o.Context = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Point to things in a picture: a line for each, column, row and label, with tabs between."""
    llm, given, screen = m.ready(
        "image", model, image, quiet=quiet, as_json=as_json, offline=offline, mmproj=mmproj,
        image_budget=m.budget(image_budget), context=context, threads=threads, memory=o.size(memory),
    )  # fmt: skip
    from pocketgem.pointing import point

    picture = llm.senses.picture(given)
    points = point(llm, picture, what, tell=screen.note, **o.given(max_tokens=max_tokens))
    if draw is not None:
        _draw(picture, draw, points=points)
    _show([asdict(one) for one in points], as_json=as_json, screen=screen)


def caption_file(
    model: o.Model,
    video: Video,
    frames: Frames = None,
    format: m.Format = m.Form.TEXT,
    mmproj: m.Mmproj = None,
    max_tokens: o.MaxTokens = None,
    context: o.Context = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Tell what happens in a video, with times."""
    llm, given, screen = m.ready(
        "video", model, video, quiet=quiet, as_json=as_json, offline=offline, mmproj=mmproj,
        context=context, threads=threads, memory=o.size(memory),
    )  # fmt: skip
    from pocketgem.pointing import caption

    found = caption(llm, given, frames=frames, tell=screen.note, **o.given(max_tokens=max_tokens))
    if as_json:
        print(json.dumps({"seconds": found.seconds, "lines": [asdict(line) for line in found.lines]}))
    elif format is m.Form.TEXT:
        for line in found.lines:
            print(f"{_clock(line.start)}-{_clock(line.end)}\t{harmless(line.text)}")
    else:
        print(harmless(found.srt if format is m.Form.SRT else found.vtt))


def _draw(picture: Any, path: Path, boxes: Sequence[Box] = (), points: Sequence[Point] = ()) -> None:
    from pocketgem.pointing import draw

    file = draw(picture, boxes, points)
    write_whole(path, lambda place: place.write_bytes(file))


def _show(places: list[dict[str, Any]], *, as_json: bool, screen: Screen) -> None:
    if as_json:
        print(json.dumps(places))
        return
    for place in places:
        print("\t".join(harmless(str(value)) for value in place.values()))
    screen.note(f"{len(places) or 'nothing'} found" if len(places) != 1 else "1 found")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
