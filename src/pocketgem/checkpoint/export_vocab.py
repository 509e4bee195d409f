"""``tokenizer.json`` and its siblings as the ``tokenizer.*`` and sampling keys of a GGUF file.

As llama.cpp's converter writes them: Gemma 3 and 3n as SentencePiece scores (``llama``), Gemma 4 as listed merges
(``gemma4``). A ``tokenizer.json`` holds no scores, but its merges are sorted by them and its ids too, so that a token's
place among the normal ones is as good: only the order of scores is ever used. Where the merges are not those that
scores stand for, they are listed, for these families too.

One thing differs on purpose: tokens that the file matches whole are user-defined in Gemma 4 as well, where the
converter calls them normal and relies on the merges to find them.

Sources: llama.cpp's ``conversion/gemma.py``, ``conversion/base.py``, and ``gguf-py/gguf/vocab.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketgem.checkpoint.load import Checkpoint, read_json
from pocketgem.errors import FormatError

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # GGUF's token types
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
SPECIAL_SCORE, UNUSED_SCORE = -1000.0, -10_000.0
# Control tokens that runtimes must show, or nobody could parse what they enclose.
VISIBLE = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)
TURN_ENDS = ("<turn|>", "<end_of_turn>")
_RESERVED = re.compile(r"<unused\d+>")
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SPECIAL = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_KEY_OF = {"unk": "unknown", "pad": "padding"}  # where GGUF's word differs


@dataclass(frozen=True)
class _Tokens:
    """Texts by id, "" for an id that no token has; ``added``: id -> whether it is a control token."""

    texts: Sequence[str]
    added: Mapping[int, bool]
    merges: Sequence[tuple[str, str]]

    def kind(self, id: int) -> int:
        text = self.texts[id]
        if not text:
            return UNUSED
        if text in BYTES:
            return BYTE
        if text in VISIBLE:
            return USER_DEFINED
        if id in self.added:
            return CONTROL if self.added[id] or _RESERVED.fullmatch(text) else USER_DEFINED
        return NORMAL


def vocabulary_keys(checkpoint: Checkpoint) -> dict[str, object]:
    """The keys for a folder whose ``tokenizer.json`` ``text.vocab_json`` has accepted. Raises FormatError."""
    folder, family = checkpoint.location.folder, checkpoint.config.family
    if folder is None:
        raise FormatError(f"{checkpoint.where}: not a model folder")
    tokens = _tokens(folder / "tokenizer.json", 0 if family == "gemma3" else checkpoint.config.vocab_size)
    kinds = [tokens.kind(id) for id in range(len(tokens.texts))]
    scored = family != "gemma4" and _is_sentencepiece(tokens, kinds)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    return {
        **(_scored(tokens, kinds) if scored else _listed(tokens, kinds)),
        "tokenizer.ggml.token_type": kinds,
        **_special_ids(tokens.texts, config, checkpoint),
        "tokenizer.ggml.add_bos_token": config.get("add_bos_token") is not False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        **({"tokenizer.chat_template": checkpoint.chat_template} if checkpoint.chat_template else {}),
        **_sampling(checkpoint.generation),
    }


def _tokens(path: Path, rows: int) -> _Tokens:
    document: Any = read_json(path)
    try:
        added = {entry["id"]: bool(entry["special"]) for entry in document["added_tokens"]}
        ids = {**document["model"]["vocab"], **{entry["content"]: entry["id"] for entry in document["added_tokens"]}}
        merges = [_pair(merge) for merge in document["model"]["merges"]]
        texts = [""] * max(rows, 1 + max(ids.values()))
        for text, id in ids.items():
            texts[id] = text
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"{path}: not a tokenizer of Gemma's kind ({error!r})") from error
    return _Tokens(texts, added, merges)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_sentencepiece(tokens: _Tokens, kinds: Sequence[int]) -> bool:
    """Whether the merges are every way to cut a normal token into two, the tokens in the order of their ids."""
    normal = {text: id for id, text in enumerate(tokens.texts) if kinds[id] == NORMAL}
    made = [(left, right) for left, right in tokens.merges if left + right in normal]
    order = [normal[left + right] for left, right in made]
    if order != sorted(order):
        return False
    listed = {pair for pair in made if pair[0] in normal and pair[1] in normal}
    cuts = ((text[:at], text[at:]) for text in normal for at in range(1, len(text)))
    return len(listed) == sum(left in normal and right in normal for left, right in cuts)


def _scored(tokens: _Tokens, kinds: Sequence[int]) -> dict[str, object]:
    rank, scores = 0, []
    for kind in kinds:
        scores.append({NORMAL: -float(rank), BYTE: 0.0, UNUSED: UNUSED_SCORE}.get(kind, SPECIAL_SCORE))
        rank += kind == NORMAL
    # Runs of spaces are spelt with real ones here, as in the files of llama.cpp's converter.
    spelt = [text.replace("▁", " ") if kinds[id] == USER_DEFINED else text for id, text in enumerate(tokens.texts)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _padded(spelt),
        "tokenizer.ggml.scores": scores,
    }


def _listed(tokens: _Tokens, kinds: Sequence[int]) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": _padded(tokens.texts),
        "tokenizer.ggml.scores": [UNUSED_SCORE if kind == UNUSED else SPECIAL_SCORE for kind in kinds],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in tokens.merges],
    }


def _padded(texts: Sequence[str]) -> list[str]:
    """GGUF has a text for every row of the embedding."""
    return [text or f"[PAD{id}]" for id, text in enumerate(texts)]


def _special_ids(texts: Sequence[str], config: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, object]:
    places = {text: id for id, text in enumerate(texts)}
    found: dict[str, object] = {}
    for name, default in _SPECIAL.items():
        given = config.get(f"{name}_token")
        text = given.get("content") if isinstance(given, Mapping) else given
        id = places.get(text if isinstance(text, str) else default)
        if id is not None:
            found[f"tokenizer.ggml.{_KEY_OF.get(name, name)}_token_id"] = id
    turn_end = next((places[text] for text in TURN_ENDS if text in places), None)
    if turn_end is not None and turn_end != found.get("tokenizer.ggml.eos_token_id") and turn_end in checkpoint.stops:
        found["tokenizer.ggml.eot_token_id"] = turn_end
    return found


def _sampling(generation: Mapping[str, object]) -> dict[str, object]:
    """Only what is sampled by: a config with ``do_sample`` false means the most probable token, whatever else it says.

    Suppressed tokens are kept either way.
    """
    keys: dict[str, object] = {}
    for name, key in _SAMPLING.items():
        value = generation.get(name)
        if generation.get("do_sample", True) and isinstance(value, int | float) and not isinstance(value, bool):
            keys[f"general.sampling.{key}"] = int(value) if name == "top_k" else float(value)
    suppressed = generation.get("suppress_tokens")
    if isinstance(suppressed, list) and suppressed and all(type(id) is int for id in suppressed):
        keys["tokenizer.ggml.suppress_tokens"] = suppressed
    return keys
