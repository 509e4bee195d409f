"""Facts about a checkpoint or a layout, gathered without reading its weights. Data only; the command line draws it.

This room stands between ``llm`` and ``cli``: it opens what ``llm`` would load, and says what ``llm`` would choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketgem.checkpoint.card import QualityCard
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint, read_json
from pocketgem.checkpoint.resolve import DEFAULT_MODEL, Location, resolve
from pocketgem.config import ModelConfig, from_hf
from pocketgem.config.released import RELEASED, released_config
from pocketgem.errors import CheckpointError
from pocketgem.info.layout import CacheCost, LayerKind, Layout, describe_layout
from pocketgem.info.machine import Machine, describe_machine
from pocketgem.info.texts import Template, Vocabulary, describe_template, try_vocabulary
from pocketgem.info.weights import Group, Weights, planned_weights, stored_towers, stored_weights

__all__ = [
    "Ability",
    "CacheCost",
    "Files",
    "Group",
    "Info",
    "LayerKind",
    "Layout",
    "Machine",
    "QualityCard",
    "Template",
    "Vocabulary",
    "Weights",
    "describe_machine",
    "inspect",
]

_FORMATS = {"gguf": "GGUF", "safetensors": "safetensors", "config": "a config without weights"}


@dataclass(frozen=True)
class Files:
    """Where it was found. ``size`` is of the files on disk."""

    format: str
    paths: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Ability:
    """One thing a person may want of a model: whether it works here, and one line that says why."""

    name: str
    works: bool
    reason: str


@dataclass(frozen=True)
class Info:
    """All that ``inspect`` finds. ``vocabulary_fault`` says why there is no vocabulary."""

    model: str
    files: Files
    layout: Layout
    weights: Weights
    vocabulary: Vocabulary | None
    vocabulary_fault: str | None
    template: Template | None
    abilities: tuple[Ability, ...]
    quality: QualityCard | None = None  # what was measured when the file was quantised


def inspect(model: str, *, offline: bool = False) -> Info:
    """Look at a checkpoint, at a ``config.json`` (or a folder with only that), or at a released layout by its name.

    A checkpoint of that name wins over a layout. Raises CheckpointError when ``model`` is none of these or is damaged.
    """
    location = find(model, offline)
    if location is None:
        return _planned(model, Files("a released layout, no file", (), 0), from_hf(released_config(model), model))
    files = Files(_FORMATS[location.kind], tuple(map(str, location.files)), _size(location.files))
    if location.kind == "config":
        path = location.files[0]
        return _planned(model, files, from_hf(read_json(path), str(path)))
    return _stored(model, files, open_checkpoint(location))


def find(model: str, offline: bool) -> Location | None:
    """Where the checkpoint lies; None for a released layout."""
    layout = model.lower() in map(str.lower, RELEASED) and not Path(model).exists()
    if layout and model != DEFAULT_MODEL:
        return None
    try:
        return resolve(model, offline=offline)
    except CheckpointError:
        if layout:  # the default model's weights are not installed; its shapes are known all the same
            return None
        raise


def _size(paths: tuple[Path, ...]) -> int:
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _planned(model: str, files: Files, config: ModelConfig) -> Info:
    towers = {"vision": config.vision, "audio": config.audio}
    present = frozenset(name for name, section in towers.items() if section is not None)
    weights = planned_weights(config)
    nothing = "no weights here, only shapes"
    abilities = (
        Ability("text", False, nothing),
        Ability("chat", False, nothing),
        *_media(present, weights, config, "layout"),
    )
    return Info(model, files, describe_layout(config), weights, None, None, None, abilities)


def _stored(model: str, files: Files, checkpoint: Checkpoint) -> Info:
    weights = stored_weights(checkpoint)
    vocabulary, fault = try_vocabulary(checkpoint)
    template = describe_template(checkpoint.chat_template)
    text = _text(weights, fault)
    media = _media(stored_towers(checkpoint.others), weights, checkpoint.config, "file")
    abilities = (text, *_template_abilities(text, template), *media)
    quality = QualityCard.from_metadata(checkpoint.metadata)
    layout = describe_layout(checkpoint.config)
    return Info(model, files, layout, weights, vocabulary, fault, template, abilities, quality)


def _text(weights: Weights, fault: str | None) -> Ability:
    if weights.missing:
        return Ability("text", False, f"{len(weights.missing)} tensors are missing, first {weights.missing[0]}")
    if fault is not None:
        return Ability("text", False, fault)
    return Ability("text", True, "all text tensors and a tokenizer are here")


def _template_abilities(text: Ability, template: Template | None) -> tuple[Ability, ...]:
    """Chat, thinking and tools are what the template makes of a text model."""
    if template is None:
        return (
            Ability("chat", False, "no chat template: it continues plain text"),
            Ability("thinking", False, "no chat template"),
            Ability("tools", False, "no chat template"),
        )
    if template.fault is not None or not text.works:
        reason = f"the chat template cannot be read: {template.fault}" if text.works else "needs text"
        return tuple(Ability(name, False, reason) for name in ("chat", "thinking", "tools"))
    says = {True: "the template has a place for it", False: "the template has no place for it"}
    return (
        Ability("chat", True, "by the checkpoint's own template"),
        Ability("thinking", template.thinking, says[template.thinking]),
        Ability("tools", template.tools, says[template.tools]),
    )


def _media(present: frozenset[str], weights: Weights, config: ModelConfig, where: str) -> tuple[Ability, ...]:
    """What the towers' tensors make possible. ``where``: the tensors are in a ``file``, or a ``layout`` has none."""
    sizes: Mapping[str, int] = {group.name: group.parameters for group in weights.groups}
    found = []
    for name, tower in (("images", "vision"), ("audio", "audio")):
        count = f" of {sizes[tower] / 1e6:.3g} M parameters" if sizes.get(tower) else ""
        here, fault = f"{tower} tower{count} in this {where}", _tower_fault(config, tower, where)
        if tower not in present:
            found.append(Ability(name, False, f"no {tower} tower in this {where}"))
        else:
            found.append(Ability(name, fault is None, here if fault is None else f"{here}, {fault}"))
    return tuple(found)


def _tower_fault(config: ModelConfig, tower: str, where: str) -> str | None:
    """Why a tower that is there does nothing."""
    if config.family == "gemma3n":
        return "not run by this version"
    if (config.vision if tower == "vision" else config.audio) is None:
        return "but no config that says its shapes: give the mmproj file as --mmproj"
    return "no weights here, only shapes" if where == "layout" else None
