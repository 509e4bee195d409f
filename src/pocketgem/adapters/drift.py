"""Whether a base is the one an adapter was made for, and if not, how far from it. Nothing is loaded to be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pocketgem.adapters.base import Base
from pocketgem.adapters.manifest import Manifest, Target
from pocketgem.adapters.sketch import distance
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.types import Progress
from pocketgem.errors import WeightsError

State = Literal["exact", "drift", "misfit"]
SHOWN = 6  # groups in a message


@dataclass(frozen=True)
class Drift:
    """A base beside the one of a manifest.

    changes    groups (q_proj, down_proj, ...) whose tensors have other bytes -> estimated ||W' - W|| / ||W||
    misfits    matrices that the base lacks or has in another shape
    others     what else differs: config, tokenizer, template, weights that the adapter leaves alone
    """

    changes: Mapping[str, float]
    misfits: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        if self.misfits:
            return "misfit"
        return "drift" if self.changes or {*self.others} - {"template"} else "exact"

    @property
    def largest(self) -> float:
        """Relative change of the group that changed most."""
        return max(self.changes.values(), default=0.0)

    @property
    def text(self) -> str:
        """One line for people."""
        if self.misfits:
            more = f" and {len(self.misfits) - 1} more" if len(self.misfits) > 1 else ""
            return f"other shapes: {self.misfits[0]}{more}"
        ranked = sorted(self.changes.items(), key=lambda pair: -pair[1])
        said = [f"{group} {change:.2%}" for group, change in ranked[:SHOWN]]
        said += ["the others less"] if len(ranked) > SHOWN else []
        changed = [f"relative change of {', '.join(said)}"] if said else []
        other = [f"another {', another '.join(self.others)}"] if self.others else []
        return "; ".join(changed + other) or "exactly the base it was made for"


def drift(manifest: Manifest, base: Checkpoint | Base, progress: Progress | None = None) -> Drift:
    """Compare a base with a manifest: hashes first; sketches only of what differs. Raises CheckpointError.

    Reads all of the base's matrices that the adapter changes, and more; a ``Base`` remembers what it read.
    progress: matrices that were looked at.
    """
    base = base if isinstance(base, Base) else Base(base)
    if misfits := tuple(_misfits(manifest, base)):
        return Drift({}, misfits, _others(manifest, base))
    changed: dict[str, list[tuple[float, float]]] = {}
    for at, (group, modules) in enumerate(manifest.groups.items(), 1):
        pairs = [_moved(module, manifest.targets[module], base) for module in modules]
        if any(moved is not None for moved, _ in pairs):
            changed[group] = [(moved or 0.0, norm) for moved, norm in pairs]
        if progress is not None:
            progress(at, len(manifest.groups))
    return Drift({group: _relative(pairs) for group, pairs in changed.items()}, (), _others(manifest, base))


def _misfits(manifest: Manifest, base: Base) -> list[str]:
    found = []
    for module, target in manifest.targets.items():
        if (shape := base.shape(module)) != target.base.shape:
            there = "nothing" if shape is None else list(shape)
            found.append(f"{module} was {list(target.base.shape)}, here is {there}")
    return found


def _moved(module: str, target: Target, base: Base) -> tuple[float | None, float]:
    """How far a matrix moved, None for one whose bytes are the same; and how long it was."""
    if base.sha256(module) == target.base.sha256:
        return None, target.base.norm
    return distance(base.facts(module).sketch, target.base.sketch), target.base.norm


def _relative(pairs: list[tuple[float, float]]) -> float:
    """Errors of single estimates average out in the sum of squares."""
    moved, length = (math.sqrt(sum(value * value for value in values)) for values in zip(*pairs, strict=True))
    return moved / length if length else math.inf


def _others(manifest: Manifest, base: Base) -> tuple[str, ...]:
    here = {
        "config": base.config != manifest.config,
        "tokenizer": None not in (base.tokenizer, manifest.tokenizer) and base.tokenizer != manifest.tokenizer,
        "template": base.template != manifest.template,
        "embedding, norms and the rest": base.rest(manifest.targets) != manifest.rest,
    }
    return tuple(name for name, differs in here.items() if differs)


def checked(
    manifest: Manifest,
    base: Checkpoint | Base,
    allow_drift: bool = False,
    *,
    identity: str | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Whether an adapter goes on a base by its manifest: exactly, or with the drift that is allowed (``Drift.text``).

    identity: of the adapter's weights, which the manifest must speak of. Another template is no reason to refuse: say
    it, unless the adapter brings its own. Raises WeightsError for a manifest of other weights, for other shapes and
    another tokenizer always, for any other difference unless ``allow_drift``.
    """
    if identity is not None and identity != manifest.identity:
        raise WeightsError("the adapter's manifest speaks of other weights than those beside it; write it anew")
    found = drift(manifest, base, progress)
    if found.misfits:
        raise WeightsError(f"the adapter was made for {manifest.base_name}, which had {found.text}")
    if "tokenizer" in found.others:
        raise WeightsError(
            f"the adapter was made for {manifest.base_name}, whose tokenizer is another: ids would mean other texts"
        )
    if found.state == "drift" and not allow_drift:
        raise WeightsError(
            f"the adapter was made for another base, {manifest.base_name} ({found.text}); carry it over with "
            "`pocketgem adapters rebase`, or allow drift (--allow-drift) and look at what it answers"
        )
    return found
