"""A GGUF ``mmproj`` file beside a text model: its towers join the checkpoint, as if they had come with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS, audio_config, audio_tensors
from pocketgem.checkpoint.mmproj_vision import Projector, vision_config, vision_projector, vision_tensors
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.towers import AUDIO, VISION, check_tower
from pocketgem.config import ModelConfig
from pocketgem.config.towers import Shapes, audio_shapes, vision_shapes
from pocketgem.errors import UnsupportedError, WeightsError


def with_mmproj(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Checkpoint:
    """``checkpoint`` with the towers of a GGUF ``mmproj`` file, in place of any it has. Only headers are read.

    Raises CheckpointError: the file is damaged or none such, its towers are of another model, or tensors are missing,
    of the wrong shape or too many.
    """
    file = GGUFFile.open(path)
    where = str(file.path)
    if file.architecture != "clip":
        raise UnsupportedError(f"{where}: architecture {file.architecture[:60]!r}; an mmproj file's is 'clip'")
    projector = vision_projector(file.metadata, where)
    seen = {} if projector is None else vision_tensors(projector, file.tensors, where)
    heard = audio_tensors(file.tensors, where)
    if not seen and not heard:
        raise WeightsError(f"{where}: no vision or audio tower of the family is in this file")
    config = _with_vision(checkpoint.config, projector, file, seen)
    config = _with_audio(config, file, heard)
    return replace(checkpoint, config=config, others=_others(checkpoint, seen, heard))


def _with_vision(
    config: ModelConfig, projector: Projector | None, file: GGUFFile, tensors: Mapping[str, StoredTensor]
) -> ModelConfig:
    if projector is None or not tensors:
        return config
    where = str(file.path)
    family = "gemma3" if projector == "gemma3" else "gemma4"
    if config.family != family:
        raise UnsupportedError(f"{where}: a vision tower for {family}, but the model is {config.family}")
    vision = vision_config(projector, file.metadata, tensors, where)
    config = replace(config, vision=vision, unified=projector == "gemma4uv")
    _check(config, vision_shapes(config), tensors, where)
    return config


def _with_audio(config: ModelConfig, file: GGUFFile, tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    audio = audio_config(file.metadata, tensors)
    if audio is None and not tensors:
        return config
    where = str(file.path)
    if config.family != "gemma4":
        raise UnsupportedError(f"{where}: an audio tower for gemma4, but the model is {config.family}")
    unified = config.unified or (audio or {}).get("model_type") == "gemma4_unified_audio"
    config = replace(config, audio=audio or {}, unified=unified)
    wanted = {name.replace("self_attn.per_dim_scale", SCALE_AS_IS): s for name, s in audio_shapes(config).items()}
    _check(config, wanted, tensors, where)
    return config


def _check(config: ModelConfig, wanted: Shapes, tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Another model's tower is known by the rows it writes: that is said before a list of shapes."""
    for name, shape in wanted.items():
        if name.startswith(("embed_", "multi_modal_projector.mm_input")) and name in tensors:
            axis = 0 if name.startswith("embed_") else -1
            rows, hidden = tensors[name].shape[axis], shape[axis]
            if rows != hidden:
                raise WeightsError(
                    f"{where}: its tower makes rows of {rows} numbers, the model takes {hidden}: it belongs to another"
                )
    check_tower(wanted, tensors, where)


def _others(
    checkpoint: Checkpoint, seen: Mapping[str, StoredTensor], heard: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors beside the text: towers of a kind that the file brings are gone, the rest stays."""
    gone = (VISION if seen else ()) + (AUDIO if heard else ())
    kept = {
        name: tensor for name, tensor in checkpoint.others.items() if not name.removeprefix("model.").startswith(gone)
    }
    return kept | dict(seen) | dict(heard)
