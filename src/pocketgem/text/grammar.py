"""JSON schemas, expressions and grammars to sets of ids, by llguidance: an Earley parser over a trie of the vocabulary.

What is compiled here comes from strangers. Sizes and depths are bounded before it is handed over, the work of compiling
and of every step is bounded inside, and compiled grammars are kept for the next request in a store of fixed size.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pocketgem.errors import PromptError
from pocketgem.text import masks
from pocketgem.text.expressions import check_pattern, whole
from pocketgem.text.masks import Mask
from pocketgem.text.schema_check import Place, check_schema, combines, inner_schemas
from pocketgem.text.schema_ends import check_end
from pocketgem.text.stack import with_deep_stack
from pocketgem.text.tokenizer import Tokenizer

MAX_BLAMED = 200  # expressions that are tried one by one to find the wrong one
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
_JSON_STYLE = {"whitespace_flexible": True, "whitespace_pattern": _SPACE, "coerce_one_of": True}
_POSITION = re.compile(r"^at \d+\(\d+\): ")
_ANY = {"x-guidance": _JSON_STYLE}
# Where only one text can follow, llguidance would write it out and cut it into tokens at every step: as long as a
# schema's longest constant. So the model chooses the tokens there too, among those that begin that text.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
# The formats llguidance knows. Any other is a remark, as JSON Schema says of formats nobody knows.
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_OPENING = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
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
        check_end(schema, name)
        closed = not combines(schema, name)
        ours = {**_prepared(schema, closed), "x-guidance": _JSON_STYLE} if isinstance(schema, Mapping) else _ANY
        return self.lark(f"start: %json {json.dumps(ours)}\n", name, [Place(schema, name)])

    def regex(self, pattern: str, name: str = "regex") -> Matcher:
        """Text that ``pattern`` matches whole. Raises PromptError for what is no expression, or one too large."""
        check_pattern(pattern, name)
        return self.lark(f"start: WHOLE\nWHOLE: {whole(pattern)}\n" if pattern else 'start: ""\n', name)

    def lark(self, grammar: str, name: str, schemas: Sequence[Place] = ()) -> Matcher:
        """Text of a grammar in llguidance's form of Lark, made of ``schemas``: where to look for what is wrong with it.

        Copies are cheap; what is kept stays at the start.
        """
        grammar = LLMatcher.grammar_from_lark(_OPTIONS + grammar)
        if len(grammar) > MAX_GRAMMAR:
            raise PromptError(f"{name} makes a grammar of {len(grammar)} characters; the limit is {MAX_GRAMMAR}")
        with self._lock:
            view = self._view = self._view or _view(self.tokenizer)
            kept = self._kept.pop(grammar, None)
            if kept is not None:
                self._kept[grammar] = kept
        if kept is None:
            kept = with_deep_stack(lambda: LLMatcher(view, grammar, log_level=0, limits=_LIMITS))
            if kept.is_error():
                raise PromptError(_blamed(schemas) or f"{name} cannot be compiled: {_line(kept.get_error())}")
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


def _prepared(schema: Any, closed: bool) -> Any:
    """A copy without formats that are only remarks. Its depth was bounded before.

    ``closed``: objects that list properties and say nothing of others have no others. That is less than the schema
    allows, and what people mean: a model that may go on naming properties does.
    """
    if isinstance(schema, Mapping):
        unknown = isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS
        copy = {
            key: value if key in _DATA else _prepared(value, closed)
            for key, value in schema.items()
            if not (unknown and key == "format")
        }
        lists = isinstance(schema.get("properties"), Mapping) and "properties" not in schema["properties"]
        if (
            closed
            and lists
            and not schema.keys() & _OPENING
            and {*schema.get("required", ())} <= {*schema["properties"]}
        ):
            copy["additionalProperties"] = False
        return copy
    return [_prepared(item, closed) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _blamed(schemas: Sequence[Place]) -> str | None:
    """Which expression in the schemas is none, if that is what is wrong."""
    inside = (place for schema in schemas for place in inner_schemas(schema.schema, schema.where))
    found = ((p.schema["pattern"], p.where) for p in inside if isinstance(p.schema, Mapping) and "pattern" in p.schema)
    for pattern, where in islice(found, MAX_BLAMED):
        grammar = LLMatcher.grammar_from_lark(f"start: WHOLE\nWHOLE: {whole(pattern)}\n")
        if pattern and (message := with_deep_stack(partial(LLMatcher.validate_grammar, grammar))):
            return f"{where}/pattern cannot be compiled: {_line(message)}"
    return None


def _line(message: str) -> str:
    """What a library's message says, without where it stands in a text that nobody wrote and without that text."""
    said = " ".join(message.split()).split(" 1 | ")[0].removesuffix(" ^").removesuffix(" <non-verbose/>")
    said = said.split("error: ")[-1].removeprefix("failed to compile JSON schema: ")
    return (
        _POSITION.sub("", said)
        .removeprefix("failed to compile JSON schema: ")
        .replace("Unimplemented keys", "not supported")[:200]
    )
