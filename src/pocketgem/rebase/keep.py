"""Where a capsule goes: a file, an adapter's folder, or the registry.

There adapters do not change: it makes a new object of the same weights, and the name moves on to that.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from pocketgem.adapters.registry import Registry
from pocketgem.rebase.capsule import FILE, Capsule, save_capsule


def keep_capsule(
    capsule: Capsule, adapter: str, folder: Path, registry: Registry, out: Path | None
) -> tuple[Path, int]:
    """Write it; returns where it is and its bytes. out: a file; None: beside the adapter, which lies in ``folder`` and
    may be a registered name. Raises CheckpointError, RunError."""
    if out is not None or adapter not in registry.names():
        where = out or folder / FILE
        return where, save_capsule(where, capsule)
    with tempfile.TemporaryDirectory() as made:
        staged = Path(made) / "adapter"
        shutil.copytree(folder, staged)
        size = save_capsule(staged / FILE, capsule)
        entry = registry.add(adapter, staged, replace(registry.find(adapter).manifest, capsule=FILE))
    return entry.folder / FILE, size
