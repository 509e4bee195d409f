"""JSON schemas, expressions and grammars to sets of ids, by llguidance: an Earley parser over a trie of the vocabulary.

What is compiled here comes from strangers. Sizes and depths are bounded before it is handed over, the work of compiling
and of every step is bounded inside, and compiled grammars are kept for the next request in a store of fixed size.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pocketgem.errors import PromptError
from pocketgem.text import masks
from pocketgem.text.masks import Mask
from pocketgem.text.schema_check import check_pattern, check_schema, check_size
from pocketgem.text.tokenizer import Tokenizer

KEPT = 32  # compiled grammars, a few hundred KiB each
MAX_GRAMMAR = 1 << 20  # characters of one grammar, however small the schema it was made of
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # compiling: about 20 ms of derivatives
    step_lexer_fuel=200_000,  # a token: about 15 ms of them
    step_max_items=50_000,
    max_items_in_row=2000,
    max_lexer_states=50_000,  # of one or two KiB each: what a request may take while it runs
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Any amount of white space would be the first thing that a confused model fills its answer with.
_SPACE = r"\r?\n[ \t]{0,48}|[ \t]{1,2}"
_JSON_STYLE: Any = {"whitespace_flexible": True, "whitespace_pattern": _SPACE, "coerce_one_of": True}
# The formats llguidance knows. Any other is a remark, as JSON Schema says of formats nobody knows.
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_DATA = ("enum", "const", "default", "examples", "example")  # values, in which "format" means nothing


class Matcher:
    """One run through a grammar. ``mask`` and ``push`` raise PromptError where it costs more than a step may."""

    def __init__(self, matcher: LLMatcher, vocab: int, eos_id: int) -> None:
        self._matcher, self._mask, self._fresh = matcher, masks.nothing(vocab), False
        self._eos_id = eos_id

    def mask(self) -> Mask:
        """The ids that go on. No end: see ``complete``. The array is written anew after the next ``push``."""
        if not self._fresh:
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self._check()
            masks.remove(self._mask, [self._eos_id])  # its way to say that this may be all
            self._fresh = True
        return self._mask

    def push(self, id: int) -> None:
        """``id`` was chosen."""
        self._fresh = False
        self._matcher.consume_token(id)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether what was pushed is whole. It may still go on."""
        return self._matcher.is_accepting()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PromptError(f"the answer's form cannot be followed here: {_line(self._matcher.get_error())}")


class Grammars:
    """What a tokenizer's grammars share: the trie of its tokens, made in a second, and the last ``KEPT`` compiled ones.

    Safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._view: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def json_object(self) -> Matcher:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: object, name: str = "schema") -> Matcher:
        """JSON that ``schema`` describes. Raises PromptError, saying where, for a schema that is wrong or too large."""
        check_schema(schema, name)
        bare = _prepared({k: v for k, v in schema.items() if k != "x-guidance"} if isinstance(schema, Mapping) else {})
        if isinstance(schema, bool) and not schema:
            raise PromptError(f"{name} is false, which no answer can be")
        return self._compiled(LLMatcher.grammar_from_json_schema(json.dumps(bare), overrides=_JSON_STYLE), name)

    def regex(self, pattern: str, name: str = "regex") -> Matcher:
        """Text that ``pattern`` matches whole. Raises PromptError for what is no expression, or one too large."""
        check_pattern(pattern, name)
        check_size(pattern, name)
        return self._compiled(LLMatcher.grammar_from_regex(pattern), name)

    def lark(self, grammar: str, name: str) -> Matcher:
        """Text of a grammar in llguidance's form of Lark."""
        return self._compiled(LLMatcher.grammar_from_lark(grammar), name)

    def _compiled(self, grammar: str, name: str) -> Matcher:
        """Copies are cheap; what is kept stays at the start."""
        if len(grammar) > MAX_GRAMMAR:
            raise PromptError(f"{name} makes a grammar of {len(grammar)} characters; the limit is {MAX_GRAMMAR}")
        with self._lock:
            view = self._view = self._view or _view(self.tokenizer)
            kept = self._kept.pop(grammar, None)
            if kept is not None:
                self._kept[grammar] = kept
        if kept is None:
            kept = LLMatcher(view, grammar, log_level=0, limits=_LIMITS)
            if kept.is_error():
                raise PromptError(f"{name} cannot be compiled: {_line(kept.get_error())}")
            with self._lock:
                self._kept[grammar] = kept
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return Matcher(kept.deep_copy(), self.tokenizer.vocab_size, _eos_of(self.tokenizer))


class _Vocabulary:
    """What llguidance wants to know of a tokenizer, under the names it asks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = _eos_of(tokenizer)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids: Sequence[int] = sorted(tokenizer.special_ids)
        self.tokens: Sequence[bytes] = [tokenizer.piece(id) for id in range(tokenizer.vocab_size)]

    def __call__(self, text: bytes | str) -> list[int]:
        known = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        return self._tokenizer.encode(known, add_bos=False)


def _eos_of(tokenizer: Tokenizer) -> int:
    """A token that no grammar names, for llguidance to mean the end by."""
    return tokenizer.bos_id if tokenizer.eos_id is None else tokenizer.eos_id


def _view(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(_Vocabulary(tokenizer), n_vocab=tokenizer.vocab_size)  # type: ignore[arg-type]


def _prepared(schema: object) -> object:
    """A copy without formats that are only remarks. Its depth was bounded before."""
    if isinstance(schema, Mapping):
        unknown = isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS
        return {
            key: value if key in _DATA else _prepared(value)
            for key, value in schema.items()
            if not (unknown and key == "format")
        }
    return [_prepared(item) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _line(message: str) -> str:
    """The first lines of a library's message as one, without what it adds for its own debugging."""
    return " ".join(message.split())[:300]
