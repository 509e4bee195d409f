"""Schemas, expressions and tools by strangers: the rows of section 1.6 of the list of threats that reach a grammar.

R1: nesting exhausts the stack. R2: a schema that contains itself, or a huge enum, is compiled for ever. R3: compiled
grammars fill the memory. R4: a malformed expression or type is not the caller's error. R5: an expression blows up.
"""

from __future__ import annotations

import json
import re
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.errors import PromptError
from pocketgem.text.grammar import KEPT, Grammars, Matcher
from pocketgem.text.guides import guide_for
from pocketgem.text.schema_check import MAX_DEPTH, MAX_NODES
from pocketgem.text.shape import Format, JsonSchema, Regex, Shape
from tests.text_fixtures import gemma4_tokenizer

SMALL_STACK = 256 << 10  # bytes; a thread of an app on a Mac has twice as much
PATIENCE = 20.0  # seconds, of a machine that does ten other things; each case takes some milliseconds


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars(gemma4_tokenizer())
    made.regex("warm")
    return made


def shape_of(schema: object, way: str) -> Shape:
    """The three ways by which a schema comes in."""
    if way == "format":
        return Shape(format=JsonSchema(schema))  # type: ignore[arg-type]
    parameters = schema if way == "tool" else {"type": "object", "properties": {"x": schema}}
    return Shape(tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))


def attempt(grammars: Grammars, shape: Shape) -> str | None:
    """Follow a shape for a few steps: None where it can be, the message where it is refused. Nothing else happens."""
    try:
        follow(grammars, shape)
    except PromptError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert len(message) < 600
    return message


def follow(grammars: Grammars, shape: Shape) -> None:
    guide = guide_for(grammars, shape, thought_open=False, thinking=False, stop_ids=grammars.tokenizer.end_ids)
    assert guide is not None
    for step in range(12):
        mask = guide.allowed()
        if shape.tools and step == 0:
            guide.push(grammars.tokenizer.special_tokens["<|tool_call>"])
            continue
        assert mask is not None
        ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert len(ids)
        if ids[step * 7919 % len(ids)] in grammars.tokenizer.end_ids:
            return
        guide.push(int(ids[step * 7919 % len(ids)]))


