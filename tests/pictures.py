"""Pictures for tests of preprocessing: those that scikit-image and scikit-learn ship, cuts of them, and extremes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from pocketgem.media.kinds import Picture

EXTREMES = (  # height, width
    (1, 4000), (4000, 1), (1, 1), (2, 2), (15, 17), (16, 16), (17, 15), (47, 49), (48, 48), (49, 47), (768, 768),
    (767, 769), (48, 13_440), (13_440, 48), (3, 1000), (1000, 3), (33, 2111), (2111, 33), (640, 480), (480, 640),
    (1080, 1920), (1920, 1080), (1, 70), (70, 1), (1, 65_535), (65_535, 1), (896, 896), (895, 897), (2, 3), (5, 1),
)  # fmt: skip
UNREAD = "multipage_rgb.tif"  # Pillow does not know its layout


def shipped() -> Iterator[tuple[str, Picture]]:
    """Every picture in the two packages, as a decoder hands it over; the packages are not imported."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        places = None if spec is None else spec.submodule_search_locations
        assert places, f"{package} is not installed: pip install scikit-image scikit-learn"
        for file in sorted((Path(next(iter(places))) / folder).iterdir()):
            if file.suffix in (".png", ".jpg", ".gif", ".tif") and file.name != UNREAD:
                with Image.open(file) as image:
                    yield file.name, picture(image)


def picture(image: Image.Image) -> Picture:
    return Picture(np.array(image.convert("RGB")))


def extremes() -> Iterator[tuple[str, Picture]]:
    """Noise in sizes that break arithmetic; grey and palette pictures among them."""
    generator = np.random.default_rng(5)
    for number, (height, width) in enumerate(EXTREMES):
        noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        mode = ("RGB", "L", "P", "1")[number % 4]
        yield f"{height}x{width} {mode}", picture(noise.convert(mode))


def cuts(count: int) -> Iterator[tuple[str, Picture]]:
    """``count`` pieces of random sizes out of the shipped pictures."""
    generator, whole = np.random.default_rng(6), list(shipped())
    for number in range(count):
        name, source = whole[number % len(whole)]
        height, width = (int(generator.integers(1, side + 1)) for side in source.size)
        top, left = (int(generator.integers(0, side - part + 1)) for side, part in zip(source.size, (height, width)))  # noqa: B905
        piece = source.pixels[top : top + height, left : left + width]
        yield f"{name}[{top}:{top + height}, {left}:{left + width}]", Picture(np.ascontiguousarray(piece))
