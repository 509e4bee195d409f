"""A picture becomes patches: resized as the model was taught, cut, and given places.

Gemma 4 takes any shape within a budget of rows: the picture is scaled, up or down, so that its patches just fit, and
both sides become multiples of 48 pixels. The encoders take patches of 16 pixels and pool 3 x 3 of them; the 12B takes
48 at once. Gemma 3 takes a square of fixed size.

Source: transformers' PIL image processors of gemma4 and gemma3, the oracles of ``tests/test_patches.py``.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from pocketgem.config import ModelConfig
from pocketgem.config.fields import Fields
from pocketgem.errors import MediaError
from pocketgem.media.kinds import Patches, Picture

Filter = Literal["BICUBIC", "BILINEAR"]
BUDGETS = (70, 140, 280, 560, 1120)  # rows of the text model for one picture
USUAL_BUDGET = 280
PATCH, POOL = 16, 3  # pixels of a patch's side; patches of a pooled block's side
MOST_UNIT, MOST_SQUARE = 64, 2048  # pixels a side that a config may ask for: some 50 MB of values for one picture


def prepare(config: ModelConfig, picture: Picture, budget: int) -> Patches:
    """The picture as this model's tower takes it. Gemma 3's square has no budget: it is not looked at.

    Raises MediaError for another budget than ``BUDGETS``, or where Pillow is not installed; FormatError for a config
    that asks for absurd sizes.
    """
    fields = Fields(config.vision or {}, "vision_config")
    if config.family == "gemma3":
        tokens = fields.int("mm_tokens_per_image", 256)
        size = fields.int("image_size", 224, high=MOST_SQUARE)
        return square(picture, size, fields.int("patch_size", 16, high=size), tokens)
    pool = fields.int("pooling_kernel_size", POOL, high=MOST_UNIT)
    patch = fields.int("patch_size", PATCH, high=MOST_UNIT // pool)
    if config.unified:
        return merged(picture, budget, patch, pool)
    return patches(picture, budget, patch, pool)


def patches(picture: Picture, budget: int, patch: int = PATCH, pool: int = POOL) -> Patches:
    """For Gemma 4's encoders: patches of ``patch`` pixels, ``pool**2`` of them for each of at most ``budget`` rows."""
    height, width = target_size(*picture.size, budget, patch * pool)
    tokens = (height // (patch * pool)) * (width // (patch * pool))
    return _cut(picture, (height, width), patch, tokens, "BICUBIC")


def merged(picture: Picture, budget: int, patch: int = PATCH, pool: int = POOL) -> Patches:
    """For the 12B: one patch of ``patch * pool`` pixels for each of at most ``budget`` rows."""
    height, width = target_size(*picture.size, budget, patch * pool)
    tokens = (height // (patch * pool)) * (width // (patch * pool))
    return _cut(picture, (height, width), patch * pool, tokens, "BICUBIC")


def square(picture: Picture, size: int = 896, patch: int = 14, tokens: int = 256) -> Patches:
    """For Gemma 3: the picture as a square of ``size`` pixels, whatever its shape was."""
    return _cut(picture, (size, size), patch, tokens, "BILINEAR")


def target_size(height: int, width: int, budget: int, unit: int = PATCH * POOL) -> tuple[int, int]:
    """Height and width in pixels, multiples of ``unit``, nearest to the shape of the picture from below.

    A side too thin for one unit becomes one, and the other as many units as it is times longer, up to ``budget``.
    Raises MediaError for another budget than ``BUDGETS``.
    """
    if budget not in BUDGETS:
        raise MediaError(f"an image budget of {budget} rows; it is one of {', '.join(map(str, BUDGETS))}")
    factor = math.sqrt(budget * unit**2 / (height * width))
    down, across = math.floor(factor * height / unit), math.floor(factor * width / unit)
    if down == 0:
        down, across = 1, min(width // height, budget)
    elif across == 0:
        down, across = min(height // width, budget), 1
    return down * unit, across * unit


def tokens_of(height: int, width: int, budget: int) -> int:
    """Rows of the text model that a Gemma 4 makes of a picture of this size in pixels."""
    down, across = target_size(height, width, budget, unit := PATCH * POOL)
    return (down // unit) * (across // unit)


def smallest_budget(height: int, width: int) -> int:
    """The smallest budget that loses no detail: neither side gets shorter. The largest where all lose some."""
    whole = (budget for budget in BUDGETS if not _shrinks((height, width), target_size(height, width, budget)))
    return next(whole, BUDGETS[-1])


def _shrinks(size: tuple[int, int], target: tuple[int, int]) -> bool:
    return target[0] < size[0] or target[1] < size[1]


# ---- pixels ----------------------------------------------------------------------------------------------------------


def _cut(picture: Picture, target: tuple[int, int], side: int, tokens: int, filter: Filter) -> Patches:
    height, width = target
    pixels = _resized(picture, target, filter)
    down, across = height // side, width // side
    pixels = pixels[: down * side, : across * side]  # a square's rest, where its side is no multiple of a patch's
    tiles = pixels.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)  # [down, across, side, side, 3]
    values = tiles.reshape(down * across, -1).astype(np.float32) * np.float32(1 / 255)
    return Patches(values, _places(down, across), tokens, _shrinks(picture.size, target))


def _places(down: int, across: int) -> npt.NDArray[np.int64]:
    """Column and row of each patch, row by row: ``[down * across, 2]``."""
    rows, columns = np.divmod(np.arange(down * across, dtype=np.int64), across)
    return np.stack((columns, rows), axis=1)


def _resized(picture: Picture, target: tuple[int, int], filter: Filter) -> npt.NDArray[np.uint8]:
    """The filter is widened where the picture shrinks, so that fine patterns do not alias. ``[height, width, 3]``."""
    if picture.size == target:
        return picture.pixels
    try:
        from PIL import Image
    except ImportError:
        raise MediaError("images need Pillow: pip install 'pocketgem[media]'") from None
    height, width = target
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    return np.asarray(image.resize((width, height), Image.Resampling[filter]))
