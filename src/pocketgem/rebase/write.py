"""The folder of an adapter that was carried over: PEFT's files, what lay beside them, its manifest, and its capsule.

The capsule goes along as it is, tied to the new weights: it says what the first pair answered, so that errors do not
add up from one update to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.adapters.manifest import manifest_of, write_manifest
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.registry import KEPT
from pocketgem.adapters.save import label_of, save_adapter
from pocketgem.checkpoint.load import read_json
from pocketgem.llm import LLM
from pocketgem.model.lora import LowRank
from pocketgem.rebase.capsule import FILE, Capsule, save_capsule

RUN = "run.json"  # how the adapter was made; what was said there before is kept in it


def write_adapter(
    llm: LLM,
    base: Base,
    target: Path,
    old: Adapter,
    deltas: Mapping[str, LowRank],
    capsule: Capsule,
    note: Mapping[str, object],
) -> int:
    """Write ``deltas`` with the old adapter's ranks and scales, for the base that ``llm`` is; returns the bytes.

    Raises WeightsError where they change nothing there, CheckpointError, RunError.
    """
    label = replace(label_of(replace(old, deltas=deltas)), base=base.name)
    save_adapter(target, deltas, label, _beside(Path(old.where), note))
    made = open_adapter(target, experts_of(llm))
    save_capsule(target / FILE, replace(capsule, about=replace(capsule.about, adapter=made.identity)))
    write_manifest(target, manifest_of(llm.model, base, made, capsule=FILE))
    return sum(one.stat().st_size for one in target.iterdir())


def experts_of(llm: LLM) -> int | None:
    """How many the model has, as ``open_adapter`` wants it."""
    experts = llm.checkpoint.config.experts
    return None if experts is None else experts.num_experts


def _beside(old: Path, note: Mapping[str, object]) -> dict[str, bytes]:
    """The files that an adapter may carry, and how this one came to be."""
    found = {name: (old / name).read_bytes() for name in KEPT if (old / name).is_file()}
    before = read_json(old / RUN) if RUN in found else None
    found[RUN] = (json.dumps({**note, "before": before}, indent=2) + "\n").encode()
    return found
