"""The table, ``results.json`` and the picture of ``benchmarks.rebase``, from the cells that are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks.rebase_cells import ADAPTERS, FAR, UPDATES, Lab

BAR = 0.90  # of the retrained adapter's gain: from here on a candidate is good, and the gate should take it
WAYS = ("copy", "reuse", "rebase")


def report(lab: Lab) -> None:
    """Write all of it into the lab's folder, and print the table."""
    cases = list(_cases(lab))
    if not cases:
        print("no case is complete yet")
        return
    three = [one for one in cases if one["update"] != FAR]
    beyond = [one for one in cases if one["update"] == FAR]
    found = {
        "bar": BAR, "cases": cases, "summary": _summary(three), "gate": _gate(three), "gate_with_far": _gate(cases),
        "far": _summary(beyond), "others": _others(lab),
    }  # fmt: skip
    (lab.folder / "results.json").write_text(json.dumps(found, indent=1))
    text = _table(cases) + "\n" + _prose(found)
    (lab.folder / "results.md").write_text(text)
    _draw(cases).savefig(lab.folder / "results.png", dpi=120)
    print(text)


def _cases(lab: Lab) -> Iterator[dict[str, Any]]:
    for update in (*UPDATES, FAR):
        for task in ADAPTERS:
            if lab.done(f"case-{task}-{update}") and lab.done(f"tune-{task}-{update}"):
                yield _case(lab, task, update)


def _case(lab: Lab, task: str, update: str) -> dict[str, Any]:
    tuned, case = lab.facts(f"tune-{task}-{update}"), lab.facts(f"case-{task}-{update}")
    bare, best = tuned["bare"], tuned["score"]
    candidates = {
        name: {**one, "recovered": recovered(one["score"], bare, best)} for name, one in case["candidates"].items()
    }
    outcome = case["outcome"]
    chosen = "reuse" if outcome["same"] else "rebase"
    return {
        "task": task, "update": update, "bare": bare, "retrained": best, "candidates": candidates,
        "chosen": chosen if chosen in candidates else None, "consistency": outcome["consistency"],
        "seconds": outcome["seconds"], "bytes": outcome["nbytes"], "steps": len(outcome["curve"]["losses"]),
        "predicted": outcome["predicted"],
        "retrained_seconds": tuned["seconds"],
    }  # fmt: skip


def recovered(score: dict[str, float], bare: dict[str, float], best: dict[str, float]) -> dict[str, float]:
    """Shares of the retrained adapter's gain over the new base alone."""
    exact = (score["exact"] - bare["exact"]) / max(best["exact"] - bare["exact"], 1e-9)
    return {"exact": exact, "nll": (bare["nll"] - score["nll"]) / max(bare["nll"] - best["nll"], 1e-9)}


def good(candidate: dict[str, Any]) -> bool:
    """Both shares are at the bar."""
    return min(candidate["recovered"].values()) >= BAR


def _summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in WAYS:
        for key in ("exact", "nll"):
            values = [one["candidates"][way]["recovered"][key] for one in cases if way in one["candidates"]]
            if values:
                found[f"{way} {key}"] = {
                    "median": statistics.median(values),
                    "worst": min(values),
                    "cases": len(values),
                }
    for key in ("exact", "nll"):
        values = [one["candidates"][one["chosen"]]["recovered"][key] for one in cases if one["chosen"]]
        if not values:
            continue
        found[f"chosen {key}"] = {"median": statistics.median(values), "worst": min(values), "cases": len(values)}
    return found


def _gate(cases: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [
        {"case": f"{one['task']}-{one['update']}", "candidate": name, "good": good(found), "taken": found["accepted"],
         "kept": found["marks"]["kept"], "match": found["marks"]["match"], **found["recovered"]}
        for one in cases for name, found in one["candidates"].items() if "accepted" in found
    ]  # fmt: skip
    right = [one for one in judged if one["good"] == one["taken"]]
    return {"judged": judged, "count": len(judged), "right": len(right), "share": len(right) / max(1, len(judged))}


def _others(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(lab.cells.glob("*.json")):
        name = path.stem
        if name.startswith(("base-", "capsule-", "tune-")):
            facts = lab.facts(name)
            found[name] = {key: value for key, value in facts.items() if key != "losses"}
        if name.startswith(("delta-", "made-")):
            task, update = name.split("-")[1:3]
            facts, tuned = (
                lab.facts(name),
                lab.facts(f"tune-{task}-{update}") if lab.done(f"tune-{task}-{update}") else {},
            )
            shares = {
                way: recovered(one["score"], tuned["bare"], tuned["score"]) if tuned else one["score"]
                for way, one in facts["candidates"].items()
            }
            found[name] = {"recovered": shares, "steps": len(facts["outcome"]["curve"]["losses"])}
    return found


def _table(cases: list[dict[str, Any]]) -> str:
    head = ("adapter", "update", "bare", "retrained", *WAYS, "recovered by rebase", "gate: reuse, rebase", "seconds")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in cases:
        found = one["candidates"]
        cells = [one["task"], one["update"], _score(one["bare"]), _score(one["retrained"])]
        cells += [_score(found[way]["score"]) if way in found else "none" for way in WAYS]
        share = found["rebase"]["recovered"] if "rebase" in found else None
        cells.append("none" if share is None else f"{share['exact']:.1%}, {share['nll']:.1%}")
        cells.append(", ".join("yes" if found[way]["accepted"] else "no" for way in WAYS[1:] if way in found))
        cells.append(f"{sum(one['seconds'].values()):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _score(score: dict[str, float]) -> str:
    return f"{score['exact']:.1%} ({score['nll']:.3f})"


def _prose(found: dict[str, Any]) -> str:
    lines = ["Scores: share of held-out answers that are exact (natural-log loss a token).", ""]
    named = [*found["summary"].items(), *((f"far: {name}", one) for name, one in found["far"].items())]
    for name, one in named:
        lines.append(f"- {name}: median {one['median']:.1%}, worst {one['worst']:.1%}, of {one['cases']} cases")
    for key in ("gate", "gate_with_far"):
        gate = found[key]
        lines.append(f"- {key}: right in {gate['right']} of {gate['count']} ({gate['share']:.1%})")
    wrong = [one for one in gate["judged"] if one["good"] != one["taken"]]
    lines += [
        f"  - {one['case']} {one['candidate']}: {'taken' if one['taken'] else 'refused'}, kept {one['kept']:.1%}, "
        f"match {one['match']:.1%}, recovered {one['exact']:.1%} exact, {one['nll']:.1%} loss"
        for one in wrong
    ]
    return "\n".join(lines) + "\n"


def _draw(cases: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    colours = {"copy": "0.8", "reuse": "tab:orange", "rebase": "tab:blue"}
    for at, way in enumerate(WAYS):
        pairs = [(place, one["candidates"].get(way)) for place, one in enumerate(cases)]
        places = [place + 0.27 * (at - 1) for place, one in pairs if one]
        values = [max(0.0, one["recovered"]["exact"]) for _, one in pairs if one]
        axes.bar(places, values, 0.25, color=colours[way], label=way)
    axes.axhline(0.95, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(cases)), [f"{one['task']}\n{one['update']}" for one in cases], fontsize=8)
    axes.set(ylabel="share of the retrained adapter's gain", ylim=(0, 1.1))
    axes.legend(frameon=False, ncols=3, loc="lower right")
    return figure
