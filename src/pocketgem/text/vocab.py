"""What a file says of its tokens, and the byte-pair encoder built from it. Everything read here is untrusted.

A Gemma vocabulary spells a space as ``▁`` (U+2581), has one token for each of the 256 bytes, and comes in two forms:

- ``tokenizer.ggml.model = llama`` (Gemma 3): SentencePiece, which stores a score for each token and no merges.
  SentencePiece always joins the neighbours whose joined text scores best, the leftmost first. So every way to cut a
  token into two tokens is a merge, ranked by the score of the whole; the result equals SentencePiece's own.
- ``tokenizer.ggml.model = gemma4``, and every ``tokenizer.json``: the merges are listed, best first.

Three kinds of token never come from a merge: control tokens (``<bos>``, ``<|turn>``), which no plain text may produce;
user-defined tokens (runs of newlines or spaces, HTML tags), which are matched whole before merging; and byte tokens.

Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and https://huggingface.co/docs/tokenizers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tokenizers
from tokenizers import AddedToken, models

from pocketgem.errors import TokenizerError

SPACE = "▁"  # U+2581: how a vocabulary spells a space
BYTE_SPELLINGS = tuple(f"<0x{byte:02X}>" for byte in range(256))

MAX_TOKENS = 1 << 20  # four times the largest Gemma vocabulary
MAX_MERGES = 1 << 22  # eight times as many as Gemma has
MAX_TOKEN_LENGTH = 128  # characters; Gemma's longest has 31, and cutting a token costs its length squared
MAX_WHOLE = 1 << 13  # user-defined tokens; Gemma 3 has 165

# GGUF's token types. Unknown and unused tokens are out of the text's reach, as control tokens are.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Files type some control tokens as user-defined so that runtimes print them: Gemma 4's channel and tool markers,
# Gemma 3's image markers. Typed so or not, plain text must not produce them.
_CONTROL_LIKE = re.compile(
    r"<\|.+>|<.+\|>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_\w+>|<\w+_soft_token>|\[multimodal\]", re.DOTALL
)

T = TypeVar("T")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, what kind each is, and ``bpe``, which turns text without control tokens (spaces as ▁) into ids."""

    spellings: Sequence[str]  # by id; spaces as ▁ except in control tokens; "" for an id that no token has
    control: Mapping[str, int]  # text -> id
    byte_ids: Sequence[int]  # by byte value, 256 of them
    bos_id: int
    eos_id: int | None
    adds_bos: bool
    bpe: tokenizers.Tokenizer


def from_gguf(metadata: Mapping[str, object]) -> Vocabulary:
    """The vocabulary under ``tokenizer.ggml.*``. Raises TokenizerError, naming the key that is wrong."""
    form = metadata.get("tokenizer.ggml.model")
    if form not in ("llama", "gemma4"):
        raise TokenizerError(f"tokenizer.ggml.model is {form!r}: only Gemma's 'llama' and 'gemma4' are supported")
    if _flag(metadata, "add_space_prefix", False):
        raise TokenizerError("tokenizer.ggml.add_space_prefix is true, which no Gemma vocabulary asks for")
    spellings, kinds = _typed_tokens(metadata)
    if form == "llama":
        spellings, merges = _sentencepiece(metadata, spellings, kinds)
    else:
        merges = _listed_merges(metadata)
    ids = {text: id for id, text in enumerate(spellings)}
    control = {t: id for (t, id), kind in zip(ids.items(), kinds, strict=True) if kind in (UNKNOWN, CONTROL, UNUSED)}
    return assemble(
        ids,
        merges,
        control=control,
        whole=[text for text, kind in zip(spellings, kinds, strict=True) if kind == USER_DEFINED],
        bos_id=_special_id(metadata, "bos", len(ids)),
        eos_id=_special_id(metadata, "eos", len(ids)),
        adds_bos=_flag(metadata, "add_bos_token", True),
    )


def assemble(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    control: Mapping[str, int],
    whole: Sequence[str],
    bos_id: int | None,
    eos_id: int | None,
    adds_bos: bool = True,
) -> Vocabulary:
    """The checks and steps that all file formats share. ``merges``: best first. ``whole``: the user-defined tokens."""
    spellings = _by_id(ids)
    control = {**control, **{text: ids[text] for text in control_like(ids)}}
    if bos_id is None:
        raise TokenizerError("the vocabulary names no begin-of-sequence token, and every Gemma prompt starts with one")
    control |= {spellings[id]: id for id in (bos_id, eos_id) if id is not None}  # so, whatever the file types them as
    byte_ids = [ids.get(spelling, -1) for spelling in BYTE_SPELLINGS]
    if -1 in byte_ids or not {*byte_ids}.isdisjoint(control.values()):
        raise TokenizerError("the vocabulary lacks some of the 256 byte tokens <0x00>..<0xFF>, so not all text has ids")
    if single := [text for text in control if len(text) == 1]:
        raise TokenizerError(f"control token {single[0]!r} is a single character, so text could not be told from it")
    bpe = _encoder(ids, merges, [text for text in whole if text not in control])
    return Vocabulary(spellings, control, tuple(byte_ids), bos_id, eos_id, adds_bos, bpe)


def control_like(texts: Iterable[str]) -> list[str]:
    """The texts that are control tokens by their spelling, whatever the file calls them."""
    return [text for text in texts if text[0] in "<[" and _CONTROL_LIKE.fullmatch(text)]


