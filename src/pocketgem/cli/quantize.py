"""``pocketgem quantize``: a smaller GGUF file of a model, measured against its source before it has its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table

import pocketgem.cli.options as o
from pocketgem.cli.common import count_text, one_line, refuse, size_text
from pocketgem.cli.screen import Screen, Waiting

if TYPE_CHECKING:
    from pocketgem.checkpoint.card import QualityCard
    from pocketgem.convert.choice import Option
    from pocketgem.convert.quantize import Outcome, Plan, Row

UNWRAPPED = 1000  # columns where no terminal limits them: in a pipe every row is one line
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A .gguf file, a folder with safetensors, OWNER/NAME, or gemma-3-270m.")
]
Target = Annotated[
    Path | None, typer.Argument(metavar="DST", help="The GGUF file to write. With --plan it may be left out.")
]
FormatName = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="q4_0, q4_k, q6_k, q8_0, or auto: measured group by group.")
]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show types and sizes, and write nothing.")]
MaxKl = Annotated[
    float | None,
    typer.Option("--max-kl", min=0.0, metavar="NATS", help="Mean divergence at most. Default: the format's own limit."),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="SIZE", help="With auto: bytes of the file, such as 2.5GiB.")
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="A UTF-8 text to measure over. Default: our own.")
]
Tokens = Annotated[int, typer.Option("--tokens", min=16, max=2048, help="How many of the text's first tokens.")]
Minutes = Annotated[
    float,
    typer.Option("--minutes", min=0.0, help="With auto: how long measuring may take before it goes by rules instead."),
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not measure the result; it carries no quality card.")]
Force = Annotated[bool, typer.Option("--force", help="Keep a result that is over the limits.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace DST if it is there.")]


def quantize_file(
    source: Source,
    target: Target = None,
    form: FormatName = "auto",
    plan: OnlyPlan = False,
    max_kl: MaxKl = None,
    size: Size = None,
    calibration: Calibration = None,
    tokens: Tokens = 512,
    minutes: Minutes = 30.0,
    no_check: NoCheck = False,
    force: Force = False,
    replace: Replace = False,
    threads: o.Threads = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a model with coarser weights as one GGUF file, and measure it.

    The result reads a text beside its source. Where its next-token probabilities stray too far, nothing is written
    (exit code 1). What was measured is kept in the file; pocketgem info shows it.
    """
    _check(target, form, plan=plan, size=size, replace=replace, no_check=no_check, force=force, max_kl=max_kl)
    screen = Screen(quiet=quiet or as_json)
    with Stages(screen) as watch:
        from pocketgem.convert.groups import format_of
        from pocketgem.convert.quantize import Wishes, plan_model, quantize_model

        wishes = Wishes(
            form=format_of(form),
            calibration=calibration,
            tokens=tokens,
            max_kl=max_kl,
            size=None if size is None else bytes_of(size),
            check=not no_check,
            force=force,
            minutes=minutes,
            threads=threads,
        )
        outcome: Outcome | Plan
        if plan or target is None:
            outcome = plan_model(source, wishes, offline=offline, watch=watch)
        else:
            outcome = quantize_model(source, target, wishes, offline=offline, watch=watch)
    print(json.dumps(report(outcome)) if as_json else draw(outcome))


def _check(
    target: Path | None,
    form: str,
    *,
    plan: bool,
    size: str | None,
    replace: bool,
    no_check: bool,
    force: bool,
    max_kl: float | None,
) -> None:
    """What can be said of the command line before torch is loaded."""
    if target is None and not plan:
        refuse("Give a DST to write, or --plan.")
    if target is not None and not plan and target.exists() and not replace:
        refuse(f"{target} is already there; choose another name, or give --replace.")
    if target is not None and target.suffix != ".gguf":
        refuse(f"{target} must end in .gguf, else nothing would load it.")
    if size is not None and form.lower() != "auto":
        refuse("--size goes with --format auto: the other formats have the size they have.")
    if no_check and (force or (max_kl is not None and form.lower() != "auto")):
        refuse("--no-check measures nothing, so --force and --max-kl have nothing to do.")
    if size is not None:
        bytes_of(size)


