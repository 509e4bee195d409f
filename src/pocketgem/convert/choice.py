"""Which type each group gets: the cheapest assignment within a limit, taking divergences of single groups to add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketgem.convert.groups import Types


@dataclass(frozen=True)
class Option:
    """One way to store a group: the types of its tensors, their bytes, and the divergence when only it is coarser."""

    label: str
    types: Types
    nbytes: int
    kl: float


Choice = dict[str, Option]


@dataclass(frozen=True)
class _Way:
    nbytes: int
    kl: float
    options: tuple[Option, ...]


def smallest(groups: Mapping[str, Sequence[Option]], max_kl: float) -> Choice:
    """The fewest bytes whose divergences add up to ``max_kl`` at most; if there is no such, the least divergence."""
    ways = _ways(groups)
    within = [way for way in ways if way.kl <= max_kl]
    best = min(within, key=lambda way: way.nbytes) if within else min(ways, key=lambda way: way.kl)
    return dict(zip(groups, best.options, strict=True))


def truest(groups: Mapping[str, Sequence[Option]], most_bytes: int) -> Choice | None:
    """The least divergence in ``most_bytes``; None if nothing is that small."""
    within = [way for way in _ways(groups) if way.nbytes <= most_bytes]
    if not within:
        return None
    return dict(zip(groups, min(within, key=lambda way: way.kl).options, strict=True))


def _ways(groups: Mapping[str, Sequence[Option]]) -> list[_Way]:
    """Every assignment that no other beats in both bytes and divergence. Group by group, so that they stay few."""
    ways = [_Way(0, 0.0, ())]
    for options in groups.values():
        longer = [
            _Way(way.nbytes + option.nbytes, way.kl + max(option.kl, 0.0), (*way.options, option))
            for way in ways
            for option in options
        ]
        ways = _unbeaten(longer)
    return ways


def _unbeaten(ways: list[_Way]) -> list[_Way]:
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda way: (way.nbytes, way.kl)):
        if not kept or way.kl < kept[-1].kl:
            kept.append(way)
    return kept
