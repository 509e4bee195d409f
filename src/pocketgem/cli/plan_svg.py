"""The bars of a plan as an SVG file: no fonts, scripts or links in it, so that it can stand in a page or a README."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from pocketgem.cli.common import one_line
from pocketgem.sizes import gib

if TYPE_CHECKING:
    from pocketgem.info.plan import Bar
    from pocketgem.memory.fit import Wish
    from pocketgem.memory.plan import Plan

WIDTH, LEFT, RIGHT, ROW, THICK = 860, 64, 176, 64, 34
CHARACTERS = 120  # of a line of the answer
EDGE = 'stroke="#c0392b" stroke-width="2" stroke-dasharray="4 3"'
COLOURS = {
    "weights, mapped": "#3b6fb6",
    "weights": "#2a9db0",
    "experts' memory": "#7b9fe0",
    "tables' rows": "#7fd0d8",
    "keys and values": "#4c9f50",
    "work": "#e0a83a",
    "program": "#a05fa8",
}
ON_DISK = ("#b8bcc4", "#9aa0aa", "#d0d3d9", "#84898f")


def write_svg(path: Path, plan: Plan, wish: Wish) -> None:
    """Draw a plan into ``path``: all of the file, or none of it. Raises OSError."""
    from pocketgem.info.plan import answer, bars_of, title

    text = svg_of(title(plan), answer(plan, wish), list(bars_of(plan, wish)))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def svg_of(title: str, answer: str, bars: list[Bar]) -> str:
    """The picture: a title, a bar for each place to one scale, what the colours mean, and the answer."""
    scale = (WIDTH - LEFT - RIGHT) / max(max(bar.total, bar.limit or 0) for bar in bars)
    colours = _colours(bars)
    legend = 58 + ROW * len(bars) + 8
    lines = (len(colours) + 3) // 4
    said = textwrap.wrap(answer, CHARACTERS)
    height = legend + 24 * lines + 18 + 16 * len(said)
    body = [_text(16, 30, title, size=15, weight="bold")]
    for index, bar in enumerate(bars):
        body += _bar(bar, 50 + ROW * index, scale, colours)
    body += _legend(colours, legend)
    body += [_text(16, height - 16 * (len(said) - i), line, size=12) for i, line in enumerate(said)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" role="img">\n<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _colours(bars: list[Bar]) -> dict[str, str]:
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    grey = iter(ON_DISK * len(names))
    return {name: COLOURS.get(name) or next(grey) for name in names}


def _bar(bar: Bar, top: int, scale: float, colours: dict[str, str]) -> Iterator[str]:
    yield _text(16, top + THICK / 2 + 5, bar.place, size=13, weight="bold")
    at = float(LEFT)
    for name, size in bar.parts.items():
        width = size * scale
        yield (
            f'<rect x="{at:.2f}" y="{top}" width="{width:.2f}" height="{THICK}" fill="{colours[name]}">'
            f"<title>{escape(one_line(name))}: {gib(size)}</title></rect>"
        )
        if width > 70:
            yield _text(at + width / 2, top + THICK / 2 + 4, gib(size), size=11, anchor="middle", fill="#ffffff")
        at += width
    end = at
    if bar.limit is not None:
        limit = LEFT + bar.limit * scale
        end = max(at, limit)
        yield f'<path d="M{limit:.2f} {top - 6}v{THICK + 12}" {EDGE}/>'
    beside = gib(bar.total) + (f" of {gib(bar.limit)}" if bar.limit else "")
    yield _text(end + 8, top + THICK / 2 + 5, beside, size=12)


def _legend(colours: dict[str, str], top: int) -> Iterator[str]:
    for index, (name, colour) in enumerate(colours.items()):
        x, y = 16 + index % 4 * 205, top + index // 4 * 24
        shown = name if name in COLOURS else f"{name} (stays there)"
        yield f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}"/>'
        yield _text(x + 20, y + 12, shown, size=12)


def _text(
    x: float, y: float, text: str, *, size: int, weight: str = "normal", anchor: str = "start", fill: str = "#222222"
) -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(one_line(text))}</text>'
    )
