"""What a ``Shape`` asks of an answer, as masks for the sampler: thought, then content or calls, then the end.

    START    nothing is said yet: a thought, a call or content may begin, as far as each is allowed
    CONTENT  text, free or of a format
    CALL     one call, by the tools' grammar          CALLED   after one: another, or the end
    END      the turn is over: its stop ids

The format's grammar begins where the thoughts end; thoughts and calls are free of it. What an answer may not hold (a
thought when thinking is off, a call when there are no tools) cannot be begun. Stop ids are allowed where the answer is
whole: in free text, behind a complete format and behind a call; not in a thought, nor right behind one.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pocketgem.errors import PromptError
from pocketgem.text import masks
from pocketgem.text.grammar import Grammars, Matcher
from pocketgem.text.masks import Mask
from pocketgem.text.notation import CallMarks, call_grammar, check_tools
from pocketgem.text.schema_check import Place
from pocketgem.text.shape import JsonObject, JsonSchema, Regex, Shape, ToolChoice
from pocketgem.text.thinking import OPEN, Thoughts

MAX_BUDGET = 1 << 30


def guide_for(
    grammars: Grammars, shape: Shape, *, thought_open: bool, thinking: bool, stop_ids: Collection[int]
) -> AnswerGuide | None:
    """The guide of one answer; None where the vocabulary has no channels and no calls and the shape asks for nothing.

    Args:
        thought_open: the prompt ends inside a thought. thinking: whether the model may open one.
        stop_ids: what ends the answer; none: the tokens that end a turn.
    Raises PromptError for a schema, an expression or tools that are wrong or cannot be followed, saying where.
    """
    tokenizer = grammars.tokenizer
    _check_budget(shape.thinking_budget)
    calls = _calls(grammars, shape)
    content = _content(grammars, shape)
    marks = CallMarks.of(tokenizer)
    if calls is None and content is None and marks is None and OPEN not in tokenizer.special_tokens:
        return None
    allowed = thinking and shape.thinking_budget != 0
    thoughts = Thoughts(tokenizer, is_open=thought_open, allowed=allowed, budget=shape.thinking_budget)
    call_id = None if marks is None else marks.open
    stops = frozenset(stop_ids) or tokenizer.end_ids
    return AnswerGuide(tokenizer.vocab_size, stops, thoughts, Rules(content, calls, call_id, shape))


@dataclass
class Rules:
    """What one answer may consist of. ``content``: the format's grammar; ``calls``: how a call's grammar is begun."""

    content: Matcher | None
    calls: CallGrammar | None
    call_id: int | None
    shape: Shape

    @property
    def must_call(self) -> bool:
        return self.shape.tool is not None or self.shape.choice is ToolChoice.REQUIRED


@dataclass(frozen=True)
class CallGrammar:
    """The grammar of one call: each call begins it anew."""

    grammars: Grammars
    text: str
    schemas: tuple[Place, ...]

    def begin(self) -> Matcher:
        return self.grammars.lark(self.text, "the tools' grammar", self.schemas)


class _State(enum.Enum):
    START = enum.auto()
    CONTENT = enum.auto()
    CALL = enum.auto()
    CALLED = enum.auto()
    END = enum.auto()


class AnswerGuide:
    """A ``Guide`` of the engine. Its arrays are used again: read a mask before the next ``push``."""

    def __init__(self, vocab: int, stop_ids: frozenset[int], thoughts: Thoughts, rules: Rules) -> None:
        self.thoughts = thoughts
        self._vocab, self._stops, self._rules = vocab, stop_ids, rules
        self._state = _State.START
        self._call: Matcher | None = None
        self._without: dict[frozenset[int], Mask] = {}

    # ---- which ids may come ----------------------------------------------------------------------------------------

    def allowed(self) -> Mask | None:
        """The ids that may come next, None for all. Raises PromptError where a grammar costs more than it may."""
        if self.thoughts.forced is not None:
            return masks.only(self._vocab, [self.thoughts.forced])
        if self.thoughts.is_open:
            return self._all_but({*self._stops, *self._forbidden_call(), *self._forbidden_thought()})
        if self._state is _State.START and self._rules.must_call:
            return masks.only(self._vocab, self._openers())
        if self._state in (_State.START, _State.CONTENT):
            return self._free() if self._rules.content is None else self._formed(self._rules.content)
        if self._state is _State.CALL and self._call is not None:
            return self._bounded(self._call)
        another = self._state is _State.CALLED and self._rules.shape.parallel
        return masks.only(self._vocab, {*self._stops, *(self._openers() if another else ())})

    def _free(self) -> Mask | None:
        """Content without a format: all but what this answer may not begin, and no end right behind a thought."""
        forbidden = {*self._forbidden_call(), *self._forbidden_thought()}
        if self._state is _State.START and self.thoughts.closed_one:
            forbidden |= self._stops
        return self._all_but(forbidden)

    def _formed(self, content: Matcher) -> Mask:
        """What the format allows; before it has begun also what may come instead of it."""
        mask = self._bounded(content)
        if self._state is _State.START:
            mask = mask.copy()
            masks.add(mask, self._openers())
        return mask

    def _bounded(self, matcher: Matcher) -> Mask:
        """What a grammar allows, and the end where it is complete."""
        mask = matcher.mask()
        (masks.add if matcher.complete and matcher is self._rules.content else masks.remove)(mask, self._stops)
        return mask

    def _openers(self) -> list[int]:
        """What may begin here beside content: a call, and a thought if there was none."""
        ids = [] if self._rules.calls is None else [self._rules.call_id]
        if self._state is _State.START and self.thoughts.may_open and not self.thoughts.closed_one:
            ids.append(self.thoughts.open_id)
        return [id for id in ids if id is not None]

    def _forbidden_call(self) -> Iterable[int]:
        return [self._rules.call_id] if self._rules.calls is None and self._rules.call_id is not None else []

    def _forbidden_thought(self) -> Iterable[int]:
        return [] if self.thoughts.may_open or self.thoughts.open_id is None else [self.thoughts.open_id]

    def _all_but(self, ids: Iterable[int]) -> Mask | None:
        key = frozenset(ids)
        if key and key not in self._without:
            self._without[key] = masks.everything(self._vocab, but=key)
        return self._without.get(key)

    # ---- what was chosen -------------------------------------------------------------------------------------------

    def push(self, id: int) -> None:
        """``id`` was chosen."""
        rules = self._rules
        begins_call = rules.calls is not None and id == rules.call_id and self._state is not _State.CALL
        if begins_call and (self.thoughts.is_open or rules.content is None or self._state is not _State.CONTENT):
            self._begin_call(id)
        elif self.thoughts.is_open:
            self.thoughts.push(id)
        elif id == self.thoughts.open_id and self._state in (_State.START, _State.CONTENT):
            self.thoughts.open()
        elif id in self._stops and self._state is not _State.CALL:
            self._state = _State.END
        elif self._state is _State.CALL:
            self._continue_call(id)
        else:
            self._state = _State.CONTENT
            if rules.content is not None:
                rules.content.push(id)

    def _begin_call(self, id: int) -> None:
        if self.thoughts.is_open:
            self.thoughts.leave()
        if self._rules.calls is not None:
            self._call, self._state = self._rules.calls.begin(), _State.CALL
            self._call.push(id)

    def _continue_call(self, id: int) -> None:
        if self._call is not None:
            self._call.push(id)
            if self._call.complete:
                self._call, self._state = None, _State.CALLED


def _content(grammars: Grammars, shape: Shape) -> Matcher | None:
    match shape.format:
        case JsonObject():
            return grammars.json_object()
        case JsonSchema(schema):
            return grammars.json_schema(schema)
        case Regex(pattern):
            return grammars.regex(pattern)
    return None


def _calls(grammars: Grammars, shape: Shape) -> CallGrammar | None:
    """How calls are written; None where none may be made, or the model has no tokens for them and none must be."""
    functions = check_tools(shape.tools)
    must = shape.tool is not None or shape.choice is ToolChoice.REQUIRED
    if must and not functions:
        raise PromptError("tool_choice asks for a call, but there are no tools")
    if shape.tool is not None:
        if shape.tool not in functions:
            raise PromptError(f"tool_choice names {shape.tool[:60]!r}; the tools are {', '.join(functions)[:200]}")
        functions = {shape.tool: functions[shape.tool]}
    if not functions or (shape.choice is ToolChoice.NONE and shape.tool is None):
        return None
    marks = CallMarks.of(grammars.tokenizer)
    if marks is None:
        if must:
            raise PromptError("this model has no tokens for tool calls, so none can be required; use tool_choice auto")
        return None
    schemas = (Place(one.get("parameters") or True, f"parameters of tool {name!r}") for name, one in functions.items())
    calls = CallGrammar(grammars, call_grammar(functions, marks), tuple(schemas))
    calls.begin()  # what is wrong with it is said now
    return calls


def _check_budget(budget: object) -> None:
    if budget is not None and (type(budget) is not int or not 0 <= budget <= MAX_BUDGET):
        raise PromptError(f"thinking_budget is {str(budget)[:40]!r}, expected a number of tokens from 0, or None")
