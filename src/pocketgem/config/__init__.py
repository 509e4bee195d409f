"""What a model is: frozen dataclasses, built from a Hugging Face config, GGUF metadata or a released layout's name."""

from pocketgem.config.counts import ParameterCounts, count_parameters, decoder_shapes
from pocketgem.config.gguf import from_gguf
from pocketgem.config.hf import from_hf
from pocketgem.config.model import (
    AltUpConfig,
    ExpertsConfig,
    LayerConfig,
    ModelConfig,
    PerLayerConfig,
    Rope,
)
from pocketgem.config.released import RELEASED, released_config

__all__ = [
    "RELEASED",
    "AltUpConfig",
    "ExpertsConfig",
    "LayerConfig",
    "ModelConfig",
    "ParameterCounts",
    "PerLayerConfig",
    "Rope",
    "count_parameters",
    "decoder_shapes",
    "from_gguf",
    "from_hf",
    "released_config",
]