def on_a_small_stack(work: Callable[[], object]) -> object:
    """What ``work`` returns in a thread with little stack; its error goes on here."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    before = threading.stack_size(SMALL_STACK)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    began = time.monotonic()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"still at work after {time.monotonic() - began:.0f} s"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


# ---- R1: nesting ---------------------------------------------------------------------------------------------------

NESTED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "items": lambda inner: {"type": "array", "items": inner},
    "properties": lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]},
    "anyOf": lambda inner: {"anyOf": [inner, {"type": "null"}]},
    "allOf": lambda inner: {"allOf": [inner]},
    "not": lambda inner: {"not": inner},
    "$defs": lambda inner: {"$defs": {"a": inner}, "type": "string"},
    "const": lambda inner: {"const": inner},
    "enum": lambda inner: {"enum": [inner]},
    "unknown": lambda inner: {"x-unknown": inner, "type": "string"},
}


@pytest.mark.parametrize("depth", [20, MAX_DEPTH // 2, 100, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("kind", NESTED)
def test_a_nested_schema_is_followed_or_refused(grammars: Grammars, kind: str, depth: int) -> None:
    if depth == 1_000_000 and kind != "items":
        depth = 200_000  # building it is what takes time
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = NESTED[kind](schema)
    for way in ("format", "tool", "property"):
        message = on_a_small_stack(lambda way=way: attempt(grammars, shape_of(schema, way)))
        if depth > MAX_DEPTH:
            assert isinstance(message, str)
            assert "nested deeper" in message


@pytest.mark.parametrize("depth", [100, 300, 1000, 60_000, 1_000_000])
@pytest.mark.parametrize("form", ["({})", "(?:{}|b)", "({})*", "[{}]", "({}){{2}}"])
def test_a_nested_expression_is_followed_or_refused(grammars: Grammars, form: str, depth: int) -> None:
    before, after = form.replace("{{", "{").replace("}}", "}").split("{}")
    pattern = before * depth + "a" + after * depth
    for shape in (Shape(format=Regex(pattern)), shape_of({"type": "string", "pattern": pattern}, "property")):
        message = on_a_small_stack(lambda shape=shape: attempt(grammars, shape))
        assert isinstance(message, str) or depth <= 1000


@pytest.mark.parametrize("length", [10, 31, 33, 1000])
def test_a_line_of_references_is_followed_or_refused(grammars: Grammars, length: int) -> None:
    line = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length)} | {f"d{length}": {"type": "integer"}}
    for way in ("format", "tool", "property"):
        schema = {"$defs": line, "$ref": "#/$defs/d0"}
        shape = shape_of(schema, way) if way == "format" else shape_of({"type": "object", **schema}, "tool")
        on_a_small_stack(lambda shape=shape: attempt(grammars, shape))


# ---- R2: circles and crowds ----------------------------------------------------------------------------------------

ENDLESS = {
    "itself": {"$ref": "#"},
    "each other": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "all of itself": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "required": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "items": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("way", ["format", "tool"])
def test_a_schema_without_an_end_is_refused(grammars: Grammars, kind: str, way: str) -> None:
    message = on_a_small_stack(lambda: attempt(grammars, shape_of(ENDLESS[kind], way)))
    assert isinstance(message, str)


RECURSIVE = {
    "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}, {"type": "object", "properties": {}}]},
    "list": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
    "mutual": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/b"}},
        "$defs": {"b": {"type": "array", "items": {"$ref": "#"}}},
    },
}


@pytest.mark.parametrize("kind", RECURSIVE)
@pytest.mark.parametrize("way", ["format", "tool", "property"])
def test_a_schema_that_contains_itself_and_ends_is_followed(grammars: Grammars, kind: str, way: str) -> None:
    if way == "property":
        return  # its references would mean another root
    assert on_a_small_stack(lambda: attempt(grammars, shape_of(RECURSIVE[kind], way))) is None


CROWDS: dict[str, object] = {
    "choices": {"enum": [f"value {n}" for n in range(100_000)]},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(MAX_NODES)}},
    "many properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}},
    "required": {"type": "object", "required": [f"p{n}" for n in range(8000)]},
    "products": {"allOf": [{"anyOf": [{"title": str(n)}, {"description": str(n)}]} for n in range(40)]},
    "bounds": {
        "allOf": [{"anyOf": [{"type": "number", "minimum": n}, {"type": "number", "maximum": n}]} for n in range(30)]
    },
    "patterns": {"allOf": [{"type": "string", "pattern": f"a{{0,{n + 1}}}.*b"} for n in range(60)]},
    "long text": {"const": "hello world " * 20_000},
    "longest": {"type": "string", "minLength": 100_000, "maxLength": 100_000},
    "most items": {"type": "array", "minItems": 100_000, "items": {"type": "array", "minItems": 100_000}},
    "too long": {"type": "string", "maxLength": 10**9},
    "fan": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 8} for n in range(25)}
        | {"d25": {"type": "null"}},
    },
}


@pytest.mark.parametrize("kind", CROWDS)
@pytest.mark.parametrize("way", ["format", "property"])
def test_a_crowd_is_followed_or_refused_in_time(grammars: Grammars, kind: str, way: str) -> None:
    schema = CROWDS[kind]
    if kind == "fan" and way == "property":
        assert isinstance(schema, dict)
        parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": schema["$defs"]}
        on_a_small_stack(lambda: attempt(grammars, shape_of(parameters, "tool")))
        return
    on_a_small_stack(lambda: attempt(grammars, shape_of(schema, way)))


# ---- R3: what is kept ----------------------------------------------------------------------------------------------


def test_compiled_grammars_are_kept_in_bounded_number(grammars: Grammars) -> None:
    for n in range(3 * KEPT):
        grammars.json_schema({"type": "object", "properties": {f"p{n}": {"type": "integer"}}})
    assert len(grammars._kept) == KEPT


def test_unique_schemas_do_not_fill_the_memory(grammars: Grammars) -> None:
    def burst(start: int) -> int:
        for n in range(start, start + 1000):
            grammars.json_schema({"type": "object", "properties": {f"q{n}": {"type": "integer"}}}).mask()
        return resident()

    first = burst(0)
    last = max(burst(start) for start in (1000, 2000))
    assert last - first < 16 << 20, f"grew by {(last - first) >> 20} MiB over two thousand schemas"


def resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("resident memory is read from Linux's /proc")


def test_python_keeps_nothing_of_a_refused_schema(grammars: Grammars) -> None:
    attempt(grammars, shape_of({"type": "x"}, "format"))
    tracemalloc.start()
    try:
        for n in range(300):
            attempt(grammars, shape_of({"type": f"x{n}" * 50}, "format"))
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


# ---- R4: malformed -------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[Any, str]] = {
    "type": ({"type": "text"}, 'type is "text"; types are'),
    "types": ({"type": ["string", 3]}, "type is 3; types are"),
    "no types": ({"type": []}, "type is empty"),
    "pattern": ({"type": "string", "pattern": "(["}, "pattern cannot be compiled: unclosed character class"),
    "group": ({"type": "string", "pattern": "(a"}, "pattern cannot be compiled: unclosed group"),
    "look": ({"type": "string", "pattern": "(?=a)b"}, "look-around, .* is not supported"),
    "back": ({"type": "string", "pattern": r"(a)\1"}, "backreferences are not supported"),
    "backslash": ({"type": "string", "pattern": "a\\"}, "ends in a backslash"),
    "number": ({"type": "string", "pattern": 3}, "pattern must be an expression as text, not a int"),
    "properties": ({"type": "object", "properties": ["a"]}, "properties must be an object of schemas"),
    "property": ({"type": "object", "properties": {"a": 3}}, "/a: a schema is an object or true or false, not 3"),
    "required": ({"type": "object", "required": "a"}, "required must be a list of names"),
    "enum": ({"enum": "a"}, "enum must be a list of 1 to"),
    "empty enum": ({"enum": []}, "enum must be a list of 1 to"),
    "anyOf": ({"anyOf": {}}, "anyOf must be a list of schemas"),
    "length": ({"type": "string", "minLength": -1}, "minLength must be a whole number from 0, not -1"),
    "bound": ({"type": "integer", "minimum": "3"}, "minimum must be a number"),
    "step": ({"type": "integer", "multipleOf": 0}, "multipleOf must be a number above 0"),
    "remote": ({"$ref": "https://example.com/x.json"}, "only places in the same schema"),
    "file": ({"$ref": "file:///etc/passwd"}, "only places in the same schema"),
    "missing": ({"$ref": "#/$defs/a"}, "there is no such place in the schema"),
    "dynamic": ({"$dynamicRef": "#a"}, "not supported; use"),
    "not a schema": ([], "a schema is an object or true or false|items must be a list of schemas"),
    "text": ("string", "a schema is an object or true or false"),
    "infinite": ({"const": float("inf")}, "a value that is not JSON"),
    "huge": ({"const": 10**5000}, "a value that is not JSON or a number out of bounds"),
    "object": ({"const": object()}, "a value that is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("way", ["format", "property", "items", "alternative", "definition"])
def test_what_is_malformed_is_refused_wherever_it_stands(grammars: Grammars, kind: str, way: str) -> None:
    schema, expected = MALFORMED[kind]
    if way == "definition" and kind in ("pattern", "group", "look", "back"):
        pytest.skip("an expression that nothing refers to is not compiled")
    places: dict[str, Any] = {
        "items": {"type": "array", "items": schema},
        "alternative": {"anyOf": [{"type": "null"}, schema]},
        "definition": {"type": "string", "$defs": {"a b/c": schema}},
    }
    message = attempt(grammars, shape_of(places.get(way, schema), "format" if way != "property" else way))
    assert message is not None
    assert re.search(expected, message), message


@pytest.mark.parametrize("pattern", ["([", "(a", "a{2,1}", "*a", "a\\", r"\q", "(?<n>a)(?P=n)", r"\p{Nonsense}"])
def test_what_is_no_expression_is_refused(grammars: Grammars, pattern: str) -> None:
    assert attempt(grammars, Shape(format=Regex(pattern))) is not None


# ---- R5: expressions that blow up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(x+x+)+y",
        "a{1000}{1000}",
        "((a{100}){100}){100}",
        "((a{0,100}){0,100}){0,2}",
        "(a?){500}a{500}",
        "(.*a){30}",
        r"(?s:.*)[ab](?s:.){300}z",
        r"(?i)(\w+\s*){0,200}$",
        r"(\p{L}|\p{N}|[^\p{L}])*\p{Lu}{1,100}",
        r"^(?:(?:(?:0?[13578]|1[02])(?:\/|-|\.)31)(?:\/|-|\.)|(?:(?:0?[13-9]|1[0-2])(?:\/|-|\.)(?:29|30)))(?:\d{2})?\d{2}$",
        "|".join(f"word{n}" for n in range(300)),
    ],
)
def test_an_expression_costs_no_more_than_a_step_may(grammars: Grammars, pattern: str) -> None:
    for shape in (Shape(format=Regex(pattern)), shape_of({"type": "string", "pattern": pattern}, "property")):
        on_a_small_stack(lambda shape=shape: attempt(grammars, shape))


def test_a_long_constant_costs_no_more_a_step_than_a_short_one(grammars: Grammars) -> None:
    """Written out and cut into tokens at every step, it would take a third of a second each."""
    long, short = (seconds(grammars.json_schema({"const": "hello world " * n})) for n in (15_000, 10))
    assert long < 50 * short + 0.5


def seconds(matcher: Matcher) -> float:
    began = time.process_time()
    for _ in range(40):
        ids = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little"))
        matcher.push(int(ids[0]))
    return time.process_time() - began


@settings(max_examples=150)
@given(st.text(alphabet="ab()[]{}|*+?.^$\\/,0129dwp-\n# \"'<>&~", max_size=24))
def test_any_text_as_an_expression_is_followed_or_refused(pattern: str) -> None:
    attempt(_shared(), Shape(format=Regex(pattern)))
    attempt(_shared(), shape_of({"type": "string", "pattern": pattern}, "property"))


def test_names_and_constants_cannot_leave_their_place_in_the_grammar(grammars: Grammars) -> None:
    evil = 'x" | "y\n start: /.*/ %json {} // <[1]> \\'
    shape = shape_of({"type": "object", "properties": {evil: {"const": evil}}, "required": [evil]}, "tool")
    assert attempt(grammars, shape) is None
    formed: Format = JsonSchema({"type": "object", "properties": {evil: {"const": evil}}, "required": [evil]})
    matcher = grammars.json_schema(formed.schema)
    for id in grammars.tokenizer.encode(json.dumps({evil: evil}), add_bos=False):
        matcher.push(id)
    assert matcher.complete


_made: list[Grammars] = []


def _shared() -> Grammars:
    if not _made:
        _made.append(Grammars(gemma4_tokenizer()))
    return _made[0]
