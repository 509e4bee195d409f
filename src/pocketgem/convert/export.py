"""A model in the form that another runtime reads: one GGUF file, or a safetensors folder, with all that belongs to it.

Nothing is loaded to be run: tensors are streamed from file to file. The result appears under its name only when it is
complete, with checksums that ``pocketgem verify`` and ``sha256sum -c`` compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pocketgem.checkpoint.card import PREFIX, QualityCard
from pocketgem.checkpoint.durable import new_folder
from pocketgem.checkpoint.export_vocab import vocabulary_keys
from pocketgem.checkpoint.folder_tensors import (
    folder_as_folder,
    gguf_as_folder,
    is_lossless,
    lossless_type,
    storing_as,
)
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint, read_json
from pocketgem.checkpoint.manifest import MANIFEST, listed_names, manifest_text, write_sidecar
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.save_gguf import Retyped, convert_folder, copy_gguf, retyped
from pocketgem.checkpoint.save_safetensors import Chosen, save_safetensors, total_bytes, write_synced
from pocketgem.checkpoint.types import Progress, StoredType
from pocketgem.config.to_hf import to_hf
from pocketgem.convert.tokenizer_files import tokenizer_config, tokenizer_json
from pocketgem.errors import CheckpointError
from pocketgem.text.source import vocabulary_from

Dtype = Literal["float32", "bfloat16", "float16"]
TYPES: Mapping[str, StoredType] = {"float32": StoredType.F32, "bfloat16": StoredType.BF16, "float16": StoredType.F16}
NAMES = {stored: name for name, stored in TYPES.items()}
SHARD_SIZE = 5_000_000_000
QUALITY = "quality.json"
TEXTS_BYTES = 100_000_000  # room for a tokenizer and the rest, on the safe side
# What is copied from folder to folder beside the weights: data that runtimes read, never code.
COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", QUALITY,
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written. ``lossless``: every weight is the number it was; ``notes`` say what did not come along."""

    path: str
    format: str
    files: tuple[str, ...]
    bytes: int
    dtype: str
    lossless: bool
    notes: tuple[str, ...]


def export_to_gguf(
    source: str | Path,
    target: Path,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    changes: Retyped | None = None,
) -> Exported:
    """Write ``target`` from a GGUF file, its bytes untouched, or from a folder, its matrices' types kept.

    changes: of its weights (``adapters/merge.py``); they are made while it is written.
    A file that was there is replaced when the new one is complete. Raises CheckpointError and TokenizerError for a
    source that cannot be exported and for a bad place, RunError when the disk is full.
    """
    checkpoint = open_checkpoint(resolve(source, offline=offline))
    check_apart(checkpoint, target)
    if checkpoint.location.kind == "gguf":
        copy_gguf(checkpoint, target, progress, changes)
        notes: tuple[str, ...] = ()
    else:
        vocabulary = vocabulary_from({}, checkpoint.location.folder, checkpoint.where)  # refuses what is not Gemma's
        about = {"general.name": _name(checkpoint), **vocabulary_keys(checkpoint), **_card_keys(checkpoint)}
        convert_folder(checkpoint, target, about, len(vocabulary.spellings), progress, changes)
        notes = _left_behind(checkpoint)
    sums = write_sidecar(target, progress)
    size = target.stat().st_size
    lossless = changes is None
    return Exported(str(target), "gguf", (target.name, sums.name), size, _main_type(target), lossless, notes)


def export_to_safetensors(
    source: str | Path,
    target: Path,
    *,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
    offline: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
    changes: Retyped | None = None,
) -> Exported:
    """Write the folder ``target`` from a GGUF file or another folder.

    ``dtype`` None: as stored in a folder; of a GGUF file the smallest type that rounds nothing. A folder that is there
    must be empty or, with ``replace``, hold nothing but an earlier export. Raises as ``export_to_gguf``.
    """
    checkpoint = open_checkpoint(resolve(source, offline=offline))
    check_apart(checkpoint, target)
    from_gguf = checkpoint.location.kind == "gguf"
    tensors = gguf_as_folder(checkpoint) if from_gguf else folder_as_folder(checkpoint)
    kind = TYPES[dtype] if dtype is not None else lossless_type(tensors) if from_gguf else None
    chosen, made = retyped(storing_as(tensors, kind), changes), None if changes is None else changes.changes
    lossless = changes is None and (kind is None or is_lossless(tensors, kind))
    _check_free(target, replace)
    with new_folder(target, total_bytes(chosen) + TEXTS_BYTES) as folder:
        stored = NAMES.get(kind or _widest(chosen), "float32")
        texts = dict(_texts_of_gguf(checkpoint, stored) if from_gguf else _texts_of_folder(checkpoint, stored, dtype))
        texts.setdefault("README.md", _readme(checkpoint, stored, lossless=lossless).encode())
        for name, content in texts.items():
            write_synced(folder / name, content)
        save_safetensors(folder, chosen, shard_size, _note(checkpoint), progress, made)
        write_synced(folder / MANIFEST, manifest_text(sorted(folder.iterdir())).encode())
        open_checkpoint(resolve(folder))  # what cannot be read again gets no name
    notes = () if lossless or dtype is None else (f"weights were rounded to {dtype}",)
    written = sorted(path.name for path in target.iterdir())
    size = sum((target / name).stat().st_size for name in written)
    return Exported(str(target), "safetensors", tuple(written), size, stored, lossless, notes)


