"""What a rebase did, for people and for programs: ``report.md``, ``report.html``, ``report.json``, and pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from pocketgem.checkpoint.durable import write_file
from pocketgem.rebase.judge import Candidate
from pocketgem.rebase.run import Outcome

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
PICTURES = ("positions.png", "marks.png", "distillation.png")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}"
    "img{max-width:100%}"
)


def write_report(folder: Path, outcome: Outcome) -> bool:
    """All of it; returns whether there are pictures, which need matplotlib. Raises CheckpointError, RunError."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(folder, outcome)
    pictures = [name for name in PICTURES if drawn and (name != PICTURES[2] or outcome.curve is not None)]
    write_file(folder / JSON, (json.dumps(outcome.facts(), indent=1) + "\n").encode())
    write_file(folder / MARKDOWN, _markdown(outcome, pictures).encode())
    write_file(folder / HTML, _html(outcome, pictures).encode())
    return drawn


def _drawn(folder: Path, outcome: Outcome) -> bool:
    try:
        from pocketgem.rebase.pictures import draw
    except ImportError:
        return False
    draw(folder, outcome, PICTURES)
    return True


def candidates(outcome: Outcome) -> list[tuple[str, Candidate]]:
    """What was before the gate, in order, with a name for people."""
    found = [("new base alone", outcome.bare), ("old adapter as it is", outcome.reuse)]
    return found + ([("distilled", outcome.distilled)] if outcome.distilled is not None else [])


def headline(outcome: Outcome) -> str:
    """One line."""
    what = {"reuse": "the old weights pass as they are", "distil": "a distilled adapter passes"}
    return f"{outcome.old_base} -> {outcome.new_base}: {what.get(outcome.way or '', 'nothing passes the gate')}"


def _rows(outcome: Outcome) -> list[list[str]]:
    rows = [["", "KL (nat a token)", "effect kept", "answers equal", "token F1", "gate"]]
    for name, one in candidates(outcome):
        marks, verdict = one.marks, one.verdict
        gate = "passes" if verdict.accepted else "; ".join(verdict.reasons)
        rows.append(
            [name, f"{marks.kl:.4f}", f"{marks.kept:.1%}", f"{marks.match:.1%}", f"{marks.f1:.1%}", gate]
        )  # fmt: skip
    return rows


def _lines(outcome: Outcome) -> list[str]:
    limits = outcome.limits
    asked = f"{limits.kept:.0%} of the effect kept, and {limits.match * outcome.consistency:.1%} of the answers equal"
    drawn = f"{limits.match:.0%} of what an answer drawn from the old pair would score, {outcome.consistency:.1%}"
    lines = [
        f"Judged on {outcome.bare.marks.prompts} prompts that nothing learned from. Asked for: {asked} ({drawn}).",
        _predicted(outcome),
    ]
    if outcome.curve is not None:
        lines.append(
            f"Distilled to the {outcome.target} target in {len(outcome.curve.losses)} steps; the weights after step "
            f"{outcome.curve.best} were the best on the prompts that were only watched."
        )
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in outcome.seconds.items())
    sizes = ", ".join(f"{name} {value:,} bytes" for name, value in outcome.nbytes.items())
    return [*lines, f"Time: {seconds}. Sizes: {sizes}."]


def _predicted(outcome: Outcome) -> str:
    if outcome.same_base:
        return "The new base has the very weights that the capsule was recorded on."
    if outcome.predicted is None:
        return "The adapter has no manifest, so how far the base moved was not estimated."
    moved = ", ".join(f"{group} {change:.2%}" for group, change in sorted(outcome.predicted.items()))
    others = f" Also other: {', '.join(outcome.others)}." if outcome.others else ""
    return f"The matrices that the adapter changes moved by (estimated, relative): {moved or 'nothing'}.{others}"


def _markdown(outcome: Outcome, pictures: Sequence[str]) -> str:
    head, *rows = _rows(outcome)
    table = [f"| {' | '.join(row)} |" for row in ([head, ["---"] * len(head), *rows])]
    images = [f"![{name.split('.')[0]}]({name})" for name in pictures]
    parts = [f"# {headline(outcome)}", "\n".join(table), *_lines(outcome), *images]
    return "\n\n".join(parts) + "\n"


def _html(outcome: Outcome, pictures: Sequence[str]) -> str:
    head, *rows = _rows(outcome)
    cells = [f"<tr>{''.join(f'<th>{html.escape(one)}</th>' for one in head)}</tr>"]
    cells += [f"<tr>{''.join(f'<td>{html.escape(one)}</td>' for one in row)}</tr>" for row in rows]
    title = html.escape(headline(outcome))
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in _lines(outcome))
    images = "".join(f'<p><img src="{name}" alt="{name.split(".")[0]}"></p>' for name in pictures)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><table>{''.join(cells)}</table>{paragraphs}{images}</html>\n"
    )
