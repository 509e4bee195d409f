"""One adapter in the three formats that others read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.dialect import Dialect
from pocketgem.adapters.gguf import write_gguf_adapter
from pocketgem.adapters.manifest import MANIFEST, Manifest, to_json
from pocketgem.adapters.mlx import write_mlx
from pocketgem.adapters.save import label_of, save_adapter
from pocketgem.errors import InputError


class Form(StrEnum):
    """peft: transformers, PEFT, vLLM and this package. mlx: mlx-lm. gguf: llama.cpp and what is made of it."""

    PEFT = "peft"
    MLX = "mlx"
    GGUF = "gguf"


def write_adapter(
    adapter: Adapter,
    form: Form,
    target: Path,
    *,
    family: str | None = None,
    layers: int | None = None,
    manifest: Manifest | None = None,
    dialect: Dialect | None = None,
) -> tuple[str, ...]:
    """Write ``adapter`` as a folder, or as a file for GGUF; what was at ``target`` is replaced.

    family: the base's general.architecture, which GGUF must name. layers: how many blocks the base has, for mlx-lm.
    manifest, dialect: what goes along in PEFT's format. Returns what a person should know of it. Raises
    UnsupportedError for what a format cannot say, InputError for a missing family, CheckpointError and RunError for a
    place or a disk.
    """
    if form is Form.PEFT:
        beside = {} if manifest is None else {MANIFEST: to_json(manifest)}
        beside |= {} if dialect is None else dialect.files()
        save_adapter(target, adapter.deltas, label_of(adapter), beside)
        return ()
    if form is Form.MLX:
        return write_mlx(target, adapter, layers=layers).lines
    if family is None:
        raise InputError("a GGUF adapter names its base's architecture: give the base with --model")
    return write_gguf_adapter(target, adapter, family).lines


def experts_in(manifest: Manifest | None) -> int | None:
    """How many experts the base of an adapter has, as far as the adapter changes them."""
    shapes = (target.base.shape for target in manifest.targets.values()) if manifest is not None else ()
    return next((shape[0] for shape in shapes if len(shape) == 3), None)
