"""The folder of an adapter that was carried over: PEFT's files, its template, its manifest, and its capsule.

The capsule goes along as it is, tied to the new weights: it says what the first pair answered, so that errors do not
add up from one update to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from torch.nn import functional as F

from pocketgem.adapters.base import Base
from pocketgem.adapters.manifest import MANIFEST, manifest_of, to_json
from pocketgem.adapters.peft import CONFIG, WEIGHTS, open_adapter
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.checkpoint.durable import new_folder, write_file
from pocketgem.checkpoint.load import read_json
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.llm import LLM
from pocketgem.model.lora import LowRank
from pocketgem.rebase.capsule import FILE, Capsule, save_capsule

NOTE, TEMPLATE = "rebase.json", "chat_template.jinja"


def write_reused(target: Path, old: Path, base_name: str, note: Mapping[str, object]) -> None:
    """The old weights, byte by byte, with a config that names the new base. Raises CheckpointError, RunError."""
    config = {**read_json(old / CONFIG), "base_model_name_or_path": base_name}
    files = {WEIGHTS: (old / WEIGHTS).read_bytes(), CONFIG: _json(config), **_beside(old, note)}
    with new_folder(target, sum(map(len, files.values()))) as made:
        for name, content in files.items():
            write_synced(made / name, content)


def write_distilled(
    target: Path, old: Path, deltas: Mapping[str, LowRank], base_name: str, note: Mapping[str, object]
) -> None:
    """New weights under the old ones' prefix, all of one rank and scale. Raises as ``save_adapter``."""
    even = evened(deltas)
    one = next(iter(even.values()))
    rank = one.A.shape[-2]
    label = Label(base_name, rank, one.scale * rank, prefix=_prefix(old / WEIGHTS))
    save_adapter(target, even, label, _beside(old, note))


def finish(llm: LLM, base: Base, target: Path, capsule: Capsule, experts: int | None) -> int:
    """Put the capsule and the manifest beside the weights; returns the folder's bytes. Raises as ``manifest_of``."""
    made = open_adapter(target, experts)
    save_capsule(target / FILE, replace(capsule, about=replace(capsule.about, adapter=made.identity)))
    manifest = manifest_of(llm.model, base, made, capsule=FILE)
    write_file(target / MANIFEST, to_json(manifest))
    return sum(one.stat().st_size for one in target.iterdir())


def evened(deltas: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same changes with one rank and one scale: zeros fill the ranks, the scale's ratio goes into B."""
    rank = max(one.A.shape[-2] for one in deltas.values())
    scale = next(iter(deltas.values())).scale
    return {name: _evened(one, rank, scale) for name, one in deltas.items()}


def _evened(one: LowRank, rank: int, scale: float) -> LowRank:
    missing, ratio = rank - one.A.shape[-2], one.scale / scale
    if not missing and ratio == 1:
        return one
    a = F.pad(one.A, (0, 0, 0, missing))
    return replace(one, A=a, B=F.pad(one.B * ratio, (0, missing)), scale=scale)


def _prefix(weights: Path) -> str:
    """Where the old file's names have the text model: ``model.`` or ``model.language_model.``."""
    with safe_open(weights, framework="pt") as file:
        first: str = next(iter(file.keys()))
    return first.removeprefix("base_model.model.").split("layers.")[0]


def _beside(old: Path, note: Mapping[str, object]) -> dict[str, bytes]:
    found = {NOTE: _json(note)}
    if (old / TEMPLATE).is_file():
        found[TEMPLATE] = (old / TEMPLATE).read_bytes()
    return found


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
