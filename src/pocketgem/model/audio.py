"""Sound to rows of the text model: Gemma 4's conformer over mel frames, or the 12B's projection of raw samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.towers import check_tower
from pocketgem.config import ModelConfig
from pocketgem.config.fields import Fields
from pocketgem.config.towers import audio_shapes
from pocketgem.errors import UnsupportedError, WeightsError
from pocketgem.model.conformer import Conformer, ConformerConfig, read_conformer
from pocketgem.model.tower import Projector, filled

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
    present = {name.replace(SCALE_AS_IS, SCALE): tensor for name, tensor in tensors.items()}
    if len(present) < len(tensors):
        raise WeightsError(f"{where}: scales of queries are there in two forms")
    check_tower(audio_shapes(config), present, where)
    with torch.device("meta"):
        empty = _empty(config, Fields(config.audio, f"{where}: audio_config"))
    tower = filled(empty, present)
    for name in tensors:
        if name.endswith(SCALE):
            _soften(tower.get_submodule(name.rpartition(".")[0]))
    return tower


def _empty(config: ModelConfig, fields: Fields) -> nn.Module:
    if config.unified:
        eps = fields.float("rms_norm_eps", 1e-6)
        return WaveTower(fields.int("audio_embed_dim", 640), config.hidden_size, eps)
    return ConformerTower(read_conformer(fields), config.hidden_size)


def _soften(attention: nn.Module) -> None:
    """Apply the softplus that an mmproj file's scales have had already."""
    scale = cast(Tensor, attention.per_dim_scale)
    attention.per_dim_scale = nn.Parameter(F.softplus(scale), requires_grad=False)