def check_apart(checkpoint: Checkpoint, target: Path) -> None:
    """A model is not written over itself. Raises CheckpointError."""
    taken = [*checkpoint.location.files, *([checkpoint.location.folder] if checkpoint.location.folder else [])]
    if target.exists() and any(path.exists() and path.samefile(target) for path in taken):
        raise CheckpointError(f"{target}: is the model itself; choose another name")


def _check_free(target: Path, replace: bool) -> None:
    """Raises CheckpointError for a folder that holds what no export wrote: that is somebody's."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: is no folder; choose another name")
    there = {path.name for path in target.iterdir()} if target.exists() else set()
    if not there:
        return
    if not replace:
        raise CheckpointError(f"{target}: is already there; choose another name, or give --force")
    if strange := sorted(there - {MANIFEST, *listed_names(target)}):
        raise CheckpointError(f"{target}: holds {strange[0]}, which no export wrote; choose another name")


def _name(checkpoint: Checkpoint) -> str:
    given = (
        read_json(checkpoint.location.folder / "config.json").get("_name_or_path")
        if checkpoint.location.folder
        else None
    )
    folder = checkpoint.location.folder.resolve().name if checkpoint.location.folder else ""
    return given.rpartition("/")[2] if isinstance(given, str) and given else folder or "model"


def _main_type(file: Path) -> str:
    """The type most bytes of weights have; reading it back is the last check of the file."""
    sizes: dict[str, int] = {}
    for tensor in GGUFFile.open(file).tensors.values():
        sizes[tensor.type.value] = sizes.get(tensor.type.value, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _widest(chosen: Chosen) -> StoredType:
    return max(chosen, key=lambda pair: pair[0].numel)[1]


def _left_behind(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not checkpoint.others:
        return ()
    return (
        "vision and audio towers stay behind: GGUF keeps them in a file of their own (mmproj), which is not written",
    )


# ---- the texts -----------------------------------------------------------------------------------------------------


def _texts_of_gguf(checkpoint: Checkpoint, dtype: str) -> Iterator[tuple[str, bytes]]:
    vocabulary = vocabulary_from(checkpoint.metadata, None, checkpoint.where)
    config = to_hf(checkpoint.config, dtype)
    yield "config.json", _json(config)
    yield "generation_config.json", _json(_generation(checkpoint))
    yield "tokenizer.json", json.dumps(tokenizer_json(vocabulary), ensure_ascii=False).encode()
    yield "tokenizer_config.json", _json(tokenizer_config(vocabulary, checkpoint))
    if checkpoint.chat_template:
        yield "chat_template.jinja", checkpoint.chat_template.encode()
    if (card := card_of(checkpoint)) is not None:
        yield QUALITY, _json(asdict(card))


def _texts_of_folder(checkpoint: Checkpoint, stored: str, dtype: Dtype | None) -> Iterator[tuple[str, bytes]]:
    folder = checkpoint.location.folder
    for path in (folder / name for name in COPIED) if folder is not None else ():
        if path.is_file():
            content = path.read_bytes()
            retype = path.name == "config.json" and dtype is not None
            yield path.name, _retyped(content, stored) if retype else content


def _retyped(content: bytes, dtype: str) -> bytes:
    """A config with the type the weights have now, wherever it said another."""

    def renamed(value: object) -> object:
        if isinstance(value, dict):
            return {key: dtype if key in ("dtype", "torch_dtype") else renamed(item) for key, item in value.items()}
        return value

    changed = renamed(json.loads(content))
    return _json({**changed, "dtype": dtype}) if isinstance(changed, dict) else content


def _generation(checkpoint: Checkpoint) -> dict[str, object]:
    config = checkpoint.config
    return {"bos_token_id": config.bos_id, "pad_token_id": 0, **checkpoint.generation}


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# ---- the quality card ----------------------------------------------------------------------------------------------


def card_of(checkpoint: Checkpoint) -> QualityCard | None:
    """What was measured of the weights when they were quantised, if that is known."""
    if checkpoint.location.folder is None:
        return QualityCard.from_metadata(checkpoint.metadata)
    file = checkpoint.location.folder / QUALITY
    content = read_json(file) if file.is_file() else {}
    return QualityCard.from_metadata({PREFIX + key: value for key, value in content.items()})


def _card_keys(checkpoint: Checkpoint) -> dict[str, object]:
    card = card_of(checkpoint)
    return {} if card is None else card.to_metadata()


def _note(checkpoint: Checkpoint) -> dict[str, str]:
    card = card_of(checkpoint)
    return {} if card is None else {PREFIX.rstrip("."): json.dumps(asdict(card))}


def _readme(checkpoint: Checkpoint, dtype: str, *, lossless: bool) -> str:
    origin = Path(checkpoint.where).name if checkpoint.location.folder is None else checkpoint.location.folder.name
    exact = "every weight is the number it was there" if lossless else "weights were rounded to that type, or changed"
    lines = [
        f"# {_name(checkpoint) if checkpoint.location.folder else checkpoint.metadata.get('general.name', origin)}",
        "",
        f"Exported by pocketgem from `{origin}` as {dtype}; {exact}.",
        "The checksums are in `pocketgem.sha256`: `pocketgem verify .` or `sha256sum -c pocketgem.sha256`.",
    ]
    card = card_of(checkpoint)
    if card is not None:
        lines += [
            "",
            f"Quantised to {card.format}. Measured then against {card.source}, over {card.tokens} tokens:",
            f"mean divergence {card.kl_mean:.2e} nat, same most probable token {card.same_top1:.1%}.",
        ]
    return "\n".join(lines) + "\n"
