"""Media as the rest of the house has them: decoded and bounded, and then prepared for a tower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000  # of every Sound, in samples a second


@dataclass(frozen=True, eq=False)
class Picture:
    """``pixels``: ``[height, width, 3]``, red, green and blue, upright, without transparency."""

    pixels: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width, _ = self.pixels.shape
        return height, width


@dataclass(frozen=True, eq=False)
class Sound:
    """``samples``: ``[n]`` of one channel, 16,000 a second, about -1 to 1, all finite."""

    samples: Floats

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Clip:
    """Pictures of a video and when each is shown, in seconds. ``duration``: of the whole. ``has_sound``: it is silent
    to the model all the same."""

    frames: tuple[Picture, ...]
    seconds: tuple[float, ...]
    duration: float
    has_sound: bool


@dataclass(frozen=True, eq=False)
class Patches:
    """A picture cut for a vision tower that takes any size.

    values: ``[patches, patch numbers]``, 0 to 1, a patch's rows, columns and colours in this order. positions:
    ``[patches, 2]``, column and row. tokens: rows that the tower makes of it. shrunk: whether detail was lost.
    """

    values: Floats
    positions: npt.NDArray[np.int64]
    tokens: int
    shrunk: bool


@dataclass(frozen=True, eq=False)
class Frames:
    """A sound as an audio tower takes it: ``values`` ``[frames, bands or samples]``, and the rows it makes of it."""

    values: Floats
    tokens: int
