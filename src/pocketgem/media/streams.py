"""MP4 and WebM by PyAV (FFmpeg), in a confined process: one demuxer, chosen by the bytes, and codecs from a list."""

from __future__ import annotations

import io
import pkgutil
from importlib import import_module
from typing import Any, BinaryIO

import av
import av.logging

from pocketgem.media.worker import RefusedError

DEMUXERS = {"MP4": "mov", "WebM": "matroska"}
SOUND_CODECS = ("aac", "opus", "vorbis", "mp3", "mp3float", "flac", "alac", "pcm_s16le", "pcm_s24le", "pcm_f32le")
VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx-vp9", "libvpx", "mpeg4")
BUFFER = 1 << 16
# FFmpeg's own bounds: bytes and microseconds it looks at to find out what is inside, and tracks it knows
OPTIONS = {"probesize": "2000000", "analyzeduration": "2000000", "max_streams": "32"}

av.logging.set_level(None)
for _found in pkgutil.walk_packages(av.__path__, "av."):  # some are imported late, when no file can be opened any more
    if not _found.name.startswith(("av.__main__", "av.datasets")):
        import_module(_found.name)


def opened(name: object, file: BinaryIO) -> Any:  # a container of av's
    """From the start of ``file``, which stays open when the container is closed."""
    file.seek(0)
    return av.open(Kept(file), format=DEMUXERS[str(name)], options=OPTIONS, buffer_size=BUFFER)


class Kept(io.RawIOBase):
    """A file that is read through this and not closed with it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def ready(stream: Any, codecs: tuple[str, ...]) -> Any:
    """The stream, about to be decoded in this thread. Raises RefusedError for a codec that is not on the list."""
    codec = stream.codec_context
    if codec is None or codec.name not in codecs:
        raise RefusedError(f"holds {getattr(codec, 'name', 'an unknown codec')}, which is not taken")
    codec.thread_count = 1
    codec.thread_type = "NONE"
    return stream
