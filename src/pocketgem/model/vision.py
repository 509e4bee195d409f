"""Pictures to rows of the text model: which tower a checkpoint has, and its weights in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.towers import check_tower
from pocketgem.config import ModelConfig
from pocketgem.config.fields import Fields
from pocketgem.config.towers import vision_shapes
from pocketgem.errors import UnsupportedError
from pocketgem.model import siglip, vision_encoder
from pocketgem.model.siglip import SiglipVision
from pocketgem.model.tower import filled
from pocketgem.model.vision_encoder import GemmaVision
from pocketgem.model.vision_unified import UnifiedVision


def build_vision(config: ModelConfig, tensors: Mapping[str, StoredTensor], where: str) -> nn.Module:
    """The vision tower of a checkpoint and its projector: patches' values ``[n, numbers]``, 0 to 1, and positions
    ``[n, 2]`` (column, row) -> ``[tokens, config.hidden_size]`` float32.

    Raises UnsupportedError for a tower that is not run, FormatError for a config that cannot be, WeightsError for
    tensors that are missing, of the wrong shape or too many. All of that before anything is built.
    """
    if config.family == "gemma3n" or config.vision is None:
        raise UnsupportedError(f"{where}: {why_not(config)}")
    named = {_plain_name(name): tensor for name, tensor in tensors.items() if not _unused(name)}
    check_tower(vision_shapes(config), named, where)
    with torch.device("meta"):
        tower = _empty(config, Fields(config.vision, f"{where}: vision_config"))
    return filled(tower, named)


def why_not(config: ModelConfig) -> str:
    """Why no vision tower of this config can run."""
    if config.family == "gemma3n":
        return "Gemma 3n's vision tower (a MobileNet) is not run by this version"
    return "the config has no vision_config"


def _empty(config: ModelConfig, fields: Fields) -> nn.Module:
    if config.family == "gemma3":
        return SiglipVision(siglip.Shape.of(fields), config.hidden_size)
    if config.unified:
        return UnifiedVision(fields, config.hidden_size)
    return GemmaVision(vision_encoder.Shape.of(fields), config.hidden_size)


def _plain_name(name: str) -> str:
    """Gemma 3 as released has one more step in its names."""
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def _unused(name: str) -> bool:
    """SigLIP's pooling head, which some files carry and Gemma 3 never uses."""
    return _plain_name(name).startswith("vision_tower.head.")
