"""``pocketgem bench``: how fast a model is here, alone or beside other runtimes in the same minutes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import pocketgem.cli.options as o
from pocketgem.cli.common import one_line, refuse, size_text
from pocketgem.cli.screen import Screen
from pocketgem.memory.place import Place

UNWRAPPED = 1000  # columns where no terminal limits them: in a pipe every row is one line
MOST = 1 << 20  # tokens, steps or sequences: beyond every context of the family
MOST_SEQUENCES = 64

Prefill = Annotated[str, typer.Option("--prefill", metavar="N,N", help="Prompt lengths to read.")]
Decode = Annotated[int, typer.Option("--decode", min=1, max=MOST, help="Tokens to write at every depth.")]
Depth = Annotated[str, typer.Option("--depth", metavar="N,N", help="Prompt lengths to write after.")]
Sequences = Annotated[str, typer.Option("--sequences", metavar="N,N", help="Conversations side by side.")]
Runs = Annotated[int, typer.Option("--runs", min=1, max=1000, help="Times each row is measured.")]
Peers = Annotated[
    list[str] | None,
    typer.Option("--vs", metavar="PEER", help="llama.cpp, transformers, onnxruntime-genai, openvino-genai."),
]
Pythons = Annotated[
    list[str] | None,
    typer.Option("--peer-python", metavar="[PEER=]PATH", help="The interpreter that has the peer. Default: this one."),
]
PeerModels = Annotated[
    list[str] | None,
    typer.Option("--peer-model", metavar="[PEER=]FOLDER", help="The peer's own model, where it needs one."),
]
InTurn = Annotated[bool, typer.Option("--one-at-a-time", help="Never hold two models in memory.")]
Chart = Annotated[Path | None, typer.Option("--chart", metavar="FILE", help="Draw the ratios: .svg or .png.")]


def bench_model(
    model: o.Model,
    threads: o.Threads = None,
    prefill: Prefill = "512,2048",
    decode: Decode = 64,
    depth: Depth = "128,4096",
    sequences: Sequences = "1,4,10",
    runs: Runs = 3,
    vs: Peers = None,
    peer_python: Pythons = None,
    peer_model: PeerModels = None,
    one_at_a_time: InTurn = False,
    chart: Chart = None,
    ple: o.Ple = Place.AUTO,
    device: o.DeviceChoice = o.Device.CPU,
    keep_packed: o.KeepPacked = True,
    expert_memory: o.ExpertMemory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure speed and memory, alone or beside other runtimes.

    Each runtime has a process of its own; they take turns, row by row, and only one works at a time. A table and a last
    line of JSON go to stdout. Ratios above 1 are in favour of pocketgem.
    """
    lengths = {
        "prefill": numbers("--prefill", prefill),
        "depth": numbers("--depth", depth),
        "sequences": numbers("--sequences", sequences, most=MOST_SEQUENCES),
    }
    names = [name for text in vs or () for name in text.split(",") if name]
    places = {
        "pythons": by_peer("--peer-python", peer_python, names),
        "peer_models": by_peer("--peer-model", peer_model, names),
    }
    from pocketgem.bench.chart import check_chart, draw_chart
    from pocketgem.bench.job import prepare, run
    from pocketgem.bench.plan import Plan
    from pocketgem.kernels.cores import default_threads

    if chart is not None:
        check_chart(chart)
    plan = Plan(decode=decode, runs=runs, threads=threads or default_threads().count, **lengths)
    job = prepare(
        model,
        plan,
        peers=names,
        one_at_a_time=one_at_a_time,
        ple=ple,
        device=device,
        offline=offline,
        keep_packed=keep_packed,
        expert_memory=o.size(expert_memory),
        **places,
    )
    screen = Screen(quiet=quiet, silent=as_json)
    with _ending_on_sigterm(), screen.waiting("measuring", "tokens") as bar:
        report = run(job, bar)
    if not as_json:
        print(draw(report))
    print(json.dumps(report))
    if chart is not None:
        draw_chart(report, chart)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the verb as Ctrl-C does: a worker left behind would go on using the processor."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def numbers(option: str, text: str, most: int = MOST) -> tuple[int, ...]:
    """``512,2048`` -> (512, 2048); an empty text leaves these rows out."""
    found = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if not (word.isascii() and word.isdecimal() and len(word) < 10 and 1 <= int(word) <= most):
            refuse(f"{option} takes numbers from 1 to {most} with commas between them, not {word[:40]!r}.")
        found.append(int(word))
    return tuple(found)


