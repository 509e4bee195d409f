"""Parameters and bytes in groups that can lie in different places, and what the tensors of a file are stored as."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pocketgem.checkpoint.load import Checkpoint, JoinedTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config import ModelConfig, ParameterCounts, count_parameters
from pocketgem.config.counts import decoder_shapes, group_of

GROUPS = ("embedding", "head", "per_layer_table", "core", "experts", "vision", "audio")
PLANNED_BYTES = 2  # bfloat16, where there is no file to ask
# Towers by the words in their tensors' names: Hugging Face's, then llama.cpp's.
_VISION = re.compile(r"(^|\.)(vision_tower|vision_embedder|embed_vision|multi_modal_projector)\.|^(v|mm)\.")
_AUDIO = re.compile(r"(^|\.)(audio_tower|embed_audio)\.|^(a|mm\.a)\.")


@dataclass(frozen=True)
class Group:
    """``parameters`` by the config; ``stored`` bytes in the file, None where there is no file."""

    name: str
    parameters: int
    stored: int | None
    types: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """All weights of a model. ``missing`` and ``surplus`` name text tensors; both are empty without a file."""

    groups: tuple[Group, ...]
    total: int  # parameters
    effective: int  # of these, what must lie in fast memory
    active: int  # of these, what one token reads
    stored: int  # bytes of all tensors; as bfloat16 where there is no file
    types: dict[str, tuple[int, int]]  # type -> tensors, bytes
    missing: tuple[str, ...]
    not_counted: tuple[str, ...]


def planned_weights(config: ModelConfig) -> Weights:
    """The weights a config asks for, where there are none to look at."""
    counts = count_parameters(config)
    groups = tuple(Group(name, getattr(counts, name), None, ()) for name in GROUPS if getattr(counts, name))
    return _weights(groups, counts, counts.total * PLANNED_BYTES, {}, ())


def stored_weights(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint: nothing is read but the headers, which are open already."""
    counts = count_parameters(checkpoint.config)
    parts = list(_parts(checkpoint))
    groups = [_group(name, getattr(counts, name, 0), parts) for name in (*GROUPS, "other")]
    missing = sorted(_needed(checkpoint.config) - checkpoint.tensors.keys())
    kept = tuple(group for group in groups if group.parameters or group.stored)
    return _weights(kept, counts, sum(part.nbytes for _, part in parts), _types(parts), tuple(missing))


def _weights(
    groups: tuple[Group, ...],
    counts: ParameterCounts,
    stored: int,
    types: dict[str, tuple[int, int]],
    missing: tuple[str, ...],
) -> Weights:
    return Weights(groups, counts.total, counts.effective, counts.active, stored, types, missing, counts.not_counted)


def _parts(checkpoint: Checkpoint) -> Iterator[tuple[str, StoredTensor]]:
    """(group, tensor) for every tensor of the files."""
    for name, tensor in checkpoint.tensors.items():
        for part in (tensor.gate, tensor.up) if isinstance(tensor, JoinedTensor) else (tensor,):
            yield group_of(name), part
    for name, other in checkpoint.others.items():
        yield tower_of(name), other


def tower_of(name: str) -> str:
    """``vision``, ``audio`` or ``other``: what a tensor outside the text model belongs to, by its full name."""
    if _AUDIO.search(name):
        return "audio"
    return "vision" if _VISION.search(name) else "other"


def _group(name: str, parameters: int, parts: Iterable[tuple[str, StoredTensor]]) -> Group:
    members = [part for group, part in parts if group == name]
    types = tuple(_types((name, part) for part in members))
    return Group(name, parameters, sum(part.nbytes for part in members), types)


def _types(parts: Iterable[tuple[str, StoredTensor]]) -> dict[str, tuple[int, int]]:
    """Type -> tensors and bytes, the type with the most bytes first."""
    found: dict[str, tuple[int, int]] = {}
    for _, part in parts:
        tensors, size = found.get(part.type, (0, 0))
        found[str(part.type)] = tensors + 1, size + part.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _needed(config: ModelConfig) -> set[str]:
    return {*decoder_shapes(config)}


def stored_towers(others: Mapping[str, StoredTensor]) -> frozenset[str]:
    """Which of ``vision`` and ``audio`` have tensors here."""
    return frozenset(map(tower_of, others)) - {"other"}
