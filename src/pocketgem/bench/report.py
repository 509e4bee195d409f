"""Seconds become rates, ratios and gigabytes a second: one dict that is the last line of JSON and fills the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pocketgem.bench.measure import Track
from pocketgem.bench.plan import Kind, Row
from pocketgem.bench.subjects import OURS

METRICS: Mapping[Kind, str] = {
    "prefill": "prefill_tokens_per_s",
    "decode": "decode_tokens_per_s",
    "sequences": "decode_tokens_per_s",
}
SIZES: Mapping[Kind, str] = {"prefill": "prompt_tokens", "decode": "depth", "sequences": "sequences"}
SINGLE: tuple[Kind, ...] = ("decode", "prefill")  # the first of these that was measured holds one sequence's peak


@dataclass(frozen=True)
class Line:
    """One row in figures: subject -> a value for each run. Ratios are turned so that above 1 ours is better."""

    name: str
    metric: str
    values: Mapping[str, Sequence[float]]
    more_is_better: bool = True
    facts: Mapping[str, int] | None = None
    bytes_per_step: int | None = None
    tokens_per_step: int = 1
    costs: Sequence[Mapping[str, float]] = ()  # ours, run by run, of experts under a budget


def rate(row: Row, steps: Sequence[float]) -> float:
    """Tokens a second of one run: the prompt over its time, or all sequences' tokens over the median step."""
    if row.kind == "prefill":
        return row.size / steps[0]
    return (row.size if row.kind == "sequences" else 1) / statistics.median(steps)


def ratios(ours: Sequence[float], theirs: Sequence[float], *, more_is_better: bool) -> list[float]:
    """Run by run, how many times better ours is: values of the same run stand beside each other."""
    pairs = zip(ours, theirs, strict=True)
    return [mine / other if more_is_better else other / mine for mine, other in pairs]


def rounded_down(value: float) -> float:
    """Two decimals, never rounded up."""
    return math.floor(value * 100 + 1e-9) / 100


def lines(rows: Sequence[Row], tracks: Mapping[str, Track], reads: Callable[[int], int]) -> list[Line]:
    """All lines in the table's order. ``reads``: sequences in a step -> bytes of weights it reads."""
    speed = [_speed(row, tracks, reads) for row in rows]
    first = next((row for row in rows if row.kind == "prefill"), None)
    at = sum(row.kind == "prefill" for row in rows)
    waits = [] if first is None else [_first_token(first, tracks)]
    return [*speed[:at], *waits, *speed[at:], *_costs(tracks)]


def _speed(row: Row, tracks: Mapping[str, Track], reads: Callable[[int], int]) -> Line:
    number = row.size if row.kind == "sequences" else 1
    rates = {name: [rate(row, steps) for steps in track.seconds.get(row.name, [])] for name, track in tracks.items()}
    return Line(
        name=row.name,
        metric=METRICS[row.kind],
        values=rates,
        facts={SIZES[row.kind]: row.size},
        bytes_per_step=None if row.kind == "prefill" else reads(number),
        tokens_per_step=number,
        costs=tracks[OURS].costs.get(row.name, ()) if OURS in tracks else (),
    )


def _first_token(row: Row, tracks: Mapping[str, Track]) -> Line:
    values = {name: [steps[0] for steps in track.seconds.get(row.name, [])] for name, track in tracks.items()}
    return Line(f"first token after {row.size}, s", "first_token_s", values, False, {"prompt_tokens": row.size})


def _costs(tracks: Mapping[str, Track]) -> Iterator[Line]:
    """What it takes to be there: times of loading and starting, and memory."""
    yield Line("load, s", "load_s", {name: track.load_s for name, track in tracks.items()}, False)
    starts = {name: track.start_s for name, track in tracks.items()}
    yield Line("process start to first token, s", "start_s", starts, False)
    memory: tuple[tuple[str, str, tuple[Kind, ...]], ...] = (
        ("peak memory, one sequence, MiB", "peak_memory_MiB", SINGLE),
        ("peak memory, with all sequences, MiB", "peak_memory_with_sequences_MiB", ("sequences",)),
    )
    for name, metric, kinds in memory:
        peaks = {subject: _peak(track, kinds) for subject, track in tracks.items()}
        if peaks[OURS]:
            yield Line(name, metric, peaks, False)


def _peak(track: Track, kinds: Sequence[Kind]) -> list[float]:
    return [track.peak_MiB[kind] for kind in kinds if kind in track.peak_MiB][:1]


def row_report(line: Line, readers: Collection[str], bandwidth: float) -> dict[str, object]:
    """Ours with its spread, and each peer with its ratio; of ``readers`` also GB/s and share of the bandwidth."""
    weights = {name: _reading(line, name, bandwidth) for name in readers}
    found: dict[str, object] = {"row": line.name, **(line.facts or {}), **_figures(line, OURS), **weights.get(OURS, {})}
    if line.costs:
        found["experts"] = {key: _short(statistics.median(run[key] for run in line.costs)) for key in line.costs[0]}
    peers = [name for name in line.values if name != OURS]
    if peers:
        found["peers"] = {name: _figures(line, name) | weights.get(name, {}) | _ratio(line, name) for name in peers}
    return found


def _figures(line: Line, subject: str) -> dict[str, object]:
    values = line.values[subject]
    if not values:
        return {line.metric: None}
    return {line.metric: _short(statistics.median(values)), "spread": [_short(min(values)), _short(max(values))]}


def _reading(line: Line, subject: str, bandwidth: float) -> dict[str, float]:
    """By the bytes that the file's weights have, whatever a runtime made of them in memory."""
    values = line.values[subject]
    if line.bytes_per_step is None or not values:
        return {}
    reads = line.bytes_per_step * statistics.median(values) / line.tokens_per_step / 1e9
    return {"GB_per_s": round(reads, 2), "share_of_bandwidth": round(reads / bandwidth, 3)}


def _ratio(line: Line, peer: str) -> dict[str, object]:
    ours, theirs = line.values[OURS], line.values[peer]
    if len(ours) != len(theirs) or not ours:
        return {}
    each = ratios(ours, theirs, more_is_better=line.more_is_better)
    return {
        "ratio": rounded_down(statistics.median(each)),
        "ratio_spread": [rounded_down(min(each)), rounded_down(max(each))],
    }


def _short(value: float) -> float:
    """Four significant digits, more is noise."""
    return float(f"{value:.4g}")
