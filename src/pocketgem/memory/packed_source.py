"""What packed weights were made from: enough to know another state of the files when it comes, without reading all."""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Sequence

from pocketgem.checkpoint.tensor import MappedFile, StoredTensor

_HEADER_SAMPLE = 32 << 20  # bytes read at most of what stands before the first packed tensor: names, vocabulary
_EDGE = 4096  # bytes read at the beginning and the end of every part

Parts = Sequence[Sequence[StoredTensor]]


def files_of(parts: Parts) -> list[MappedFile]:
    """The files the tensors lie in, each once."""
    return list({tensor.source.path: tensor.source for tensors in parts for tensor in tensors}.values())


def identity(parts: Parts) -> dict[str, object]:
    """Names, sizes and times of the files, and a hash of where every tensor lies and of samples of what they hold.

    Raises CheckpointError for a file changed since it was opened, OSError for one that is not there any more.
    """
    files = files_of(parts)
    for file in files:
        file.check_unchanged()
    about: dict[str, object] = {
        "files": [[file.path.name, file.size, file.path.stat().st_mtime_ns] for file in files],
        "content": _content(parts, files),
    }
    for file in files:
        forget(file, 0, file.size)
    return about


def forget(file: MappedFile, start: int, end: int) -> None:
    """Take the pages within [start, end) out of this process's memory; a later look brings them back from the file."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and start < end:
        file.buffer.madvise(mmap.MADV_DONTNEED, start, end - start)


def _content(parts: Parts, files: Sequence[MappedFile]) -> str:
    seen, numbers = hashlib.blake2b(digest_size=16), {file.path: i for i, file in enumerate(files)}
    first = [file.size for file in files]  # where the first packed tensor of each file begins
    for tensor in (tensor for tensors in parts for tensor in tensors):
        number = numbers[tensor.source.path]
        first[number] = min(first[number], tensor.start)
        seen.update(struct.pack("<3Q", number, tensor.start, tensor.end))
    for file, start in zip(files, first, strict=True):
        seen.update(file.buffer[: min(start, _HEADER_SAMPLE)])
    for tensors in parts:
        head, tail = tensors[0], tensors[-1]
        seen.update(head.source.buffer[head.start : min(head.end, head.start + _EDGE)])
        seen.update(tail.source.buffer[max(tail.start, tail.end - _EDGE) : tail.end])
    return seen.hexdigest()
