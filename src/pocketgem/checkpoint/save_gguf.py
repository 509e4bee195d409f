"""A checkpoint as one GGUF file, tensors streamed: another GGUF file's as they lie there, a folder's converted.

Matrices of a folder keep their type. Vectors become float32, and so do the few matrices that llama.cpp reads as such;
both without loss. What else its converter does for Gemma is done here: see ``export.py`` and ``stream.py``, and:

- Gemma 3 embeddings end with the vocabulary: rows after it, which no token names, are left out;
- Gemma 3n gets a per-layer row for every token. Tokens of media have none: the reference gives them row 0, so do we.
  Layers that read another layer's keys get unused K/V, zeros, where the folder has none: llama.cpp asks for them.

Source of these facts: llama.cpp's ``conversion/gemma.py`` and ``conversion/base.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pocketgem.checkpoint import names
from pocketgem.checkpoint.dequant import dtype_of
from pocketgem.checkpoint.draft import Draft, value_bytes
from pocketgem.checkpoint.export import metadata_of, unused_keys
from pocketgem.checkpoint.header import raw_values
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.manifest import sidecar
from pocketgem.checkpoint.stream import Changes, Place, SourceTensor, place, read_rows, read_values, source_tensors
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import Progress, StoredType
from pocketgem.errors import UnsupportedError, WeightsError

# About the file the metadata came from, not about the model.
ABOUT_THE_FILE = ("general.alignment", "split.no", "split.count", "split.tensors.count")
FLOATS = (StoredType.F32, StoredType.F16, StoredType.BF16)
READ_AS_FLOAT32 = ("ffn_gate_inp.", "altup_correct_coef.", "altup_predict_coef.", ".scale")
_FILE_TYPES = {StoredType.F32: 0, StoredType.F16: 1, StoredType.BF16: 32}  # llama.cpp's enum llama_ftype
Chosen = Sequence[tuple[SourceTensor, StoredType]]


def copy_gguf(
    checkpoint: Checkpoint, path: Path, progress: Progress | None = None, changes: Retyped | None = None
) -> None:
    """Another GGUF file, split or not, as one file: every key and every tensor's bytes as they are, but for changes.

    Raises RunError when the disk is full, CheckpointError for a bad place or a source that changes meanwhile.
    """
    source = MappedFile(checkpoint.location.files[0])
    values = raw_values(source.buffer, source.size, str(source.path))
    kept = {key: value for key, value in values.items() if key not in ABOUT_THE_FILE}
    tensors = [(one, one.type) for one in source_tensors(checkpoint)]
    _write(path, kept, tensors, progress, changes)


def convert_folder(
    checkpoint: Checkpoint,
    path: Path,
    about: Mapping[str, object],
    tokens: int,
    progress: Progress | None = None,
    changes: Retyped | None = None,
) -> None:
    """A Hugging Face folder's text model. ``about``: keys beside the shapes, such as the vocabulary of ``tokens``.

    Raises as ``copy_gguf``; UnsupportedError for weights that are not floating point, WeightsError
    for fewer rows than tokens.
    """
    tensors = [(one, _kept(one)) for one in completed(checkpoint, tokens)]
    _check_rows(checkpoint, tensors, about)
    main = max(tensors, key=lambda pair: pair[0].numel)[1]
    metadata: dict[str, object] = {
        "general.architecture": checkpoint.config.family,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[main],
        "general.quantization_version": 2,
        **metadata_of(checkpoint.config),
        **about,
    }
    _write(path, {key: value_bytes(key, value) for key, value in metadata.items()}, tensors, progress, changes)


def _check_rows(checkpoint: Checkpoint, tensors: Chosen, about: Mapping[str, object]) -> None:
    """Runtimes take the number of tokens for that of the embedding's rows."""
    listed = about.get("tokenizer.ggml.tokens", ())
    tokens = len(listed) if isinstance(listed, list) else 0
    rows = next(one.shape[0] for one, _ in tensors if one.name == "token_embd.weight")
    if rows != tokens:
        raise WeightsError(f"{checkpoint.where}: {rows} embeddings for a vocabulary of {tokens} tokens")


def _kept(one: SourceTensor) -> StoredType:
    if one.type not in FLOATS:
        raise UnsupportedError(f"tensor {one.name} is stored as {one.type}, which is no weight of a Gemma model")
    plain = len(one.shape) < 2 or any(part in one.name for part in READ_AS_FLOAT32)
    return StoredType.F32 if plain else one.type


