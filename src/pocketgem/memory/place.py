"""Where the per-layer-embedding table's rows come from: the choice, and what it becomes on a device. No torch."""

from __future__ import annotations

from enum import StrEnum

from pocketgem.config import ModelConfig
from pocketgem.errors import PromptError

HOT_BYTES = 4 << 20  # of rows kept at hand: about 800 tokens of an E2B in Q4_0; the others are a read away
HOT_EMBEDDINGS = 4 << 20  # bytes of embedding rows kept at hand: some thousands


class Place(StrEnum):
    """``AUTO`` is settled when the model is loaded; the others are places."""

    AUTO = "auto"
    DEVICE = "device"  # beside the weights; on a processor that is RAM
    RAM = "ram"  # the stored bytes in private memory, read once at load
    DISK = "disk"  # the file, a token's row at a time


def checked_place(wish: str, config: ModelConfig) -> Place:
    """The wish as a place. Raises PromptError for a word that names none, and where there is no table to place."""
    try:
        place = Place(wish)
    except ValueError:
        raise PromptError(f"ple is {str(wish)[:40]!r}, expected one of {', '.join(Place)}") from None
    if place is not Place.AUTO and config.per_layer is None:
        raise PromptError(f"ple is {place}, but this model has no per-layer embeddings; leave the option out")
    return place


def settled(place: Place) -> Place:
    """``AUTO`` decided: the disk. With the table in RAM a token was no more than a few percent quicker even when the
    page cache was cold, for gigabytes of memory (``benchmarks/rows.py``)."""
    return Place.DISK if place is Place.AUTO else place
