"""Which tensors are a tower's, and whether they are those its config asks for: before anything is built or read."""

from __future__ import annotations

from collections.abc import Mapping

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.towers import Shape
from pocketgem.errors import WeightsError

# How the names of tensors begin that belong to a tower, after an optional "model.".
VISION = ("vision_tower.", "vision_embedder.", "embed_vision.", "multi_modal_projector.")
AUDIO = ("audio_tower.", "embed_audio.")
TOWER_OF = {"image": "vision", "video": "vision", "audio": "audio"}  # what sees or hears each kind of media


def check_tower(wanted: Mapping[str, Shape], present: Mapping[str, StoredTensor], where: str) -> None:
    """Compare names and shapes.

    Raises WeightsError for tensors that are missing, of the wrong shape, or that nothing in the tower takes.
    """
    if missing := sorted(wanted.keys() - present.keys()):
        raise WeightsError(f"{where}: {len(missing)} tensors of the tower are missing, first {missing[0]}")
    if surplus := sorted(present.keys() - wanted.keys()):
        raise WeightsError(f"{where}: {len(surplus)} tensors have no place in the tower, first {surplus[0][:80]}")
    for name, shape in wanted.items():
        if present[name].shape != shape:
            raise WeightsError(f"{where}: {name} is {list(present[name].shape)}, the config says {list(shape)}")
