"""``tokenizer.json``, as Hugging Face's ``tokenizers`` library writes it, to a ``Vocabulary``.

The library itself is not given the file: a bad one can abort the whole process there. What is in it is checked here,
and only token texts and merges go on. Only Gemma's pipeline is taken: byte-pair merges with byte fallback over text in
which spaces are ▁. Padding, truncation and post-processing of the file are left out: they would change a prompt in
silence. From the sibling ``tokenizer_config.json`` only the names of the special tokens are read; it is data, and
nothing in it is ever imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketgem.errors import TokenizerError
from pocketgem.text.vocab import MAX_MERGES, SPACE, Merges, Vocabulary, assemble, guarded, spellings_of

MAX_TOKENIZER = 64 << 20  # bytes; Gemma's tokenizer.json has 33 million
MAX_CONFIG = 16 << 20

_SPACES_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# After the normalizer no space is left, so the split at spaces that Gemma's files contain does nothing.
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}}


def from_json(path: Path) -> Vocabulary:
    """``path`` is a tokenizer.json or the folder it lies in. Raises TokenizerError if it is not Gemma's kind."""
    path = path / "tokenizer.json" if path.is_dir() else path
    document = _object(_loaded(path, MAX_TOKENIZER), f"{path}")
    model = _model(document, path)
    added = _added(document.get("added_tokens"), path)
    ids = {**_vocabulary(model.get("vocab"), path), **{text: id for text, (id, _) in added.items()}}
    names = _special_names(path.with_name("tokenizer_config.json"))
    return assemble(
        spellings_of(ids),
        ids,
        _merges(model.get("merges"), path),
        control={text: id for text, (id, special) in added.items() if special},
        whole=[text for text, (_, special) in added.items() if not special],
        bos_id=ids.get(names["bos_token"]),
        eos_id=ids.get(names["eos_token"]),
    )


def _model(document: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The merging part of the file, if text goes to it the way Gemma's does."""
    model = _object(document.get("model"), f"{path}: model")
    options = (
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    )
    if model.get("type") != "BPE" or model.get("byte_fallback") is not True or any(options):
        raise TokenizerError(f"{path}: not a Gemma tokenizer (byte-pair merges with byte fallback, nothing else)")
    if document.get("normalizer") != _SPACES_REPLACED:
        raise TokenizerError(f"{path}: not a Gemma tokenizer (its normalizer must replace spaces by {SPACE})")
    splitter = document.get("pre_tokenizer")
    if splitter is not None and {**_object(splitter, f"{path}: pre_tokenizer"), **_SPLIT_AT_SPACES} != splitter:
        raise TokenizerError(f"{path}: not a Gemma tokenizer (its pre-tokenizer may only split at spaces)")
    return model


def _vocabulary(vocab: object, path: Path) -> dict[str, int]:
    tokens = _object(vocab, f"{path}: vocab")
    if {*map(type, tokens.values())} != {int}:
        raise TokenizerError(f"{path}: vocab must give every token a number")
    guarded(lambda: "".join(tokens).encode(), f"{path}: vocab is not UTF-8")
    return dict(tokens)


def _merges(merges: object, path: Path) -> Callable[[], Merges]:
    """Pairs of texts; older files write a pair as one text with a space inside."""
    lines = merges if isinstance(merges, list) and len(merges) <= MAX_MERGES else None
    pairs = [line.split(" ") if isinstance(line, str) else line for line in lines or ()]
    parts = {type(part) for pair in pairs if isinstance(pair, list) for part in pair}
    if lines is None or not {*map(type, pairs)} <= {list} or not {*map(len, pairs)} <= {2} or not parts <= {str}:
        raise TokenizerError(f"{path}: merges must be a list of at most {MAX_MERGES} pairs of tokens")
    guarded(lambda: "".join(left + right for left, right in pairs).encode(), f"{path}: merges are not UTF-8")
    return lambda: [(left, right) for left, right in pairs]


def _added(tokens: object, path: Path) -> dict[str, tuple[int, bool]]:
    """Control and user-defined tokens: text -> (id, whether it is a control token)."""
    if not isinstance(tokens, list):
        raise TokenizerError(f"{path}: added_tokens must be a list")
    added: dict[str, tuple[int, bool]] = {}
    for token in tokens:
        entry = _object(token, f"{path}: an added token")
        text, id, special = (entry.get(name) for name in ("content", "id", "special"))
        if not isinstance(text, str) or type(id) is not int or not isinstance(special, bool):
            raise TokenizerError(f"{path}: an added token must have content (text), id (a number) and special")
        added[text] = (id, special)
    guarded(lambda: "".join(added).encode(), f"{path}: added_tokens is not UTF-8")
    return added


def _special_names(path: Path) -> dict[str, str]:
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    config = _object(_loaded(path, MAX_CONFIG), f"{path}") if path.is_file() else {}
    for key in names:
        value = config.get(key)
        value = value.get("content") if isinstance(value, Mapping) else value  # old files wrap the name in an object
        names[key] = value if isinstance(value, str) else names[key]
    return names


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise TokenizerError(f"{where} must be a JSON object with something in it")
    return value


def _loaded(path: Path, most: int) -> object:
    if not path.is_file():  # also false for pipes and devices, which could be read for ever
        raise TokenizerError(f"{path} is not a file; give a tokenizer.json or a folder that has one")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise TokenizerError(f"{path} is larger than {most >> 20} MiB, which no Gemma tokenizer is")
    return guarded(lambda: json.loads(content), f"{path} is not JSON")
