"""Pictures, sounds and videos made by hand and by their libraries, for the tests of media."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

Array = npt.NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Array:
    """``[height, width, 3]``, smooth enough that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8
    )
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | Array, kind: str, **options: object) -> bytes:
    """``kind``: Pillow's name of a format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def turned(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(image, kind, exif=exif.tobytes(), **lossless)


# --- PNG by hand


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, body: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG that claims a size. ``body``: packed rows; ``more``: chunks before them."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = chunk(b"IDAT", body or zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + rows + chunk(b"IEND", b"")


def full_png(width: int, height: int, channels: int = 3) -> bytes:
    """All its pixels, zeros, in few bytes: a packed row that is repeated."""
    row = 1 + width * channels
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(row)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (row * height % 65_521 << 16) | 1  # Adler-32 of zeros
    body = b"\x78\x01" + piece * height + b"\x03\0" + checksum.to_bytes(4, "big")
    return png(width, height, colour={1: 0, 3: 2, 4: 6}[channels], body=body)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small true picture of a format whose header then claims another size."""
    if kind == "PNG":
        return png(width, height)
    data = bytearray(encoded(noise(32, 32), kind))
    if kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
        place = data.index(b"\x2c")  # the frame, too
        struct.pack_into("<HH", data, place + 5, width, height)
    elif kind == "JPEG":
        place = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, place + 5, height, width)
    elif kind == "WEBP":  # lossy: 14 bits each
        place = data.index(b"\x9d\x01\x2a")
        struct.pack_into("<HH", data, place + 3, width, height)
    return bytes(data)


# --- sounds


def tone(rate: int, seconds: float, channels: int = 1, pitch: float = 440.0) -> npt.NDArray[np.float32]:
    """``[samples, channels]``, the second channel half as loud, and so on."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)
    return np.stack([wave / 2**channel for channel in range(channels)], axis=1).astype(np.float32)


def sound(samples: npt.NDArray[np.float32], rate: int, kind: str = "WAV", coding: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def wav(
    body: bytes, *, coding: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, size: int | None = None,
    align: int | None = None, before: bytes = b"",
) -> bytes:  # fmt: skip
    """A WAV by hand; ``size``: what it says of its samples."""
    align = channels * bits // 8 % 65_536 if align is None else align
    form = struct.pack("<HHIIHH", coding, channels, rate, rate * align % 2**32, align, bits)
    data = b"data" + struct.pack("<I", len(body) if size is None else size) + body
    rest = b"WAVE" + before + b"fmt " + struct.pack("<I", 16) + form + data
    return b"RIFF" + struct.pack("<I", len(rest) % 2**32) + rest


def flac_claiming(samples: int, rate: int = 16_000) -> bytes:
    """A short silent FLAC whose header tells another length; 0: it tells none."""
    data = bytearray(sound(np.zeros((rate // 8, 1), np.float32), rate, "FLAC"))
    word = int.from_bytes(data[18:26], "big")  # rate 20, channels 3, bits 5, samples 36
    data[18:26] = ((word >> 36 << 36) | samples).to_bytes(8, "big")
    return bytes(data)


# --- videos


@contextmanager
def _writing(kind: str) -> Iterator[tuple[io.BytesIO, av.container.OutputContainer]]:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        yield file, container


def video(
    frames: int = 60, *, rate: int = 30, size: tuple[int, int] = (64, 48), kind: str = "mp4", codec: str = "libx264",
    loud: bool = False, paint: Callable[[int], Array] | None = None, **options: str,
) -> bytes:  # fmt: skip
    """``size``: width and height. ``paint(number) -> [height, width, 3]``; without it a grey that says the number."""
    width, height = size
    with _writing(kind) as (file, container):
        stream = container.add_stream(codec, rate=rate, options=options or None)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        voice = _voice(container, kind) if loud else None
        for number in range(frames):
            pixels = paint(number) if paint else np.full((height, width, 3), 4 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        if voice is not None:
            _speak(container, voice)
    return file.getvalue()


def spoken(kind: str, seconds: float = 1.0, pitch: float = 440.0) -> bytes:
    """Sound alone in MP4 or WebM."""
    with _writing(kind) as (file, container):
        _speak(container, _voice(container, kind), seconds, pitch)
    return file.getvalue()


def _voice(container: av.container.OutputContainer, kind: str) -> av.AudioStream:
    return container.add_stream("libopus" if kind == "webm" else "aac", rate=48_000, layout="mono")


def _speak(
    container: av.container.OutputContainer, voice: av.AudioStream, seconds: float = 1.0, pitch: float = 440.0
) -> None:
    wave = (tone(48_000, seconds, 1, pitch)[:, 0] * 32_767).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
    frame.sample_rate = 48_000
    container.mux(voice.encode(frame))
    container.mux(voice.encode(None))
