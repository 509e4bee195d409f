"""Tensors as safetensors files, streamed: a header that says where each lies, then their bytes, shard by shard.

Format: https://github.com/huggingface/safetensors. Names of shards and of the index as transformers writes them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pocketgem.checkpoint.safetensors import INDEX, SINGLE
from pocketgem.checkpoint.save_gguf import stored_as
from pocketgem.checkpoint.stream import Changes, SourceTensor
from pocketgem.checkpoint.types import Progress, StoredType, tensor_bytes

Chosen = Sequence[tuple[SourceTensor, StoredType]]  # the names are those to be written


def total_bytes(tensors: Chosen) -> int:
    """Of all tensors as they will be stored."""
    return sum(tensor_bytes(one.shape, kind) for one, kind in tensors)


def save_safetensors(
    folder: Path,
    tensors: Chosen,
    shard_size: int,
    notes: Mapping[str, str],
    progress: Progress | None = None,
    changes: Changes | None = None,
) -> list[Path]:
    """Write ``tensors`` in files of at most ``shard_size`` bytes of weights, or one tensor each; ``notes`` in all.

    The folder is taken for one that nobody looks into yet (``durable.new_folder``). Raises OSError where the disk
    refuses, CheckpointError if a source was changed since it was opened.
    """
    shards = _shards(tensors, shard_size)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(at, len(shards)) for at in range(len(shards))]
    counted = _Counter(total_bytes(tensors), progress)
    for name, shard in zip(names, shards, strict=True):
        _save_one(folder / name, shard, {"format": "pt", **notes}, counted, changes)
    if len(shards) > 1:
        homes = {one.name: name for name, shard in zip(names, shards, strict=True) for one, _ in shard}
        index = {"metadata": {"total_size": counted.total}, "weight_map": dict(sorted(homes.items()))}
        write_synced(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return [folder / name for name in names]


def write_synced(path: Path, content: bytes) -> None:
    """A small file, brought to the disk. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self._progress, self._done = total, progress, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self.total)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _shards(tensors: Chosen, size: int) -> list[Chosen]:
    shards: list[list[tuple[SourceTensor, StoredType]]] = [[]]
    left = size
    for one, kind in tensors:
        count = tensor_bytes(one.shape, kind)
        if count > left and shards[-1]:
            shards.append([])
            left = size
        shards[-1].append((one, kind))
        left -= count
    # The widest types first: whatever follows then lies on a multiple of its own size.
    return [sorted(shard, key=lambda pair: -pair[1].type_size) for shard in shards]


def _save_one(path: Path, shard: Chosen, notes: Mapping[str, str], counted: _Counter, changes: Changes | None) -> None:
    with path.open("wb") as file:
        file.write(_header(shard, notes))
        for piece in _pieces(shard, changes):
            file.write(piece)
            counted.add(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _pieces(shard: Chosen, changes: Changes | None) -> Iterator[memoryview]:
    for one, kind in shard:
        yield from stored_as(one, kind, changes)


def _header(shard: Chosen, notes: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(notes)}
    end = 0
    for one, kind in shard:
        start, end = end, end + tensor_bytes(one.shape, kind)
        described[one.name] = {"dtype": kind.value, "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
