"""Whether an adapter is any good on a base: opened, compared, put on, proved; each step says what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.adapters.drift import checked
from pocketgem.adapters.effect import attach_and_prove_
from pocketgem.adapters.manifest import Manifest, manifest_in
from pocketgem.adapters.peft import open_adapter
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.errors import PocketgemError
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import detach_
from pocketgem.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Check:
    """One step, whether it went well, and one line about it."""

    name: str
    good: bool
    text: str


def check(path: Path, model: Gemma, checkpoint: Checkpoint, tokenizer: Tokenizer | None = None) -> list[Check]:
    """All steps, up to the first after which nothing can be said. The model is as before at the end."""
    steps: list[Check] = []

    def step(name: str, work: Callable[[], str]) -> bool:
        try:
            steps.append(Check(name, True, work()))
        except PocketgemError as error:
            steps.append(Check(name, False, str(error)))
        return steps[-1].good

    found: list[tuple[Adapter, Manifest | None]] = []
    experts = checkpoint.config.experts
    opened = step("files", lambda: _opened(path, None if experts is None else experts.num_experts, found))
    if not opened:
        return steps
    adapter, manifest = found[0]
    exact = step("base", lambda: _compared(manifest, adapter, Base(checkpoint, tokenizer)))
    step("effect", lambda: _proved(model, adapter, manifest if exact else None))
    return steps


def _opened(path: Path, experts: int | None, found: list[tuple[Adapter, Manifest | None]]) -> str:
    adapter = open_adapter(path, experts)
    found.append((adapter, manifest_in(path) if path.is_dir() else None))
    return f"{adapter.kind} of rank {adapter.rank} for {len(adapter.deltas)} matrices, no tensor left over"


def _compared(manifest: Manifest | None, adapter: Adapter, base: Base) -> str:
    if manifest is None:
        return "no manifest, so nothing is known of the base it was made for"
    return checked(manifest, base, identity=adapter.identity).text


def _proved(model: Gemma, adapter: Adapter, manifest: Manifest | None) -> str:
    try:
        effect = attach_and_prove_(model, adapter.deltas, expected=None if manifest is None else manifest.probe)
    finally:
        detach_(model)
    same = "" if manifest is None else ", as recorded"
    moved = f"{effect.kl:.3g} nat, {effect.top_changed:.0%} of them to another token"
    return f"every matrix is used; the probe's answers move by {moved}{same}"
