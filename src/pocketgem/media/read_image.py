"""A picture, in a confined process, by Pillow: one decoder, chosen by the bytes; the size is looked at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin  # noqa: F401 - the last reads EXIF, and would be imported too late
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pocketgem.media.limits import LIMITS, MEGA, MIB
from pocketgem.media.worker import Answer, Question, RefusedError

# Straight to the class: Image.open would look for others, and pass a JPEG on to what its EXIF says it is.
DECODERS: dict[object, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}
ORIENTATION = 0x0112  # EXIF's tag
# EXIF's orientation -> how to turn a piece, whether rows of the result are columns of the file, whether from the end
TURNS: dict[int, tuple[Image.Transpose, bool, bool]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, False),
    3: (Image.Transpose.ROTATE_180, False, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, True, True),
}
BAND = 1 << 18  # pixels that are converted at once
WHITE = (255, 255, 255)

Image.preinit()  # imports, while files can be opened


def read(question: Question, file: BinaryIO, answer: Answer) -> None:
    name = question["format"]
    image = DECODERS[name](file)
    _check(str(name), image)
    if name == "JPEG":
        _count_scans(file)
    if image.width * image.height > LIMITS.picture_pixels:
        image.draft("RGB", (image.width // 2, image.height // 2))  # a JPEG's own way to a half of the size
    image.load()
    _answer(image, _orientation(image), answer)


def _check(name: str, image: ImageFile.ImageFile) -> None:
    """Raises RefusedError for a size that would cost too much, as the header tells it."""
    width, height = image.size
    if width < 1 or height < 1:
        raise RefusedError(f"has no pixels: {width}x{height}")
    most = _most(name, image)
    if width * height > most:
        size = f"{width * height / MEGA:.1f} megapixels ({width}x{height})"
        raise RefusedError(f"has {size}; {name} may have {most / MEGA:.0f}: make it smaller")
    if max(width, height) > LIMITS.side:
        raise RefusedError(f"is {width}x{height}; a side may have {LIMITS.side} pixels")


def _most(name: str, image: ImageFile.ImageFile) -> int:
    if name == "JPEG":
        slow = "progressive" in image.info or "progression" in image.info
        return LIMITS.progressive_pixels if slow else LIMITS.jpeg_pixels
    return LIMITS.webp_pixels if name == "WebP" else LIMITS.picture_pixels


def _count_scans(file: BinaryIO) -> None:
    """Raises RefusedError for a JPEG in very many passes. Leaves ``file`` where it was."""
    place, scans = file.tell(), 0
    file.seek(0)
    while piece := file.read(MIB):
        scans += piece.count(b"\xff\xda")  # inside a pass an FF has a 00 after it
    file.seek(place)
    if scans > LIMITS.jpeg_scans:
        raise RefusedError(f"is stored in {scans} passes; {LIMITS.jpeg_scans} are taken")


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged note beside a sound picture
        return 1


def _answer(image: Image.Image, orientation: int, answer: Answer) -> None:
    """Rows from the top, a band at a time: no second copy of the picture."""
    turn = TURNS.get(orientation)
    width, height = image.size if turn is None or not turn[1] else (image.height, image.width)
    answer.header(height=height, width=width)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        answer.bytes(_opaque(_piece(image, turn, top, min(top + rows, height))).tobytes())


def _piece(image: Image.Image, turn: tuple[Image.Transpose, bool, bool] | None, top: int, bottom: int) -> Image.Image:
    """Rows ``top`` to ``bottom`` of the picture as it is to be seen."""
    if turn is None:
        return image.crop((0, top, image.width, bottom))
    method, columns, from_end = turn
    length = image.width if columns else image.height
    start, end = (length - bottom, length - top) if from_end else (top, bottom)
    box = (start, 0, end, image.height) if columns else (0, start, image.width, end)
    return image.crop(box).transpose(method)


def _opaque(piece: Image.Image) -> Image.Image:
    """In RGB. What is transparent shows white; 16 bits a colour become 8."""
    if piece.mode.startswith("I"):
        return _high_bytes(piece).convert("RGB")
    if piece.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in piece.info:
        return _over_white(piece.convert("RGBA"))
    return piece.convert("RGB")


def _over_white(layer: Image.Image) -> Image.Image:
    if layer.getchannel("A").getextrema() == (255, 255):  # nothing is seen through
        return layer.convert("RGB")
    opaque = Image.new("RGB", layer.size, WHITE)
    opaque.paste(layer, mask=layer)
    return opaque


def _high_bytes(piece: Image.Image) -> Image.Image:
    """Of 16-bit grey, or of 32-bit as some versions open it."""
    raw = piece.tobytes()
    big = piece.mode.endswith("B")
    width = 4 if piece.mode == "I" else 2
    return Image.frombytes("L", piece.size, raw[0 if big else 1 :: width])