def completed(checkpoint: Checkpoint, tokens: int) -> Iterator[SourceTensor]:
    """The tensors of a folder as GGUF has them, for a vocabulary of ``tokens``."""
    config = checkpoint.config
    for one in source_tensors(checkpoint):
        if config.family == "gemma3" and one.name in ("token_embd.weight", "output.weight"):
            yield _cut(one, min(one.shape[0], tokens))
        elif config.family == "gemma3n" and one.name == names.gguf_name(names.TABLE):
            yield _extended(one, config.vocab_size)
        else:
            yield one
    for hf, shape in unused_keys(config).items():
        if hf not in checkpoint.tensors:
            yield SourceTensor(names.gguf_name(hf), shape, StoredType.F32, (), values=torch.zeros(shape))


def _cut(one: SourceTensor, rows: int) -> SourceTensor:
    return replace(one, shape=(rows, *one.shape[1:]), stored=(rows_of(one.stored[0], 0, rows),))


def _extended(one: SourceTensor, rows: int) -> SourceTensor:
    (table,), missing = one.stored, max(0, rows - one.shape[0])
    return replace(one, shape=(one.shape[0] + missing, one.shape[1]), stored=(table, *[rows_of(table, 0, 1)] * missing))


def rows_of(table: StoredTensor, start: int, stop: int) -> StoredTensor:
    """Some rows of a matrix as a tensor of their own."""
    size = table.nbytes // table.shape[0]
    return replace(
        table,
        shape=(stop - start, *table.shape[1:]),
        start=table.start + start * size,
        end=table.start + stop * size,
    )


def _write(
    path: Path, values: Mapping[str, bytes], tensors: Chosen, progress: Progress | None, changes: Retyped | None
) -> None:
    tensors = retyped(tensors, changes)
    made = {} if changes is None else changes.changes
    with Draft(path, values, [(one.name, one.shape, kind) for one, kind in tensors]) as draft:
        draft.fill((stored_as(one, kind, made) for one, kind in tensors), progress)
        sidecar(path).unlink(missing_ok=True)  # it speaks of the file that goes now
        draft.publish()


@dataclass(frozen=True)
class Retyped:
    """Changes of weights, and the type to store what is changed as; None: its own, float32 for one in blocks."""

    changes: Changes
    type: StoredType | None = None


def retyped(tensors: Chosen, changes: Retyped | None) -> list[tuple[SourceTensor, StoredType]]:
    """The types that changed tensors are stored as. Raises WeightsError for a change that none of them is given."""
    if changes is None:
        return list(tensors)
    met = {place(part) for one, _ in tensors for part in one.stored} & changes.changes.keys()
    if missing := [one for one in changes.changes.keys() - met if not any(_overlap(one, other) for other in met)]:
        raise WeightsError(f"{len(missing)} of the changed matrices are not written as they are stored")
    return [(one, _type_of(one, kind, changes)) for one, kind in tensors]


def _overlap(one: Place, other: Place) -> bool:
    """A stack is written whole or member by member; its changes are given both ways."""
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _type_of(one: SourceTensor, kind: StoredType, changes: Retyped) -> StoredType:
    if not any(place(part) in changes.changes for part in one.stored):
        return kind
    return changes.type or (StoredType.F32 if kind.packed else kind)


def stored_as(one: SourceTensor, kind: StoredType, changes: Changes | None = None) -> Iterator[memoryview]:
    """The bytes of a tensor stored as ``kind``, a piece at a time: its own bytes where nothing changes.

    Raises CheckpointError if the file was changed or cut since it was opened.
    """
    dtype = dtype_of(kind)
    if one.values is not None:
        yield _bytes(one.values.to(dtype))
        return
    same = kind is one.type and one.offset == 0.0
    for part, start, stop in one.pieces():
        change = changes.get(place(part)) if changes else None
        if same and part.type is kind and change is None:
            yield _bytes(read_rows(part, start, stop))
        else:
            values = read_values(part, start, stop)
            values = values if change is None else change(values, start)
            yield _bytes((values + one.offset if one.offset else values).to(dtype))


def _bytes(values: torch.Tensor) -> memoryview:
    return values.contiguous().view(-1).view(torch.uint8).numpy().data
