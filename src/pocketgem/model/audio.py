"""Sound to rows of the text model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config import ModelConfig
from pocketgem.errors import UnsupportedError


def build_audio(config: ModelConfig, tensors: Mapping[str, StoredTensor], where: str) -> nn.Module:
    """The audio tower of a checkpoint and its projector. Raises CheckpointError."""
    raise UnsupportedError(f"{where}: audio towers of {config.family} are not run by this version")
