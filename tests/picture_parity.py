"""How far our patches are from those of transformers' own processors.

The PIL processors of gemma4 and gemma3 are called as they are. The 12B has a processor for torchvision only: its module
is not imported, its pure function that merges patches is run from its source.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketgem.media.kinds import Patches, Picture
from pocketgem.media.patches import merged, patches, square


@dataclass(frozen=True)
class Distance:
    """The largest difference of a value; whether places and counts of rows are equal."""

    values: float
    same_places: bool
    same_tokens: bool

    @property
    def is_small(self) -> bool:
        return self.values <= 1e-5 and self.same_places and self.same_tokens


def gemma4(picture: Picture, budget: int) -> Distance:
    theirs = _gemma4()(images=[_channels_first(picture)], max_soft_tokens=budget, **_FIRST)
    return _distance(patches(picture, budget), theirs)


def unified(picture: Picture, budget: int) -> Distance:
    theirs = _gemma4()(images=[_channels_first(picture)], max_soft_tokens=budget, **_FIRST)
    tokens = theirs["num_soft_tokens_per_image"][0]
    values, places = (torch.from_numpy(theirs[key][:, : 9 * tokens]) for key in ("pixel_values", "image_position_ids"))
    values, places = _merge()(values, places, tokens)
    found = {
        "pixel_values": values.numpy(),
        "image_position_ids": places.numpy(),
        "num_soft_tokens_per_image": [tokens],
    }
    return _distance(merged(picture, budget), found)


def gemma3(picture: Picture, size: int = 896) -> Distance:
    theirs = _gemma3()(images=[_channels_first(picture)], size={"height": size, "width": size}, **_FIRST)
    ours = square(picture, size)
    side = size // 14
    tiles = (2.0 * ours.values - 1.0).reshape(side, side, 14, 14, 3).transpose(4, 0, 2, 1, 3)  # as the tower scales it
    gap = np.abs(tiles.reshape(3, size, size) - np.asarray(theirs["pixel_values"])[0]).max()
    return Distance(float(gap), _in_rows(ours.positions, side), ours.tokens == 256)


_FIRST: dict[str, Any] = {"input_data_format": "channels_first"}  # else a picture of one or three rows is misread


def _distance(ours: Patches, theirs: Any) -> Distance:
    count = len(ours.values)
    values, places = np.asarray(theirs["pixel_values"])[0], np.asarray(theirs["image_position_ids"])[0]
    gap = float(np.abs(ours.values - values[:count]).max())
    same = np.array_equal(ours.positions, places[:count]) and bool((places[count:] == -1).all())
    return Distance(gap, same, ours.tokens == theirs["num_soft_tokens_per_image"][0])


def _channels_first(picture: Picture) -> np.ndarray:
    return np.ascontiguousarray(picture.pixels.transpose(2, 0, 1))


def _in_rows(positions: np.ndarray, side: int) -> bool:
    return np.array_equal(positions[:, 1] * side + positions[:, 0], np.arange(side * side))


@cache
def _gemma4() -> Any:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return Gemma4ImageProcessorPil()


@cache
def _gemma3() -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil()


@cache
def _merge() -> Any:
    """transformers' ``patches_merge`` of the 12B, without the module around it, which needs torchvision."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "models" / "gemma4_unified" / "image_processing_gemma4_unified.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "patches_merge"]
    names: dict[str, Any] = {"torch": torch, "math": math}
    exec(compile(tree, str(file), "exec"), names)  # the oracle's own source, installed beside us
    return names["patches_merge"]
