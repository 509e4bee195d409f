"""The tokenizer and the chat template of a checkpoint: what kind they are, and what they mark and ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pocketgem.checkpoint.load import Checkpoint
from pocketgem.errors import TokenizerError
from pocketgem.text import vocab
from pocketgem.text.budget import MAX_SOURCE
from pocketgem.text.source import vocabulary_from

MAX_STOPS = 16  # stop ids named; more than a handful is not Gemma


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer. ``bos``, ``eos`` and ``stops`` go from the id to the token's text."""

    kind: str
    size: int
    bos: dict[int, str]
    eos: dict[int, str]
    stops: dict[int, str]


@dataclass(frozen=True)
class Template:
    """The chat template, by what its text refers to."""

    sha256: str
    characters: int
    tools: bool
    thinking: bool
    fault: str | None  # why it cannot be read


def describe_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Look at the tokens; the encoder, which takes a second to build, is not needed. Raises TokenizerError."""
    words = vocabulary_from(checkpoint.metadata, checkpoint.location.folder, checkpoint.where)
    size = len(words.spellings)

    def named(ids: list[int]) -> dict[int, str]:
        return {id: words.piece(id).decode("utf-8", "replace") if 0 <= id < size else "(no such token)" for id in ids}

    return Vocabulary(
        kind=_kind(checkpoint.metadata),
        size=size,
        bos=named([words.bos_id]),
        eos=named([] if words.eos_id is None else [words.eos_id]),
        stops=named(_stops(checkpoint, words)[:MAX_STOPS]),
    )


def _kind(metadata: Mapping[str, object]) -> str:
    if not metadata:
        return "byte-pair merges (tokenizer.json)"
    form = metadata.get("tokenizer.ggml.model")
    return "SentencePiece scores" if form == "llama" else "byte-pair merges"


def _stops(checkpoint: Checkpoint, words: vocab.Vocabulary) -> list[int]:
    """The ids that end an answer by default; what is not an id is left for ``run`` to refuse."""
    return sorted({id for id in checkpoint.stops if type(id) is int} | words.end_ids)


def try_vocabulary(checkpoint: Checkpoint) -> tuple[Vocabulary | None, str | None]:
    """The vocabulary, or the reason why there is none."""
    try:
        return describe_vocabulary(checkpoint), None
    except TokenizerError as error:
        return None, str(error)


def describe_template(source: str | None) -> Template | None:
    """What a template's free variables say it can do. It is parsed, never run."""
    if source is None:
        return None
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    names, fault = _free_names(source)
    return Template(digest, len(source), "tools" in names, "enable_thinking" in names, fault)


def _free_names(source: str) -> tuple[set[str], str | None]:
    if len(source) > MAX_SOURCE:
        return set(), f"longer than {MAX_SOURCE} characters"
    from jinja2 import meta  # here: base models have no template, and need not wait for it

    from pocketgem.text.sandbox import Sandbox

    try:
        return meta.find_undeclared_variables(Sandbox().parse(source)), None
    except Exception as error:  # whatever a parser raises on a stranger's input
        return set(), " ".join(str(error).split())[:200] or type(error).__name__
