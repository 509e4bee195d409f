"""Sizes in bytes as people write them: ``4GiB``, ``512 MB``, ``1.5G``, ``4096``."""

from __future__ import annotations

import re

from pocketgem.errors import InputError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes. ``GiB`` and ``G`` count by 1024, ``GB`` by 1000. Raises InputError for what is no size above zero."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"not a size in bytes: {text.strip()[:40]!r}; write it like 4GiB, 512MB or 4096")
    number, prefix, binary = found[1], (found[2] or "").lower(), found[3]
    decimal = not binary and text.strip().lower().endswith("b") and prefix
    size = int(float(number) * (1000 if decimal else 1024) ** _POWERS[prefix])
    if size < 1:
        raise InputError(f"a size of {text.strip()[:40]!r} leaves nothing")
    return size


def gib(size: int) -> str:
    """Bytes for a person, by 1024: ``4.25 GiB``, ``96.0 MiB``."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
