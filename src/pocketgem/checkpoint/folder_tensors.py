"""What a Hugging Face folder of a checkpoint would hold: tensors under its names, and the type to store them as.

A type is lossless if every stored number is one of that type's. Of a GGUF file the matrices decide: plain ones keep
their type, blocks need float32, which is what they are computed in. Vectors are float32 in GGUF whatever they came
from, so they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pocketgem.checkpoint.dequant import dtype_of
from pocketgem.checkpoint.load import Checkpoint, JoinedTensor, TextTensor, member_of
from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.checkpoint.stream import SourceTensor, read_values
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import decoder_shapes
from pocketgem.errors import CheckpointError, WeightsError

FLOATS = (StoredType.F32, StoredType.F16, StoredType.BF16)
HALVES = (StoredType.BF16, StoredType.F16)
NORM_OFFSET = {"gemma3": -1.0}  # Hugging Face stores Gemma 3's norms less one


def gguf_as_folder(checkpoint: Checkpoint) -> list[SourceTensor]:
    """The text model of a GGUF file under Hugging Face's names. Raises WeightsError for a tensor that is missing."""
    config = checkpoint.config
    tensors = []
    for name, shape in decoder_shapes(config).items():
        found = checkpoint.tensors.get(name)
        if found is None or found.shape != shape:
            seen = "missing" if found is None else f"of shape {list(found.shape)}"
            raise WeightsError(f"{checkpoint.where}: tensor {name} is {seen}, it should be {list(shape)}")
        parts = parts_of(found)
        offset = NORM_OFFSET.get(config.family, 0.0) if "norm" in name else 0.0
        full = name if name.startswith("lm_head.") else f"model.{name}"
        tensors.append(SourceTensor(full, shape, parts[0].type, parts, offset))
    return tensors


def parts_of(tensor: TextTensor) -> tuple[StoredTensor, ...]:
    """What follows one another in the rows of a tensor: itself, or the halves that it is joined of."""
    if isinstance(tensor, JoinedTensor):  # gate rows, then up rows, of one expert after the other
        pairs = ((member_of(tensor.gate, at), member_of(tensor.up, at)) for at in range(tensor.shape[0]))
        return tuple(half for pair in pairs for half in pair)
    return (tensor,)


def folder_as_folder(checkpoint: Checkpoint) -> list[SourceTensor]:
    """All tensors of a folder, towers too, as they are. Raises CheckpointError for a checkpoint that is no folder."""
    if checkpoint.location.folder is None:
        raise CheckpointError(f"{checkpoint.where}: not a folder with safetensors")
    every = open_safetensors(checkpoint.location.folder)
    return [SourceTensor(name, one.shape, one.type, (one,)) for name, one in every.items()]


def lossless_type(tensors: Sequence[SourceTensor]) -> StoredType:
    """The smallest floating-point type that holds every number; float32 where none does."""
    kinds = {part.type for one in tensors for part in one.stored}
    wide = max((one for one in tensors), key=lambda one: one.numel).type
    if wide in HALVES and kinds <= {wide, StoredType.F32} and is_lossless(tensors, wide):
        return wide
    return StoredType.F32


def is_lossless(tensors: Sequence[SourceTensor], type: StoredType) -> bool:
    """Whether storing as ``type`` rounds nothing; numbers are looked at only where their own type is wider."""
    if type is StoredType.F32:
        return all(part.type is not StoredType.F64 for one in tensors for part in one.stored)
    if any(part.type not in (type, StoredType.F32) for one in tensors for part in one.stored):
        return False
    dtype = dtype_of(type)
    wider = (one for one in tensors if one.type is not type or one.offset)
    return all(torch.equal(values.to(dtype).float(), values) for one in wider for values in _values(one))


def _values(one: SourceTensor) -> Iterator[torch.Tensor]:
    for part, start, stop in one.pieces():
        yield read_values(part, start, stop) + one.offset


def storing_as(tensors: Sequence[SourceTensor], type: StoredType | None) -> list[tuple[SourceTensor, StoredType]]:
    """Each tensor with the type to store it as: floating-point ones as ``type``, or as they are for None."""
    return [(one, one.type if type is None or not _floating(one) else type) for one in tensors]


def _floating(one: SourceTensor) -> bool:
    return one.type in FLOATS or one.type.packed
