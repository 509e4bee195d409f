"""An adapter from one base to the next: how far the base moved, the old weights tried, distilled where that fails.

    predict     the drift of the matrices that the adapter changes, from its manifest; nothing of the old base is needed
    reuse       the old adapter as it is, on the new base, before the gate
    distil      unless that answers as before: a new one from the capsule, warm-started from the old; before the same
                gate, and the better of the two is taken

Nothing that was there is touched: what comes out is a folder, and ``swap`` lets a registered name stand for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.adapters.drift import Drift, drift
from pocketgem.adapters.manifest import Manifest, manifest_in
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.registry import Entry, Registry
from pocketgem.errors import InputError, WeightsError
from pocketgem.llm import LLM
from pocketgem.model.lora import LowRank
from pocketgem.rebase.capsule import FILE, Capsule, load_capsule
from pocketgem.rebase.distill import Curve, Settings, distill
from pocketgem.rebase.judge import Candidate, Judge, Limits, better, is_same
from pocketgem.rebase.record import Watch, base_hash
from pocketgem.rebase.write import experts_of, write_adapter

ADAPTER = "adapter"  # in the folder that comes out


@dataclass
class Outcome:
    """What happened. way: ``reuse``, ``distil``, or None where neither passed. seconds: by what was done.

    same: whether the old weights answer so much as before that new ones were not needed.
    """

    adapter: str
    old_base: str
    new_base: str
    target: str
    same_base: bool
    predicted: Mapping[str, float] | None
    others: tuple[str, ...]
    limits: Limits
    bare: Candidate
    reuse: Candidate
    consistency: float
    same: bool
    distilled: Candidate | None = None
    curve: Curve | None = None
    way: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.way is not None

    def facts(self) -> dict[str, object]:
        """All of it as JSON's kinds."""
        return {"passed": self.passed, **asdict(self)}


class Clock:
    """Seconds of each thing that was done, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def rebase(
    llm: LLM,
    folder: Path,
    out: Path,
    capsule: Path | None = None,
    limits: Limits | None = None,
    settings: Settings | None = None,
    *,
    reuse: bool = True,
    watch: Watch = lambda stage, done, total: None,
) -> Outcome:
    """Carry the adapter in ``folder`` over to ``llm``, the new base, loaded plain and keeping no pasts.

    out: a folder for what comes out, ``adapter`` in it, which appears only when the gate was passed. capsule: None for
    the one in the adapter's folder. reuse: False distils even where the old weights answer as before. Raises InputError
    for a capsule of another adapter or vocabulary, WeightsError where the new base has other shapes.
    """
    if (out / ADAPTER).exists():
        raise InputError(f"{out / ADAPTER}: is there already, from an earlier rebase; move it away, or choose another")
    clock = Clock()
    adapter, source = open_adapter(folder, experts_of(llm)), capsule or folder / FILE
    base = Base(llm.checkpoint, llm.tokenizer)
    recorded = _checked(load_capsule(source), adapter, base, source)
    found = _predicted(manifest_in(folder), base)
    clock.lap("predict")
    going = _Going(llm, base, adapter, recorded, limits or Limits(), settings or Settings(), clock, watch)
    outcome, judge = going.tried(found)
    deltas = going.chosen(outcome, judge, reuse=reuse)
    if deltas is not None:
        going.write(outcome, deltas, out)
    outcome.seconds = clock.seconds
    outcome.nbytes |= {"capsule": source.stat().st_size, "adapter": adapter.nbytes}
    return outcome


def _checked(capsule: Capsule, adapter: Adapter, base: Base, where: Path) -> Capsule:
    """The capsule. Raises InputError where it is not this adapter's or its ids would mean other texts here."""
    about = capsule.about
    if about.adapter != adapter.identity:
        raise InputError(f"{where}: recorded of another adapter than {adapter.where}; record one of this adapter")
    if about.tokenizer != (base.tokenizer or "") or about.vocabulary > base.checkpoint.config.vocab_size:
        raise InputError(f"{where}: recorded with another vocabulary than {base.name} has")
    return capsule


