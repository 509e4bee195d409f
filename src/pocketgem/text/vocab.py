"""What a file says of its tokens, and the merges it stands for. Everything read here is untrusted.

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

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import TypeVar

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
# Gemma 3's image markers, FunctionGemma's calls. Typed so or not, plain text must not produce them.
_CONTROL_LIKE = re.compile(
    r"<\|.+>|<.+\|>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_(?:of|function)_\w+>"
    r"|<\w+_soft_token>|<escape>|\[multimodal\]",
    re.DOTALL,
)

_RESERVED = re.compile(r"<unused\d+>")

# What ends a model's turn, beside the end-of-sequence token.
TURN_ENDS = ("<turn|>", "<end_of_turn>", "<|tool_response>", "<start_function_response>")

T = TypeVar("T")
Merges = Sequence[tuple[str, str]]  # best first


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, what kind each is, and how text becomes them.

    ``merges`` is a function because it takes half a second for a quarter of a million tokens, and naming a token takes
    none of it. It raises TokenizerError.
    """

    spellings: Sequence[str]  # by id; spaces as ▁ except in control tokens; "" for an id that no token has
    control: Mapping[str, int]  # text -> id
    byte_ids: Sequence[int]  # by byte value, 256 of them
    bos_id: int
    eos_id: int | None
    adds_bos: bool
    whole: Sequence[str]  # the user-defined tokens
    merges: Callable[[], Merges]

    def renamed(self, names: Mapping[str, int]) -> Vocabulary:
        """With these names for reserved control tokens. Raises TokenizerError for names that speak of other tokens."""
        control, spellings = {**self.control}, [*self.spellings]
        for name, id in names.items():
            if not 0 <= id < len(spellings) or control.get(spellings[id]) != id or spellings[id] == name:
                continue
            if name in control or not _RESERVED.fullmatch(spellings[id]):
                raise TokenizerError(f"token {id} cannot be called {name!r}: it is {spellings[id]!r} here")
            del control[spellings[id]]
            control[name], spellings[id] = id, name
        return replace(self, control=control, spellings=spellings)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens with which a model ends its turn."""
        named = (self.control.get(name) for name in TURN_ENDS)
        return frozenset(id for id in (self.eos_id, *named) if id is not None)

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits of the tokens by id and of what each is: the same ids mean the same texts."""
        digest = hashlib.sha256("\0".join(self.spellings).encode("utf-8", "surrogatepass"))
        digest.update(repr((sorted(self.control.items()), sorted(self.whole), list(self.byte_ids))).encode())
        return digest.hexdigest()

    @cached_property
    def _bytes(self) -> Mapping[int, bytes]:
        return {id: bytes([byte]) for byte, id in enumerate(self.byte_ids)}

    def piece(self, id: int) -> bytes:
        """The bytes that one token stands for: a whole text, or a single byte for a byte token.

        Raises TokenizerError for an id out of range.
        """
        if not 0 <= id < len(self.spellings):
            raise TokenizerError(f"id {id} lies outside the vocabulary of {len(self.spellings)} tokens")
        if id in self._bytes:
            return self._bytes[id]
        spelling = self.spellings[id]
        return (spelling if id in self.control_ids else spelling.replace(SPACE, " ")).encode()


def from_gguf(metadata: Mapping[str, object]) -> Vocabulary:
    """The vocabulary under ``tokenizer.ggml.*``. Raises TokenizerError, naming the key that is wrong."""
    form = metadata.get("tokenizer.ggml.model")
    if form not in ("llama", "gemma4"):
        raise TokenizerError(f"tokenizer.ggml.model is {form!r}: only Gemma's 'llama' and 'gemma4' are supported")
    if _flag(metadata, "add_space_prefix", False):
        raise TokenizerError("tokenizer.ggml.add_space_prefix is true, which no Gemma vocabulary asks for")
    ids, kinds = _typed_tokens(metadata)
    spellings = list(ids)
    if form == "llama":
        merges = _sentencepiece_merges(metadata, tuple(spellings), kinds)
        _respell(ids, spellings, [id for id, kind in kinds.items() if kind == USER_DEFINED])
    else:
        merges = _listed_merges(metadata)
    return assemble(
        spellings,
        ids,
        merges,
        control={spellings[id]: id for id, kind in kinds.items() if kind in (UNKNOWN, CONTROL, UNUSED)},
        whole=[spellings[id] for id, kind in kinds.items() if kind == USER_DEFINED],
        bos_id=_special_id(metadata, "bos", len(ids)),
        eos_id=_special_id(metadata, "eos", len(ids)),
        adds_bos=_flag(metadata, "add_bos_token", True),
    )


