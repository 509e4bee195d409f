"""A GGUF file that is written front to back in one go, and has its name only when it is complete.

Shapes and types are known before the first weight is made, so the header comes first and the disk is taken for the
whole file at once: a full one is met before minutes of work. Values of fixed size may be filled in later, such as what
was measured of the finished file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pocketgem.checkpoint.types import GGML_TYPES, StoredType, tensor_bytes
from pocketgem.checkpoint.write import ALIGNMENT, value_type
from pocketgem.errors import RunError

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove an open file: that serves as the lock
    fcntl = None  # type: ignore[assignment]  # a module that is not there

Described = tuple[str, tuple[int, ...], StoredType]
VERSION = 3
_NUMBERS = {stored: number for number, stored in GGML_TYPES.items()}
_CODES = {  # GGUF's value types: number, and struct's letter
    "UINT32": (4, "I"),
    "INT32": (5, "i"),
    "FLOAT32": (6, "f"),
    "BOOL": (7, "?"),
    "STRING": (8, ""),
    "ARRAY": (9, ""),
    "UINT64": (10, "Q"),
    "INT64": (11, "q"),
    "FLOAT64": (12, "d"),
}


class Draft:
    """A file on the way to ``target``. Used as a context: what was not published is gone at its end.

    What a killed process left is removed by the next draft of the same target; a draft that a living process works on
    is locked, and left alone. Methods raise RunError where the disk refuses.
    """

    def __init__(self, target: Path, values: Mapping[str, bytes], tensors: Sequence[Described]) -> None:
        """``values``: as ``value_bytes`` makes them or ``header.raw_values`` found them."""
        self.target, self._values, self._tensors = target, dict(values), list(tensors)
        header = self._header()
        self.size = len(header) + sum(_padded(tensor_bytes(shape, kind)) for _, shape, kind in tensors)
        self._descriptor = -1
        with self._reporting():
            _sweep(target)
            self._descriptor, self.path = _create(target)
            try:
                _allocate(self._descriptor, self.size)
                _write(self._descriptor, header)
            except BaseException:
                self._remove()
                raise

    def write(self, data: memoryview | bytes) -> None:
        """The next bytes of the tensors, in their order."""
        with self._reporting():
            _write(self._descriptor, data)

    def end_tensor(self) -> None:
        """Fill up to where the next tensor begins."""
        with self._reporting():
            _write(self._descriptor, bytes(-os.lseek(self._descriptor, 0, os.SEEK_CUR) % ALIGNMENT))

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
            os.fsync(self._descriptor)
            os.replace(self.path, self.target)
            if hasattr(os, "O_DIRECTORY"):  # Windows has no way to bring a name to the disk
                folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # published: it has another name now
            self.path.unlink()
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{self.target}: cannot be written ({reason}); nothing was left there") from error

    def _header(self) -> bytes:
        parts = [struct.pack("<4sIQQ", b"GGUF", VERSION, len(self._tensors), len(self._values))]
        parts += [_text(key) + value for key, value in self._values.items()]
        offset = 0
        for name, shape, kind in self._tensors:
            dims = shape[::-1]  # the file has the packed dimension first
            parts.append(_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _NUMBERS[kind], offset))
            offset += _padded(tensor_bytes(shape, kind))
        header = b"".join(parts)
        return header + bytes(-len(header) % ALIGNMENT)


def value_bytes(key: str, value: object) -> bytes:
    """A Python value as GGUF stores it, its type before it; ``write.value_type`` says which type.

    Raises UnsupportedError for one that GGUF has no type for.
    """
    kind, element = value_type(key, value)
    if element is None:
        return struct.pack("<I", _CODES[kind][0]) + _encoded(kind, [value])
    assert isinstance(value, list | tuple)
    return struct.pack("<IIQ", _CODES[kind][0], _CODES[element][0], len(value)) + _encoded(element, value)


def _encoded(kind: str, values: Sequence[object]) -> bytes:
    if kind == "STRING":
        return b"".join(_text(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{_CODES[kind][1]}", *values)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# ---- the file itself -----------------------------------------------------------------------------------------------


def _create(target: Path) -> tuple[int, Path]:
    """A new, locked, empty file in the folder of ``target``, under a name that nothing loads."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(path, flags, 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody sweeps either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, path
        os.close(descriptor)  # swept by another process before it was locked


def _sweep(target: Path) -> None:
    """Remove drafts of ``target`` that nobody works on any more."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+\.[0-9a-f]{{8}}\.tmp")
    for path in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
        with contextlib.suppress(OSError):  # locked, or gone already
            if fcntl is None:
                path.unlink()
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


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
