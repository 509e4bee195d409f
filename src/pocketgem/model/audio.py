"""Sound to rows of the text model: Gemma 4's conformer over mel frames, or the 12B's projection of raw samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config import ModelConfig
from pocketgem.config.fields import Fields
from pocketgem.config.towers import audio_shapes
from pocketgem.errors import UnsupportedError, WeightsError
from pocketgem.model.conformer import Conformer, ConformerConfig, read_conformer
from pocketgem.model.tower_parts import Projector, check_tower, filled

SCALE = "self_attn.per_dim_scale"
Tensors = Mapping[str, StoredTensor]


class ConformerTower(nn.Module):
    """Mel frames ``[frames, 128]`` -> rows of the text model ``[tokens, hidden_size]``, a token for four frames."""

    def __init__(self, config: ConformerConfig, hidden_size: int) -> None:
        super().__init__()
        self.audio_tower = Conformer(config)
        self.embed_audio = Projector(config.out, hidden_size, config.eps)

    def forward(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.embed_audio(self.audio_tower(values.float())))


class WaveTower(nn.Module):
    """Raw samples ``[tokens, 640]`` -> rows of the text model ``[tokens, hidden_size]``: the 12B has no encoder."""

    def __init__(self, samples: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.embed_audio = Projector(samples, hidden_size, eps)

    def forward(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.embed_audio(values.float()))


def build_audio(config: ModelConfig, tensors: Tensors, where: str) -> nn.Module:
    """The audio tower of a checkpoint and its projector: ``ConformerTower`` or ``WaveTower``.

    tensors: under Hugging Face's names without ``model.``. Raises UnsupportedError for a tower of another kind,
    WeightsError for tensors that are missing, surplus or of the wrong shape, before anything is built.
    """
    if config.audio is None or config.family != "gemma4":
        raise UnsupportedError(f"{where}: audio towers of {config.family} are not run by this version")
    as_is = _scales_as_is(tensors, where)
    wanted = audio_shapes(config)
    present = {name.replace(SCALE_AS_IS, SCALE) if as_is else name: tensor for name, tensor in tensors.items()}
    check_tower(wanted, present, where)
    with torch.device("meta"):
        empty = _empty(config, Fields(config.audio, f"{where}: audio_config"))
    tower = filled(empty, present)
    if isinstance(tower, ConformerTower) and not as_is:
        _apply_softplus(tower)
    return tower


def _empty(config: ModelConfig, fields: Fields) -> nn.Module:
    if config.unified:
        eps = fields.float("rms_norm_eps", 1e-6)
        return WaveTower(fields.int("audio_embed_dim", 640), config.hidden_size, eps)
    return ConformerTower(read_conformer(fields), config.hidden_size)


def _scales_as_is(tensors: Tensors, where: str) -> bool:
    """Whether the scales of queries come from an mmproj file, softplus applied. Raises WeightsError for some of each."""
    as_is = sum(name.endswith(SCALE_AS_IS) for name in tensors)
    if as_is and any(name.endswith(SCALE) for name in tensors):
        raise WeightsError(f"{where}: scales of queries are there in two forms")
    return as_is > 0


def _apply_softplus(tower: ConformerTower) -> None:
    for layer in tower.audio_tower.layers:
        attention = cast(nn.Module, layer.self_attn)
        scale = cast(Tensor, attention.per_dim_scale)
        attention.per_dim_scale = nn.Parameter(F.softplus(scale), requires_grad=False)