def by_peer(option: str, texts: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """``llama.cpp=PATH`` -> {"llama.cpp": "PATH"}; a path alone belongs to the only peer."""
    found = {}
    for text in texts or ():
        name, sign, path = text.partition("=")
        if not sign and len(set(names)) == 1:
            name, path = names[0], text
        if name not in names or not path:
            refuse(f"{option} takes PEER=PATH with a peer of --vs, not {text[:80]!r}.")
        found[name] = path
    return found


# ---- how it is drawn -----------------------------------------------------------------------------------------------


def draw(report: Mapping[str, Any]) -> str:
    """The table and what stands around it, for the terminal's width."""
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = console.width if console.is_terminal else UNWRAPPED
    with console.capture() as drawn:
        console.print(_heading(report), soft_wrap=True)
        console.print(_table(report))
        for row in report["rows"]:
            if "experts" in row:
                console.print(_experts(row), style="dim", soft_wrap=True)
        for name, facts in report["subjects"].items():
            console.print(one_line(f"{name}: {_listed(facts)}"), style="dim", soft_wrap=True)
    return "\n".join(line.rstrip() for line in drawn.get().rstrip().splitlines())


def _experts(row: Mapping[str, Any]) -> str:
    """What reading experts under a budget cost a row."""
    cost, size = row["experts"], size_text(round(row["experts"]["bytes_per_token"]))
    wait = 1000 * cost["wait_s_per_token"]
    return one_line(
        f"experts, {row['row']}: {cost['hit_rate']:.1%} in memory, {size} read and {wait:.1f} ms waited a token"
    )


def _heading(report: Mapping[str, Any]) -> str:
    kind = "synthetic, " if report["synthetic"] else ""
    return one_line(
        f"{report['model']} ({kind}{size_text(report['file_bytes'])}), {report['threads']} threads, "
        f"median of {report['runs']}, least to most; reading memory: {report['read_bandwidth_GB_per_s']} GB/s, "
        f"weights: {size_text(report['weight_bytes_per_token'])} a token"
    )


def _table(report: Mapping[str, Any]) -> Table:
    peers = [name for name in report["subjects"] if name != "pocketgem"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("pocketgem", *(word for peer in peers for word in (peer, "ratio")), "GB/s", "share"):
        table.add_column(name, justify="right", overflow="fold")
    for row in report["rows"]:
        found = row.get("peers", {})
        beside = [cell for peer in peers for cell in (_figure(found[peer]), _ratio(found[peer]))]
        share = row.get("share_of_bandwidth")
        shares = ("", "") if share is None else (f"{row['GB_per_s']:.1f}", f"{share:.0%}")
        table.add_row(_label(row), _figure(row), *beside, *shares)
    return table


def _label(row: Mapping[str, Any]) -> str:
    """Rates say their unit; the other rows have it in their names."""
    return f"{row['row']}, tokens/s" if _metric(row).endswith("tokens_per_s") else str(row["row"])


def _metric(figures: Mapping[str, Any]) -> str:
    endings = ("_tokens_per_s", "_s", "_MiB")
    return next(key for key in figures if key.endswith(endings) and not key.startswith("GB"))


def _figure(figures: Mapping[str, Any]) -> str:
    value = figures[_metric(figures)]
    if value is None:
        return "-"
    low, high = figures["spread"]
    return f"{value:,.4g}" if low == high else f"{value:.4g} ({low:.4g} to {high:.4g})"


def _ratio(figures: Mapping[str, Any]) -> str:
    if "ratio" not in figures:
        return "-"
    low, high = figures["ratio_spread"]
    return f"{figures['ratio']:.2f}" if low == high else f"{figures['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items() if not isinstance(value, Mapping))