def assemble(
    spellings: Sequence[str],
    ids: Mapping[str, int],
    merges: Callable[[], Merges],
    *,
    control: Mapping[str, int],
    whole: Sequence[str],
    bos_id: int | None,
    eos_id: int | None,
    adds_bos: bool = True,
) -> Vocabulary:
    """The checks and steps that all file formats share. ``whole``: the user-defined tokens."""
    control = {**control, **{text: ids[text] for text in control_like(ids)}}
    if bos_id is None:
        raise TokenizerError("the vocabulary names no begin-of-sequence token, and every Gemma prompt starts with one")
    control |= {spellings[id]: id for id in (bos_id, eos_id) if id is not None}  # so, whatever the file types them as
    byte_ids = [ids.get(spelling, -1) for spelling in BYTE_SPELLINGS]
    if -1 in byte_ids or not {*byte_ids}.isdisjoint(control.values()):
        raise TokenizerError("the vocabulary lacks some of the 256 byte tokens <0x00>..<0xFF>, so not all text has ids")
    if single := [text for text in control if len(text) == 1]:
        raise TokenizerError(f"control token {single[0]!r} is a single character, so text could not be told from it")
    whole = [text for text in whole if text not in control]
    if len(whole) > MAX_WHOLE:
        raise TokenizerError(f"the vocabulary has {len(whole)} user-defined tokens, more than {MAX_WHOLE}")
    return Vocabulary(spellings, control, tuple(byte_ids), bos_id, eos_id, adds_bos, whole, merges)


def control_like(texts: Iterable[str]) -> list[str]:
    """The texts that are control tokens by their spelling, whatever the file calls them."""
    return [text for text in texts if text[0] in "<[" and _CONTROL_LIKE.fullmatch(text)]


def guarded(build: Callable[[], T], where: str) -> T:
    """``build()``, with whatever a library raises on a stranger's data named as ours."""
    try:
        return build()
    except Exception as error:
        raise TokenizerError(f"{where}: {' '.join(str(error).split())[:200]}") from error


def spellings_of(ids: Mapping[str, int]) -> list[str]:
    """Tokens by id. Raises TokenizerError for an id that two have, or that is out of range, and for a text that is."""
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= MAX_TOKENS or min(ids.values()) < 0:
        raise TokenizerError(f"the vocabulary numbers its tokens up to {size - 1}; between 1 and {MAX_TOKENS} can be")
    by_id = dict(zip(ids.values(), ids, strict=True))
    if len(by_id) < len(ids) or not 0 < min(map(len, ids)) <= max(map(len, ids)) <= MAX_TOKEN_LENGTH:
        text, id = next((t, id) for t, id in ids.items() if by_id[id] != t or not 0 < len(t) <= MAX_TOKEN_LENGTH)
        raise TokenizerError(
            f"token {id} is {text[:40]!r}: a token needs an id of its own and 1 to {MAX_TOKEN_LENGTH} characters"
        )
    return list(map(by_id.get, range(size), repeat("")))


def _typed_tokens(metadata: Mapping[str, object]) -> tuple[dict[str, int], dict[int, int]]:
    """Text -> id in the order of ids, and the types of tokens that are not normal: id -> type.

    Only these few are looked at one by one: a quarter of a million tokens at Python's pace would be felt.
    """
    tokens, kinds = _strings(metadata, "tokens", MAX_TOKENS), _numbers(metadata, "token_type")
    if len(kinds) != len(tokens) or not {*kinds} <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise TokenizerError(f"tokenizer.ggml.token_type must give each of {len(tokens)} tokens a type from 1 to 6")
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        raise TokenizerError("tokenizer.ggml.tokens lists a token twice, so its text would have two ids")
    if min(map(len, tokens), default=0) == 0 or max(map(len, tokens)) > MAX_TOKEN_LENGTH:
        raise TokenizerError(f"tokenizer.ggml.tokens has a token that is empty or over {MAX_TOKEN_LENGTH} characters")
    special = {id: int(kind) for id, kind in enumerate(kinds) if kind != NORMAL}
    bytes_typed = {tokens[id] for id, kind in special.items() if kind == BYTE}
    if bytes_typed != {*BYTE_SPELLINGS}:
        odd = sorted(bytes_typed ^ {*BYTE_SPELLINGS})[0]
        raise TokenizerError(f"the byte tokens must be <0x00> to <0xFF>, each once; {odd[:40]!r} is missing or surplus")
    return ids, special


def _respell(ids: dict[str, int], spellings: list[str], whole: Iterable[int]) -> None:
    """Converters write user-defined runs of spaces with real spaces; the text that reaches the merges has none."""
    for id in whole:
        del ids[spellings[id]]
        spellings[id] = spellings[id].replace(" ", SPACE)
        if ids.setdefault(spellings[id], id) != id:
            raise TokenizerError("tokenizer.ggml.tokens lists a token twice: once with spaces and once with ▁")


def _sentencepiece_merges(
    metadata: Mapping[str, object], tokens: Sequence[str], kinds: Mapping[int, int]
) -> Callable[[], Merges]:
    """The merges that the scores stand for."""
    scores = _numbers(metadata, "scores")
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise TokenizerError(f"tokenizer.ggml.scores must hold one finite score for each of {len(tokens)} tokens")
    return lambda: _every_cut([tokens[id] for id in _best_first(scores) if id not in kinds])


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


def _every_cut(best_first: Sequence[str]) -> Merges:
    # 1.1 million cuts, and half of the time that loading takes: a comprehension is the fastest form in Python.
    known = {*best_first}
    return [
        (left, right)
        for text in best_first
        for cut in range(1, len(text))
        if (left := text[:cut]) in known and (right := text[cut:]) in known
    ]


def _listed_merges(metadata: Mapping[str, object]) -> Callable[[], Merges]:
    lines = _strings(metadata, "merges", MAX_MERGES)
    if {line.count(" ") for line in lines} != {1}:
        raise TokenizerError("tokenizer.ggml.merges must hold lines of two tokens with one space between them")
    return lambda: [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


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