def guarded(build: Callable[[], T], where: str) -> T:
    """``build()``, with whatever a library raises on a stranger's data named as ours."""
    try:
        return build()
    except Exception as error:
        raise TokenizerError(f"{where}: {' '.join(str(error).split())[:200]}") from error


def _by_id(ids: Mapping[str, int]) -> list[str]:
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= MAX_TOKENS or min(ids.values()) < 0:
        raise TokenizerError(f"the vocabulary numbers its tokens up to {size - 1}; between 1 and {MAX_TOKENS} can be")
    spellings = [""] * size
    for text, id in ids.items():
        if spellings[id] or not 0 < len(text) <= MAX_TOKEN_LENGTH:
            raise TokenizerError(
                f"token {id} is {text[:40]!r}: a token needs an id of its own and 1 to {MAX_TOKEN_LENGTH} characters"
            )
        spellings[id] = text
    return spellings


def _encoder(ids: Mapping[str, int], merges: Sequence[tuple[str, str]], whole: Sequence[str]) -> tokenizers.Tokenizer:
    if len(whole) > MAX_WHOLE:
        raise TokenizerError(f"the vocabulary has {len(whole)} user-defined tokens, more than {MAX_WHOLE}")
    model = guarded(lambda: models.BPE(vocab=dict(ids), merges=list(merges), byte_fallback=True), "the vocabulary")
    encoder = tokenizers.Tokenizer(model)
    encoder.add_tokens([AddedToken(text, normalized=False, special=False) for text in whole])
    return encoder


def _typed_tokens(metadata: Mapping[str, object]) -> tuple[list[str], list[int]]:
    tokens, kinds = _strings(metadata, "tokens", MAX_TOKENS), _numbers(metadata, "token_type")
    if len(kinds) != len(tokens) or not {*kinds} <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise TokenizerError(f"tokenizer.ggml.token_type must give each of {len(tokens)} tokens a type from 1 to 6")
    if len({*tokens}) != len(tokens):
        raise TokenizerError("tokenizer.ggml.tokens lists a token twice, so its text would have two ids")
    if min(map(len, tokens), default=0) == 0 or max(map(len, tokens)) > MAX_TOKEN_LENGTH:
        raise TokenizerError(f"tokenizer.ggml.tokens has a token that is empty or over {MAX_TOKEN_LENGTH} characters")
    bytes_typed = {text for text, kind in zip(tokens, kinds, strict=True) if kind == BYTE}
    if bytes_typed != {*BYTE_SPELLINGS}:
        odd = sorted(bytes_typed ^ {*BYTE_SPELLINGS})[0]
        raise TokenizerError(f"the byte tokens must be <0x00> to <0xFF>, each once; {odd[:40]!r} is missing or surplus")
    return tokens, [int(kind) for kind in kinds]


def _sentencepiece(
    metadata: Mapping[str, object], tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Spellings, and the merges that the scores stand for."""
    scores = _numbers(metadata, "scores")
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise TokenizerError(f"tokenizer.ggml.scores must hold one finite score for each of {len(tokens)} tokens")
    # Converters write the user-defined runs of spaces with real spaces; the text that reaches the merges has none.
    respelled = [t.replace(" ", SPACE) if kind == USER_DEFINED else t for t, kind in zip(tokens, kinds, strict=True)]
    if len({*respelled}) != len(tokens):
        raise TokenizerError("tokenizer.ggml.tokens lists a token twice: once with spaces and once with ▁")
    normal = [id for id, kind in enumerate(kinds) if kind == NORMAL]
    normal.sort(key=scores.__getitem__, reverse=True)
    return respelled, _every_cut([tokens[id] for id in normal])


def _every_cut(best_first: Sequence[str]) -> list[tuple[str, str]]:
    # 1.1 million cuts, and half of the time that loading takes: a comprehension is the fastest form in Python.
    known = {*best_first}
    return [
        (left, right)
        for text in best_first
        for cut in range(1, len(text))
        if (left := text[:cut]) in known and (right := text[cut:]) in known
    ]


def _listed_merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    pairs = [line.split(" ") for line in _strings(metadata, "merges", MAX_MERGES)]
    if not {*map(len, pairs)} <= {2}:
        raise TokenizerError("tokenizer.ggml.merges must hold lines of two tokens with one space between them")
    return [(left, right) for left, right in pairs]


def _strings(metadata: Mapping[str, object], name: str, most: int) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not 0 < len(values) <= most or {*map(type, values)} != {str}:
        raise TokenizerError(f"tokenizer.ggml.{name} must be a list of 1 to {most} texts; the file is damaged")
    guarded(lambda: "".join(values).encode(), f"tokenizer.ggml.{name} is not UTF-8")
    return values


def _numbers(metadata: Mapping[str, object], name: str) -> list[float]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not {*map(type, values)} <= {int, float}:
        raise TokenizerError(f"tokenizer.ggml.{name} must be a list of numbers; the file is damaged")
    return values


def _special_id(metadata: Mapping[str, object], name: str, size: int) -> int | None:
    id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if id is not None and (type(id) is not int or not 0 <= id < size):
        raise TokenizerError(f"tokenizer.ggml.{name}_token_id is {id!r}, which is none of the {size} tokens")
    return id


def _flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}; it must be true or false")
    return value
