"""Write a GGUF file of tensors that are made one at a time; the file appears only when complete."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pocketgem.checkpoint.dequant import dtype_of
from pocketgem.checkpoint.draft import Described, Draft
from pocketgem.checkpoint.durable import refusal
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.unpack import CHUNK
from pocketgem.checkpoint.values import value_bytes
from pocketgem.errors import CheckpointError, UnsupportedError, WeightsError

# Keys about the file that the metadata came from; the new file has its own.
_ABOUT_THE_FILE = ("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count")


def write_gguf(
    path: str | os.PathLike[str],
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Iterable[tuple[str, Tensor, StoredType]],
) -> None:
    """Write ``tensors`` (name, values [*shape], type to store) and ``metadata`` (see ``value_type``) to ``path``.

    A uint8 tensor for a block type is taken as ready blocks, [*leading dims, bytes a row]. Keys that describe a file
    rather than a model (alignment, split) are left out, so another file's metadata can be passed on. One tensor is held
    at a time, on disk twice the file's size until it is complete; ``draft.py`` is for shapes known beforehand. Raises
    UnsupportedError for a type that cannot be quantised to or a value GGUF has no type for, WeightsError for a shape a
    type cannot hold, CheckpointError when the ``gguf`` package is missing or the place is bad, RunError on a full disk.
    """
    path = Path(path)
    kept = {key: value for key, value in metadata.items() if key not in _ABOUT_THE_FILE}
    values = {key: value_bytes(key, value) for key, value in {"general.architecture": architecture, **kept}.items()}
    try:
        with tempfile.TemporaryFile(dir=path.parent) as spool:  # without a name: nothing of it outlives the process
            described, sizes = [], []
            for name, weights, stored in tensors:
                shape, size = _spool(spool, name, weights, stored)
                described.append((name, shape, stored))
                sizes.append(size)
            spool.seek(0)
            _publish(path, values, described, sizes, spool)
    except OSError as error:
        raise refusal(path, error) from error


def _publish(
    path: Path, values: Mapping[str, bytes], described: list[Described], sizes: list[int], spool: IO[bytes]
) -> None:
    with Draft(path, values, described) as draft:
        for size in sizes:
            while size:
                piece = spool.read(min(size, 1 << 20))
                draft.write(piece)
                size -= len(piece)
            draft.end_tensor()
        draft.publish()


def _gguf_package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise CheckpointError('quantising needs the gguf package; run: pip install "pocketgem[write]"') from error


def _spool(file: IO[bytes], name: str, values: Tensor, stored: StoredType) -> tuple[tuple[int, ...], int]:
    """Append the bytes of one tensor, quantised a piece at a time; its shape, and how many bytes it has."""
    ready = values.dtype == torch.uint8 and stored.packed
    row = stored.type_size if ready else stored.block_size  # what the last dimension must be a multiple of
    width = values.shape[-1] if values.ndim else 1
    if values.numel() == 0 or width % row:
        raise WeightsError(f"{name}: {stored} cannot hold the shape {list(values.shape)}")
    start = file.tell()
    for rows in _pieces(values.reshape(-1, width)):
        file.write(rows.numpy().tobytes() if ready else _encode(rows, stored, name))
    shape = (*values.shape[:-1], width // row * stored.block_size) if ready else tuple(values.shape)
    return shape, file.tell() - start


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """About CHUNK weights at a time, on the CPU and contiguous."""
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step].detach().cpu().contiguous()


def _encode(rows: Tensor, stored: StoredType, name: str) -> bytes:
    if (dtype := dtype_of(stored)) is not None:
        return rows.to(dtype).view(torch.uint8).numpy().tobytes()
    gguf = _gguf_package()
    try:
        blocks = gguf.quants.quantize(rows.float().numpy(), gguf.GGMLQuantizationType[stored.name])
    except NotImplementedError as error:
        raise UnsupportedError(f"{name}: cannot quantise to {stored}; use Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0") from error
    return bytes(blocks.tobytes())
