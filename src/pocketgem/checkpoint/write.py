"""Write a GGUF file through the ``gguf`` package: tensors one at a time, and the file appears only when complete."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pocketgem.checkpoint.dequant import dtype_of
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.unpack import CHUNK
from pocketgem.errors import CheckpointError, UnsupportedError, WeightsError

ALIGNMENT = 32
FLOAT32_MAX = 3.4e38
# Keys about the file that the metadata came from; the new file has its own.
_ABOUT_THE_FILE = ("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count")
_Described = tuple[str, tuple[int, ...], StoredType, int]  # name, shape, type, bytes


def write_gguf(
    path: str | os.PathLike[str],
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Iterable[tuple[str, Tensor, StoredType]],
) -> None:
    """Write ``tensors`` (name, values [*shape], type to store) and ``metadata`` (see ``value_type``) to ``path``.

    A uint8 tensor for a block type is taken as ready blocks, [*leading dims, bytes a row]. Keys that describe a file
    rather than a model (alignment, split) are left out, so another file's metadata can be passed on. One tensor is held
    at a time, on disk twice the file's size until it is complete. Raises UnsupportedError for a type that cannot be
    quantised to or a value GGUF has no type for, WeightsError for a shape a type cannot hold, CheckpointError when the
    ``gguf`` package is missing or the disk refuses.
    """
    path = Path(path)
    gguf = _gguf_package()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            data, whole = Path(folder) / "data", Path(folder) / "whole"
            with data.open("wb") as file:
                described = [_spool(file, gguf, *tensor) for tensor in tensors]
            _write_header(gguf, whole, architecture, metadata, described)
            with data.open("rb") as source, whole.open("ab") as file:
                _pad(file)
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def _gguf_package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise CheckpointError('writing GGUF needs the gguf package; run: pip install "pocketgem[write]"') from error


def _spool(file: IO[bytes], gguf: Any, name: str, values: Tensor, stored: StoredType) -> _Described:
    """Append the bytes of one tensor, quantised a piece at a time: they come before the header that must count them."""
    ready = values.dtype == torch.uint8 and stored.packed
    row = stored.type_size if ready else stored.block_size  # what the last dimension must be a multiple of
    width = values.shape[-1] if values.ndim else 1
    if values.numel() == 0 or width % row:
        raise WeightsError(f"{name}: {stored} cannot hold the shape {list(values.shape)}")
    start = file.tell()
    for rows in _pieces(values.reshape(-1, width)):
        file.write(rows.numpy().tobytes() if ready else _encode(gguf, rows, stored, name))
    size = file.tell() - start
    _pad(file)
    shape = (*values.shape[:-1], width // row * stored.block_size) if ready else tuple(values.shape)
    return name, shape, stored, size


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """About CHUNK weights at a time, on the CPU and contiguous."""
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step].detach().cpu().contiguous()


def _encode(gguf: Any, rows: Tensor, stored: StoredType, name: str) -> bytes:
    if (dtype := dtype_of(stored)) is not None:
        return rows.to(dtype).view(torch.uint8).numpy().tobytes()
    try:
        blocks = gguf.quants.quantize(rows.float().numpy(), gguf.GGMLQuantizationType[stored.name])
    except NotImplementedError as error:
        raise UnsupportedError(f"{name}: cannot quantise to {stored}; use Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0") from error
    return bytes(blocks.tobytes())


def _write_header(
    gguf: Any, path: Path, architecture: str, metadata: Mapping[str, object], described: Sequence[_Described]
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if key not in _ABOUT_THE_FILE:
            kind, element = value_type(key, value)
            types = gguf.GGUFValueType
            writer.add_key_value(key, value, types[kind], types[element] if element else None)
    for name, shape, stored, size in described:
        raw = gguf.GGMLQuantizationType[stored.name]
        writer.add_tensor_info(name, shape, None, size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def value_type(key: str, value: object) -> tuple[str, str | None]:
    """The GGUF value type of a Python value, and the element type if it is a list.

    A float becomes float32 (float64 only if it overflows); an int the first of uint32, int32, uint64, int64 that holds
    it, in a list (of at least one entry, all of one kind) the first of int32, int64, uint64.
    """
    if isinstance(value, list | tuple) and value:
        return "ARRAY", _kind(key, value, ("INT32", "INT64", "UINT64"))
    return _kind(key, [value], ("UINT32", "INT32", "UINT64", "INT64")), None


def _kind(key: str, values: Sequence[object], integers: Sequence[str]) -> str:
    floats = [value for value in values if isinstance(value, float)]
    if len(floats) == len(values):
        return "FLOAT64" if any(FLOAT32_MAX < abs(value) < math.inf for value in floats) else "FLOAT32"
    for kind, name in ((bool, "BOOL"), (str, "STRING")):
        if all(type(value) is kind for value in values):
            return name
    whole = [value for value in values if type(value) is int]
    for name in integers if len(whole) == len(values) else ():
        bits, low = int(name[-2:]), -(1 << int(name[-2:]) - 1) if name[0] == "I" else 0
        if low <= min(whole) and max(whole) < low + (1 << bits):
            return name
    raise UnsupportedError(f"metadata key {key}: GGUF has no type for {str(values)[:60]}")


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
