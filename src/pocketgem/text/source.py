"""Where a checkpoint lists its tokens: in a GGUF file's metadata, or in a ``tokenizer.json`` beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketgem.errors import TokenizerError
from pocketgem.text.vocab import Vocabulary, from_gguf
from pocketgem.text.vocab_json import from_json


def vocabulary_from(metadata: Mapping[str, object], folder: Path | None, where: str) -> Vocabulary:
    """The vocabulary in GGUF ``metadata``, or in ``folder`` if it is empty. Raises TokenizerError naming ``where``."""
    if metadata:
        return from_gguf(metadata)
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{where}: no tokenizer.json beside the weights")
    return from_json(folder / "tokenizer.json")