def bytes_of(text: str) -> int:
    """``2.5GiB``, ``900MB`` or ``123456789`` -> bytes."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kMG]|[KMG]i)?B?", text.strip(), flags=re.ASCII)
    number = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if number <= 0:
        refuse(f"--size takes bytes such as 2.5GiB or 900MB, not {text[:40]!r}.")
    return number


class Stages:
    """One bar after another, as the work goes from stage to stage."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._label = screen, ""
        self._bar: Waiting | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if label != self._label:
            self._close()
            self._label = label
            self._bar = self._screen.waiting(label, "bytes" if label == "writing" else "tokens").__enter__()
        if self._bar is not None:
            self._bar(done, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


# ---- what is shown -------------------------------------------------------------------------------------------------


def report(outcome: Outcome | Plan) -> dict[str, Any]:
    """For ``--json``."""
    from pocketgem.convert.quantize import Plan

    written = not isinstance(outcome, Plan)
    plan = outcome.plan if not isinstance(outcome, Plan) else outcome
    found: dict[str, Any] = {
        "source": plan.checkpoint.where,
        "source_bytes": plan.source_bytes,
        "bytes": plan.nbytes,
        "rows": [asdict(row) for row in (outcome.rows if not isinstance(outcome, Plan) else plan.rows())],
        "groups": {
            group: [{"label": one.label, "bytes": one.nbytes, "kl": one.kl} for one in options]
            for group, options in plan.groups.items()
        },
        "note": plan.note,
    }
    if not written or isinstance(outcome, Plan):
        return found
    return {
        **found,
        "target": str(outcome.target),
        "bytes": outcome.size,
        "exact_blocks": {name: {"exact": exact, "of": blocks} for name, (exact, blocks) in outcome.exact.items()},
        "quality": None if outcome.card is None else asdict(outcome.card),
        "limits": asdict(outcome.limits),
        "faults": outcome.faults,
    }


def draw(outcome: Outcome | Plan) -> str:
    """The tables and what stands under them, for the terminal's width."""
    from pocketgem.convert.quantize import Plan

    plan = outcome if isinstance(outcome, Plan) else outcome.plan
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = console.width if console.is_terminal else UNWRAPPED
    with console.capture() as drawn:
        if plan.groups:
            console.print("Divergence when one group alone is coarser (mean, nats), * chosen", style="bold")
            console.print(_options(plan))
            console.print()
        console.print(_rows(outcome.rows() if isinstance(outcome, Plan) else outcome.rows))
        for line in _lines(outcome, plan):
            console.print(one_line(line), soft_wrap=True)
    return "\n".join(line.rstrip() for line in drawn.get().rstrip().splitlines())


def _rows(rows: Sequence[Row]) -> Table:
    table = _table("part", "tensors", "weights", "was", "bytes", "becomes", "bytes", "how", text=(0, 3, 5, 7))
    for row in rows:
        how = f"grid, {row.exact:,} of {row.blocks:,} blocks exact" if row.how == "grid" else row.how
        table.add_row(
            row.group,
            str(row.tensors),
            count_text(row.weights),
            row.source,
            size_text(row.source_bytes),
            row.type,
            size_text(row.nbytes),
            how,
        )
    before, after = sum(row.source_bytes for row in rows), sum(row.nbytes for row in rows)
    weights = sum(row.weights for row in rows)
    rate = f"{8 * after / weights:.2f} bits a weight"
    table.add_row("all", str(sum(row.tensors for row in rows)), count_text(weights), "", size_text(before), "",
                  size_text(after), rate)  # fmt: skip
    return table


def _options(plan: Plan) -> Table:
    types = {one.tensor.name: one.type for one in plan.encodings}
    labels = list(dict.fromkeys(option.label for options in plan.groups.values() for option in options[1:]))
    table = _table("part", "as it is", *labels, text=(0,))
    for group, options in plan.groups.items():
        cells = {option.label: _option(option, types) for option in options}
        table.add_row(group, *(cells.get(label, "") for label in ("as it is", *labels)))
    return table


def _option(option: Option, types: dict[str, Any]) -> str:
    chosen = all(types[name] is type for name, type in option.types.items())
    return f"{'*' if chosen else ''}{option.kl:.4f} {size_text(option.nbytes)}"


def _lines(outcome: Outcome | Plan, plan: Plan) -> Iterable[str]:
    from pocketgem.convert.quantize import Plan

    if plan.note is not None:
        yield f"note: {plan.note}"
    if plan.left_out:
        yield f"note: {plan.left_out} tensors of towers are not in the new file, only the text model is"
    if isinstance(outcome, Plan):
        return
    if outcome.card is not None:
        yield from card_lines(outcome.card)
    for fault in outcome.faults:
        yield f"over the limit, kept because of --force: {fault}"
    checked = "" if outcome.card is not None else ", not measured"
    yield f"{outcome.target}: {size_text(outcome.size)}{checked}"


def card_lines(card: QualityCard) -> Iterable[str]:
    """A quality card for people."""
    yield (
        f"divergence from {card.source}: mean {card.kl_mean:.5f} nats, 99 % {card.kl_p99:.4f}, most {card.kl_max:.3f}; "
        f"same best token at {card.same_top1:.1%}; perplexity {card.perplexity:.3f}, of the source "
        f"{card.source_perplexity:.3f}"
    )
    yield f"measured over {card.tokens} tokens ({card.text}): {card.compared}"


def _table(*names: str, text: tuple[int, ...]) -> Table:
    """Columns of numbers, but for those whose places are in ``text``."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place in text else "right", overflow="fold")
    return table
