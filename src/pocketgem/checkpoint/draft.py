"""A GGUF file that is written front to back in one go, and has its name only when it is complete.

Shapes and types are known before the first weight is made, so the header comes first and the disk is taken for the
whole file at once: a full one is met before minutes of work. Values of fixed size may be filled in later, such as what
was measured of the finished file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pocketgem.checkpoint.durable import Temporary, check_replaceable, check_room, refusal
from pocketgem.checkpoint.types import GGML_TYPES, Progress, StoredType, tensor_bytes
from pocketgem.checkpoint.values import text_bytes, value_bytes

__all__ = ["ALIGNMENT", "Described", "Draft", "value_bytes"]

Described = tuple[str, tuple[int, ...], StoredType]
VERSION = 3
_NUMBERS = {stored: number for number, stored in GGML_TYPES.items()}
ALIGNMENT = 32  # bytes; the format's default


class Draft:
    """A file on the way to ``target``. Used as a context: what was not published is gone at its end.

    What a killed process left is removed by the next draft of the same target; a draft that a living process works on
    is locked, and left alone. Methods raise RunError when the disk is full, CheckpointError for a bad place.
    """

    def __init__(self, target: Path, values: Mapping[str, bytes], tensors: Sequence[Described]) -> None:
        """``values``: as ``value_bytes`` makes them or ``header.raw_values`` found them."""
        self.target, self._values, self._tensors = target, dict(values), list(tensors)
        header = self._header()
        self.size = len(header) + sum(_padded(tensor_bytes(shape, kind)) for _, shape, kind in tensors)
        with self._reporting():
            check_replaceable(target)
            self._temporary = Temporary(target)
            try:
                check_room(target.parent, self.size)
                _allocate(self._descriptor, self.size)
                _write(self._descriptor, header)
            except BaseException:
                self._temporary.close()
                raise

    @property
    def path(self) -> Path:
        """The name it has until it is published."""
        return self._temporary.path

    @property
    def _descriptor(self) -> int:
        return self._temporary.descriptor

    def write(self, data: memoryview | bytes) -> None:
        """The next bytes of the tensors, in their order."""
        with self._reporting():
            _write(self._descriptor, data)

    def end_tensor(self) -> None:
        """Fill up to where the next tensor begins."""
        with self._reporting():
            _write(self._descriptor, bytes(-os.lseek(self._descriptor, 0, os.SEEK_CUR) % ALIGNMENT))

    def fill(self, tensors: Iterable[Iterable[memoryview]], progress: Progress | None = None) -> None:
        """All tensors, each in pieces; ``progress`` hears of bytes."""
        total, done = sum(tensor_bytes(shape, kind) for _, shape, kind in self._tensors), 0
        for pieces in tensors:
            for piece in pieces:
                self.write(piece)
                done += piece.nbytes
                if progress is not None:
                    progress(done, total)
            self.end_tensor()

    def fill_in(self, values: Mapping[str, bytes]) -> None:
        """Other values for keys that are there, of the same size each."""
        before = len(self._header())
        self._values |= values
        header = self._header()
        if len(header) != before:
            raise ValueError("values that are filled in later must keep their size")
        with self._reporting():
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            _write(self._descriptor, header)

    def publish(self) -> None:
        """Bring every byte to the disk, then give the file its name."""
        with self._reporting():
            self._temporary.sync()
            self._temporary.publish()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._temporary.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refusal(self.target, error) from error

    def _header(self) -> bytes:
        parts = [struct.pack("<4sIQQ", b"GGUF", VERSION, len(self._tensors), len(self._values))]
        parts += [text_bytes(key) + value for key, value in self._values.items()]
        offset = 0
        for name, shape, kind in self._tensors:
            dims = shape[::-1]  # the file has the packed dimension first
            parts.append(text_bytes(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _NUMBERS[kind], offset))
            offset += _padded(tensor_bytes(shape, kind))
        header = b"".join(parts)
        return header + bytes(-len(header) % ALIGNMENT)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# ---- the file itself -----------------------------------------------------------------------------------------------


def _allocate(descriptor: int, size: int) -> None:
    """Take the whole file's bytes of the disk now, where the system can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:  # a file system that cannot: it tells when it is full
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _write(descriptor: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]
