"""The quality card: what was measured of a quantised file against its source, kept in the file's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import get_type_hints

PREFIX = "pocketgem.quality."


@dataclass(frozen=True)
class QualityCard:
    """Divergences are Kullback-Leibler's of the next token's probabilities from the source's, in nats, over ``tokens``
    positions of ``text``; ``same_top1`` is the share of positions where both find the same token most probable.
    """

    format: str
    source: str
    compared: str  # how both were computed
    text: str  # name and hash
    tokens: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    same_top1: float
    perplexity: float
    source_perplexity: float
    within_limits: bool

    def to_metadata(self) -> dict[str, object]:
        """As GGUF metadata."""
        return {PREFIX + one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> QualityCard | None:
        """The card a file carries; None where there is none, or none that is whole."""
        kinds = get_type_hints(cls)
        found = {one.name: metadata.get(PREFIX + one.name) for one in fields(cls)}
        whole = all(type(value) is kinds[name] for name, value in found.items())
        return cls(**found) if whole else None  # type: ignore[arg-type]  # each was just compared with its type