def _predicted(manifest: Manifest | None, base: Base) -> Drift | None:
    """How far the base moved. Raises WeightsError where shapes differ; None where the adapter has no manifest."""
    if manifest is None:
        return None
    found = drift(manifest, base)
    if found.misfits:
        raise WeightsError(f"the adapter was made for {manifest.base_name}, which had {found.text}")
    return found


@dataclass(frozen=True)
class _Going:
    """One rebase under way: what it has to work with."""

    llm: LLM
    base: Base
    adapter: Adapter
    capsule: Capsule
    limits: Limits
    settings: Settings
    clock: Clock
    watch: Watch

    def tried(self, found: Drift | None) -> tuple[Outcome, Judge]:
        """The new base alone and with the old weights, before the gate."""
        self.watch("gate: the new base alone", 0, 2)
        judge = Judge.of(self.llm, self.capsule)
        bare = self._candidate(judge, None)
        self.watch("gate: the old weights", 1, 2)
        reuse = self._candidate(judge, self.adapter.deltas)
        outcome = Outcome(
            adapter=self.adapter.where,
            old_base=self.capsule.about.base_name,
            new_base=self.base.name,
            target=self.settings.target.value,
            same_base=base_hash(self.base, self.adapter.deltas) == self.capsule.about.base,
            predicted=None if found is None else found.changes,
            others=() if found is None else found.others,
            limits=self.limits,
            bare=bare,
            reuse=reuse,
            consistency=judge.consistency,
            same=is_same(reuse, self.limits, judge.consistency),
        )
        self.clock.lap("gate")
        return outcome, judge

    def _candidate(self, judge: Judge, deltas: Mapping[str, LowRank] | None) -> Candidate:
        marks = judge.measure(deltas)
        return Candidate(marks, judge.verdict(marks, self.limits))

    def chosen(self, outcome: Outcome, judge: Judge, *, reuse: bool) -> Mapping[str, LowRank] | None:
        """The weights that passed, None where none did."""
        if reuse and outcome.same:
            outcome.way = "reuse"
            return self.adapter.deltas
        deltas, outcome.curve = distill(
            self.llm.model, self.capsule, self.adapter.deltas, self.settings, self._distilling
        )
        self.clock.lap("distil")
        outcome.distilled = self._candidate(judge, deltas)
        self.clock.lap("gate")
        best = better(outcome.reuse, outcome.distilled)
        if best is None:
            return None
        is_new = best is outcome.distilled
        outcome.way = "distil" if is_new else "reuse"
        return deltas if is_new else self.adapter.deltas

    def _distilling(self, done: int, total: int, kl: float) -> None:
        self.watch(f"distil: KL {kl:.3f}", done, total)

    def write(self, outcome: Outcome, deltas: Mapping[str, LowRank], out: Path) -> None:
        best = outcome.distilled if outcome.way == "distil" else outcome.reuse
        kept = None if best is None else round(best.marks.kept, 4)
        note = {"rebased_from": outcome.old_base, "way": outcome.way, "kept": kept}
        out.mkdir(parents=True, exist_ok=True)
        written = write_adapter(self.llm, self.base, out / ADAPTER, self.adapter, deltas, self.capsule, note)
        outcome.nbytes["written"] = written
        self.clock.lap("write")


def swap(registry: Registry, name: str, out: Path) -> Entry:
    """Let a registered name stand for what came out; what it stood for stays in its history, to roll back to.

    Raises InputError where nothing passed the gate, CheckpointError, RunError; then the name stands for what it did.
    """
    folder = out / ADAPTER
    manifest = manifest_in(folder)
    if manifest is None:
        raise InputError(f"{folder}: no adapter that passed the gate is there")
    return registry.add(name, folder, manifest)
