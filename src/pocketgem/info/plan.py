"""A plan for a model by its name: a file, a folder, or a released layout as it would be stored."""

from __future__ import annotations

from pocketgem.checkpoint.load import open_checkpoint, read_json
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import from_hf
from pocketgem.config.released import released_config
from pocketgem.info import find
from pocketgem.memory.holdings import Holdings, holdings_as, holdings_of

USUAL_FORMAT = StoredType.Q4_0  # of a layout without a file: what Google's quantisation-aware releases are


def held_by(model: str, format: StoredType | None = None, *, offline: bool = False) -> Holdings:
    """What a model's files hold, or would hold in ``format``. Raises CheckpointError as ``inspect``."""
    location = find(model, offline)
    if location is None:
        return holdings_as(from_hf(released_config(model), model), format or USUAL_FORMAT, model)
    if location.kind == "config":
        path = location.files[0]
        return holdings_as(from_hf(read_json(path), str(path)), format or USUAL_FORMAT, model)
    checkpoint = open_checkpoint(location)
    return holdings_of(checkpoint, model) if format is None else holdings_as(checkpoint.config, format, model)
