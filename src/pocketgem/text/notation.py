"""Calls of tools in the model's own notation, as a grammar made of the tools' schemas.

    <|tool_call>call:get_time{city:<|"|>London<|"|>,n:3,list:[true,null]}<tool_call|>

The marks are tokens of their own, so a string may hold any text, braces and quotes too. Properties come in any order:
the model was shown them sorted by a template, and a schema lists them as its author pleased. Each level of nesting has
rules of its own, so that a schema that contains itself ends.

Narrower than JSON Schema, always: an object that lists properties and says nothing of others has no others; numbers
have at most 18 digits; values of any kind nest six deep. Wider, where a grammar cannot say it: what
``schema_cases.LOOSENED`` lists, ``oneOf`` (any of them), unique keys among additional properties, and objects of over
60 properties, which may repeat or miss some. A tool with ``strict: true`` that asks for what is loosened is refused.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pocketgem.errors import PromptError
from pocketgem.text.expressions import searched
from pocketgem.text.schema_cases import Case, Cases, is_type, types_of
from pocketgem.text.schema_check import check_schema
from pocketgem.text.tokenizer import Tokenizer

MAX_TOOLS = 128
MAX_NESTING = 16  # objects and lists inside each other in one call
FREE_NESTING = 6  # of these, where the schema leaves the value open
MAX_RULES = 4000
MAX_FLAGS = 60  # properties of one object: a rule carries 64 bits
_NAME = re.compile(r"[^\s{}<>\"'`(),\x00-\x1f]{1,256}")
_PLAIN_KEY = re.compile(r"[^\s:,{}\[\]<>\"'`\x00-\x1f](?:[^:,{}\[\]<>\"'`\x00-\x1f]*[^\s:,{}\[\]<>\"'`\x00-\x1f])?")
_TERMINALS = r"""
KEY: /[\p{L}0-9_$@][\p{L}0-9_$@.\/\-]{0,63}/
TEXT: /(?s:.)+/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+\-]?[0-9]{1,2})?/
"""


@dataclass(frozen=True)
class CallMarks:
    """The tokens that a family puts around a call and around a string in it."""

    open: int
    close: int
    quote: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> CallMarks | None:
        """Those of Gemma 4, or of FunctionGemma; None for a vocabulary without."""
        for names in _MARKS:
            ids = [tokenizer.special_tokens.get(name) for name in names]
            if None not in ids:
                return cls(*(id for id in ids if id is not None))
        return None


_MARKS = (
    ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ("<start_function_call>", "<end_function_call>", "<escape>"),
)


def check_tools(tools: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """The functions of declarations as OpenAI has them, by name. Raises PromptError, saying which is wrong."""
    if len(tools) > MAX_TOOLS:
        raise PromptError(f"there are {len(tools)} tools; at most {MAX_TOOLS} can be offered")
    functions: dict[str, Mapping[str, object]] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PromptError(
                f"tools[{index}] needs a function with a name : 1 to 256 characters, no brackets or quotes"
            )
        if name in functions:
            raise PromptError(f"tools[{index}]: there are two tools named {name!r}")
        functions[name] = function
        parameters = function.get("parameters")
        check_schema(True if parameters is None else parameters, f"tools[{index}].function.parameters")
    return functions


def call_grammar(functions: Mapping[str, Mapping[str, object]], marks: CallMarks) -> str:
    """The grammar of one call of one of these functions, its marks included. Raises PromptError, naming the tool."""
    rules = _Rules(marks)
    calls = []
    for name, function in functions.items():
        calls.append(f"{_literal('call:' + name)} {_arguments(rules, name, function)}")
    body = "\n  | ".join(calls)
    return f"start: <[{marks.open}]> call <[{marks.close}]>\ncall: {body}\n{rules.text()}{_TERMINALS}"


def _arguments(rules: _Rules, name: str, function: Mapping[str, object]) -> str:
    where = f"parameters of tool {name!r}"
    given = function.get("parameters")
    schema = {"type": "object", "properties": {}} if given is None else given
    cases = Cases(schema, where)
    rule = rules.of({"allOf": [schema, {"type": "object"}]}, cases)
    rules.finish()
    if not rules.possible(rule):
        raise PromptError(f"the {where} describe no object, or none nested less than {MAX_NESTING} deep")
    if function.get("strict") is True and cases.loosened:
        asked = ", ".join(sorted(cases.loosened))
        raise PromptError(f"the {where} ask for {asked}, which cannot be enforced; leave it out, or strict")
    return rule


@dataclass
class _Alternative:
    """One way to write a rule: its text, and the rules without which it cannot be written."""

    text: str
    needs: tuple[str, ...] = ()


@dataclass
class _Rules:
    """The rules of a grammar as they are found: breadth first, one for each schema and depth."""

    marks: CallMarks
    rules: dict[str, list[_Alternative]] = field(default_factory=dict)
    terminals: dict[str, str] = field(default_factory=dict)  # expression -> name
    _names: dict[tuple[int, int, int], str] = field(default_factory=dict)
    _alive: list[object] = field(default_factory=list)  # so that an id stays one schema's
    _waiting: deque[tuple[str, object, int, Cases]] = field(default_factory=deque)
    _possible: set[str] = field(default_factory=set)

    # ---- the frame -------------------------------------------------------------------------------------------------

    def of(self, schema: object, cases: Cases, depth: int = 0) -> str:
        """The name of the rule for a value of ``schema`` that stands ``depth`` levels deep."""
        if schema is True or (isinstance(schema, Mapping) and not schema):
            return self._any(min(FREE_NESTING, MAX_NESTING - depth))
        key = (id(cases), id(schema), depth)
        if key not in self._names:
            self._names[key] = self._named()
            self._alive += [cases, schema]
            self._waiting.append((self._names[key], schema, depth, cases))
        return self._names[key]

    def finish(self) -> None:
        """Write all rules that were asked for, and see which of them something can satisfy."""
        while self._waiting:
            name, schema, depth, cases = self._waiting.popleft()
            self.rules[name] = [
                alternative for case in cases.of(schema) for alternative in self._written(case, depth, cases)
            ]
        self._find_possible()

    def possible(self, name: str) -> bool:
        return name in self._possible

    def text(self) -> str:
        """All rules, without the alternatives that need what is impossible."""
        lines = []
        for name, alternatives in self.rules.items():
            kept = [a.text for a in alternatives if all(need in self._possible for need in a.needs)]
            if kept:
                lines.append(f"{name}: " + "\n  | ".join(dict.fromkeys(kept)) + "\n")
        return "".join(lines) + "".join(f"{name}: {text}\n" for text, name in self.terminals.items())

    def _find_possible(self) -> None:
        """A rule is possible when all that one of its alternatives needs is. Each rule is looked at again only when
        something it waited for became so."""
        users: dict[str, list[str]] = {}
        for name, alternatives in self.rules.items():
            for alternative in alternatives:
                for need in alternative.needs:
                    users.setdefault(need.split("::")[0], []).append(name)
        waiting = deque(self.rules)
        while waiting:
            name = waiting.popleft()
            bare = name.split("::")[0]
            if bare in self._possible:
                continue
            if any(all(need in self._possible for need in a.needs) for a in self.rules[name]):
                self._possible.add(bare)
                waiting += users.get(bare, [])

    def _named(self) -> str:
        if len(self._names) + len(self.rules) > MAX_RULES:
            raise PromptError(f"the tools' schemas need more than {MAX_RULES} rules; simplify them")
        return f"r{len(self._names)}"

    def _terminal(self, expression: str) -> str:
        return self.terminals.setdefault(expression, f"T{len(self.terminals)}")

    # ---- values ----------------------------------------------------------------------------------------------------

    def _written(self, case: Case, depth: int, cases: Cases) -> list[_Alternative]:
        if "values" in case:
            kinds = types_of(case) if "type" in case else None
            fitting = [v for v in case["values"] if kinds is None or any(is_type(v, kind) for kind in kinds)]
            return [_Alternative(self._value(value)) for value in fitting]
        writers = {"string": self._string, "number": self._number, "integer": self._number}
        found: list[_Alternative] = []
        for kind in types_of(case):
            if kind in ("object", "array"):
                if depth < MAX_NESTING:
                    write = self._object if kind == "object" else self._array
                    found += write(case, depth, cases)
            elif kind in writers:
                found.append(writers[kind](case, kind))
            else:
                found += [_Alternative(f'"{word}"') for word in (("true", "false") if kind == "boolean" else ("null",))]
        return found

    def _string(self, case: Case, kind: str) -> _Alternative:
        shortest, longest = int(case.get("minLength", 0)), case.get("maxLength")
        longest = None if longest is None else int(longest)
        if longest is not None and longest < shortest:
            return _Alternative("", ("nothing",))
        parts = [searched(pattern) for pattern in case.get("pattern", [])]
        if shortest or longest is not None:
            parts.append(f"/(?s:.){{{shortest},{'' if longest is None else longest}}}/")
        if longest == 0:
            return _Alternative(self._quoted(""))
        if not parts:
            return _Alternative(self._quoted("TEXT?"))
        optional = "" if shortest or case.get("pattern") else "?"
        return _Alternative(self._quoted(self._terminal(" & ".join(parts)) + optional))

    def _number(self, case: Case, kind: str) -> _Alternative:
        bounds = {key: case[key] for key in _BOUNDS if key in case}
        if not bounds:
            return _Alternative("INTEGER" if kind == "integer" else "NUMBER")
        schema = {"x-guidance": {"whitespace_flexible": False}, "type": kind, **bounds}
        return _Alternative(f"%json {json.dumps(schema)}")

    def _array(self, case: Case, depth: int, cases: Cases) -> list[_Alternative]:
        least, most = int(case.get("minItems", 0)), case.get("maxItems")
        most = None if most is None else int(most)
        if most is not None and most < least:
            return []
        first = [self.of(item, cases, depth + 1) for item in case.get("prefixItems", [])][:most]
        found = [_Alternative('"[" "]"')] if least == 0 else []
        if first:
            found += [_Alternative(_listed(first[:n]), tuple(first[:n])) for n in range(max(1, least), len(first) + 1)]
        rest = case.get("items", not first)
        if rest is False or most == len(first):
            return found
        item = self.of(rest, cases, depth + 1)
        fewest = max(least - len(first), 1)
        upto = "" if most is None else str(most - len(first) - (not first))
        if first:
            repeated = f'("," {item}){{{fewest},{upto}}}'
            return [*found, _Alternative(_listed(first, repeated), (*first, item))]
        repeated = f'("," {item}){{{fewest - 1},{upto}}}'
        return [*found, _Alternative(_listed([item], repeated), (item,))]

    def _object(self, case: Case, depth: int, cases: Cases) -> list[_Alternative]:
        properties: Mapping[str, object] = case.get("properties", {})
        required = list(dict.fromkeys(case.get("required", [])))
        open_to = case.get("additionalProperties", "properties" not in case)
        unlisted = case.get("additionalProperties", True)  # what is required must be allowed
        values = {name: properties.get(name, unlisted) for name in [*required, *properties]}
        if any(values[name] is False for name in required):
            return []
        pairs = {
            name: (f"{self._key(name)} {rule}", rule)
            for name, schema in values.items()
            if schema is not False
            for rule in [self.of(schema, cases, depth + 1)]
        }
        more = None if open_to is False else self.of(open_to, cases, depth + 1)
        other = None if more is None else (f'{self._other_key(list(values))} ":" {more}', more)
        if len(pairs) > MAX_FLAGS:
            cases.loosened.add(f"objects of over {MAX_FLAGS} properties")
        if not pairs or len(pairs) > MAX_FLAGS:
            return self._loose_object(list(pairs.values()), other)
        return self._strict_object(pairs, other, len(required))

    def _strict_object(
        self, pairs: Mapping[str, tuple[str, str]], other: tuple[str, str] | None, required: int
    ) -> list[_Alternative]:
        """Pairs in any order, each at most once. Bit n stands for the n-th; the required come first."""
        name = f"o{len(self.rules)}x{len(self._names)}"
        end = _Alternative(f'"" %if is_ones([0:{required}])' if required else '""')
        for rule, comma in ((f"{name}f::_", ""), (f"{name}m::_", '"," ')):
            self.rules[rule] = [end]
            for bit, (text, need) in enumerate(pairs.values()):
                step = f"{comma}{text} {name}m::set_bit({bit}) %if bit_clear({bit})"
                self.rules[rule].append(_Alternative(step, (need,)))
            if other is not None:
                self.rules[rule].append(_Alternative(f"{comma}{other[0]} {name}m::_", (other[1],)))
        needs = tuple(rule for _, rule in list(pairs.values())[:required])
        return [_Alternative(f'"{{" {name}f::0 "}}"', needs)]

    def _loose_object(self, pairs: Sequence[tuple[str, str]], other: tuple[str, str] | None) -> list[_Alternative]:
        """Any of these pairs, any number of times."""
        name = f"o{len(self.rules)}x{len(self._names)}"
        known = [*pairs, other] if other is not None else pairs
        self.rules[name] = [_Alternative(text, (need,)) for text, need in known]
        return [_Alternative(f'"{{" ({name} ("," {name})*)? "}}"', (name,)), _Alternative('"{" "}"')]

    def _any(self, depth: int) -> str:
        """The rule for a value of any kind, with ``depth`` levels of objects and lists in it."""
        for level in range(depth + 1):
            name, inner = f"any{level}", f"any{level - 1}"
            if name not in self.rules:
                words = [self._quoted("TEXT?"), "NUMBER", '"true"', '"false"', '"null"']
                if level:
                    words.append(f'"[" ({inner} ("," {inner})*)? "]"')
                    words.append(f'"{{" (KEY ":" {inner} ("," KEY ":" {inner})*)? "}}"')
                self.rules[name] = [_Alternative(word) for word in words]
        return f"any{max(depth, 0)}"

    # ---- how it is spelled -----------------------------------------------------------------------------------------

    def _quoted(self, inside: str) -> str:
        quote = f"<[{self.marks.quote}]>"
        return " ".join(part for part in (quote, inside, quote) if part)

    def _key(self, name: str) -> str:
        if _PLAIN_KEY.fullmatch(name):
            return _literal(name + ":")
        return f'{self._quoted(_literal(name) if name else "")} ":"'

    def _other_key(self, known: Sequence[str]) -> str:
        """The terminal for a key that is none of the known ones."""
        plain = [re.escape(name) for name in known if _PLAIN_KEY.fullmatch(name)]
        return self._terminal(f"KEY & ~/({_slashed('|'.join(plain))})/") if plain else "KEY"

    def _value(self, value: object) -> str:
        """One constant."""
        if isinstance(value, str):
            return self._quoted(_literal(value) if value else "")
        if isinstance(value, Mapping):
            pairs = [f"{self._key(str(key))} {self._value(item)}" for key, item in value.items()]
            return " ".join(['"{"', ' "," '.join(pairs), '"}"'])
        if isinstance(value, (list, tuple)):
            return " ".join(['"["', ' "," '.join(self._value(item) for item in value), '"]"'])
        return _literal(json.dumps(value))


_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def _listed(items: Sequence[str], more: str = "") -> str:
    return " ".join(['"["', ' "," '.join(items), more, '"]"'])


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _slashed(expression: str) -> str:
    return expression.replace("/", r"\/")
