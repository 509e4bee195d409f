"""``tokenizer.json``, as Hugging Face's ``tokenizers`` library writes it, to a ``Vocabulary``.

Only Gemma's pipeline is taken: byte-pair merges with byte fallback over text in which spaces are ▁. Padding, truncation
and post-processing of the file are left out: they would change a prompt in silence. From the sibling
``tokenizer_config.json`` only the names of the special tokens are read; it is data, and nothing in it is ever imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from pocketgem.errors import TokenizerError
from pocketgem.text.vocab import SPACE, Vocabulary, assemble, guarded

MAX_TOKENIZER = 128 << 20  # bytes; Gemma's tokenizer.json has 33 million
MAX_CONFIG = 16 << 20


def from_json(path: Path) -> Vocabulary:
    """``path`` is a tokenizer.json or the folder it lies in. Raises TokenizerError if it is not Gemma's kind."""
    path = path / "tokenizer.json" if path.is_dir() else path
    content = _read(path, MAX_TOKENIZER)
    loaded = guarded(lambda: tokenizers.Tokenizer.from_buffer(content), str(path))
    model = _checked(loaded, path)
    added = loaded.get_added_tokens_decoder()
    ids = {**loaded.get_vocab(with_added_tokens=True), **{token.content: id for id, token in added.items()}}
    names = _special_names(path.with_name("tokenizer_config.json"))
    return assemble(
        model,
        ids,
        control={token.content: id for id, token in added.items() if token.special},
        whole=[token.content for token in added.values() if not token.special],
        bos_id=ids.get(names["bos_token"]),
        eos_id=ids.get(names["eos_token"]),
    )


def _checked(loaded: tokenizers.Tokenizer, path: Path) -> models.BPE:
    """The model inside, if text goes to it the way Gemma's does."""
    model = loaded.model
    if not isinstance(model, models.BPE) or not model.byte_fallback or model.dropout:
        raise TokenizerError(f"{path}: not a Gemma tokenizer (byte-pair merges with byte fallback and no dropout)")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise TokenizerError(f"{path}: not a Gemma tokenizer (its tokens carry a prefix or suffix of their own)")
    if _state(loaded.normalizer) != {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
        raise TokenizerError(f"{path}: not a Gemma tokenizer (its normalizer must replace spaces by {SPACE})")
    splitter = _state(loaded.pre_tokenizer)
    # After the normalizer no space is left, so the split at spaces that Gemma's files contain does nothing.
    if splitter is not None and (splitter.get("type"), splitter.get("pattern")) != ("Split", {"String": " "}):
        raise TokenizerError(f"{path}: not a Gemma tokenizer (its pre-tokenizer is {splitter.get('type')})")
    return model


def _state(component: normalizers.Normalizer | pre_tokenizers.PreTokenizer | None) -> dict[str, object] | None:
    """A component of the pipeline as the JSON that it was read from."""
    if component is None:
        return None
    state: dict[str, object] = json.loads(component.__getstate__())
    return state


def _special_names(path: Path) -> dict[str, str]:
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    if not path.is_file():
        return names
    config = guarded(lambda: json.loads(_read(path, MAX_CONFIG)), str(path))
    for key in names:
        value = config.get(key) if isinstance(config, Mapping) else None
        value = value.get("content") if isinstance(value, Mapping) else value  # old files wrap the name in an object
        names[key] = value if isinstance(value, str) else names[key]
    return names


def _read(path: Path, most: int) -> bytes:
    if not path.is_file():  # also false for pipes and devices, which could be read for ever
        raise TokenizerError(f"{path} is not a file; give a tokenizer.json or a folder that has one")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise TokenizerError(f"{path} is larger than {most >> 20} MiB, which no Gemma tokenizer is")
    return content
