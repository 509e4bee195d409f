"""Where packed weights are kept between runs, if anywhere, and on what multiples of bytes they lie there. No torch."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

WORTH_KEEPING = 500_000_000  # bytes of weights; they are packed at about a gigabyte a second
ALIGNMENT = 4096  # bytes; a page of most machines


def aligned(size: int) -> int:
    """``size`` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def default_cache(source: Path) -> Path | None:
    """Beside the model, else in the person's cache folder, which is made; None where neither can be written to."""
    if os.access(source.parent, os.W_OK):
        return source.with_name(f"{source.name}.pocketgem")
    try:
        folder = _cache_folder() / "pocketgem" / "packed"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]
    except (OSError, RuntimeError):  # RuntimeError: nobody's home, or links that go in a circle
        return None
    return folder / f"{name}.pocketgem" if os.access(folder, os.W_OK) else None


def _cache_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    told = Path(os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME") or "")
    return told if told.is_absolute() else Path.home() / ".cache"  # the convention ignores a relative one
