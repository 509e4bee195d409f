"""Values as a model wrote them to values that a tool's schema asks for, or word that they do not fit.

Taken from the schema: types (also lists of them, ``nullable``, and in capitals as Gemma's templates write them),
properties, required, additionalProperties, items, enum, const, anyOf and oneOf, and references within the schema.
Other rules, such as minimum or pattern, are left to the tool. Nothing is guessed: what does not fit stays as written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pocketgem.text.literals import MAX_DEPTH, attempt, lenient_number, parsed, python_word, scalar
from pocketgem.text.values import Bare, Reader, Unreadable

# Values looked at, those of every alternative of anyOf counted each: so many for each value of the arguments, and more.
STEPS_EACH, STEPS_MORE = 20, 10_000
MAX_REFERENCES = 16
_MAX_LEVELS = MAX_DEPTH + 20  # of values, and of alternatives within alternatives
_ALTERNATIVES = ("anyOf", "oneOf")


@dataclass
class _Budget:
    steps: int = STEPS_MORE


@dataclass
class Coercion:
    """One call's. After ``apply`` it knows what it took and whether the result fits."""

    root: Mapping[str, object]
    repairs: set[str] = field(default_factory=set)
    fits: bool = True
    budget: _Budget = field(default_factory=_Budget)

    def apply(self, value: object) -> object:
        """``value`` in the types of the schema; ``fits`` tells whether all of it could be."""
        self.budget.steps += STEPS_EACH * _size(value)
        return self._coerced(value, self.root, 0)

    def _coerced(self, value: object, schema: object, depth: int) -> object:
        self.budget.steps -= 1
        schema = self._resolved(schema)
        if depth > _MAX_LEVELS or self.budget.steps < 0:
            self.fits = False
            return plain(value)
        for name in _ALTERNATIVES:
            if isinstance(choices := schema.get(name), Sequence) and not isinstance(choices, str) and choices:
                return self._first_fitting(value, choices, depth)
        result = self._typed(value, schema, depth)
        self._check_choice(result, schema)
        return result

    def _first_fitting(self, value: object, choices: Sequence[object], depth: int) -> object:
        for choice in choices:
            if self.budget.steps < 0:
                break
            trial = Coercion(self.root, budget=self.budget)
            result = trial._coerced(value, choice, depth + 1)
            if trial.fits:
                self.repairs |= trial.repairs
                return result
        self.fits = False
        return plain(value)

    def _resolved(self, schema: object) -> Mapping[str, object]:
        """The schema itself, behind references like ``#/$defs/name``; an empty one where there is none."""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, Mapping):
                return {}
            path = schema.get("$ref")
            if not isinstance(path, str):
                return schema
            schema = self._at(path)
        return {}

    def _at(self, path: str) -> object:
        found: object = self.root
        for name in path.removeprefix("#").strip("/").split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) and name else found
        return found

    def _typed(self, value: object, schema: Mapping[str, object], depth: int) -> object:
        types = types_of(schema)
        if isinstance(value, dict) and (not types or "object" in types):
            return self._object(value, schema, depth)
        if isinstance(value, list) and (not types or "array" in types):
            return self._array(value, schema, depth)
        if isinstance(value, (dict, list)):
            return self._flattened(value, types)
        if isinstance(value, Bare):
            return self._bare(value.text, types, schema, depth)
        if isinstance(value, str):
            return self._text(value, types, schema, depth)
        return self._as_is(value, types)  # out of JSON inside a text

    def _object(self, value: dict[str, object], schema: Mapping[str, object], depth: int) -> dict[str, object]:
        properties, others = schema.get("properties"), schema.get("additionalProperties", True)
        known = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        if isinstance(required, (list, tuple)) and any(name not in value for name in required):
            self.fits = False
        if others is False and not value.keys() <= known.keys():
            self.fits = False
        return {name: self._coerced(item, known.get(name, others), depth + 1) for name, item in value.items()}

    def _array(self, value: list[object], schema: Mapping[str, object], depth: int) -> list[object]:
        first = schema.get("prefixItems")
        first = first if isinstance(first, (list, tuple)) else ()
        schemas = [*first, *[schema.get("items")] * (len(value) - len(first))]
        return [self._coerced(item, inner, depth + 1) for item, inner in zip(value, schemas, strict=False)]

    def _flattened(self, value: object, types: frozenset[str]) -> object:
        """An object or list where only text is asked for, such as the content of a file: its JSON."""
        if "string" not in types:
            self.fits = False
            return plain(value)
        self.repairs.add("coerced")
        return json.dumps(plain(value), ensure_ascii=False)

    def _bare(self, text: str, types: frozenset[str], schema: Mapping[str, object], depth: int) -> object:
        is_scalar, value = attempt(scalar, text)
        if is_scalar and (not types or _has_type(value, types)):
            return value
        is_word, word = attempt(python_word, text)
        if not types and is_word:
            self.repairs.add("python_literal")
            return word
        if not types or "string" in types:
            is_number, _ = attempt(lenient_number, text)
            self.repairs.add("coerced" if is_scalar or (types and (is_word or is_number)) else "bare_string")
            return text
        for read, repair in ((python_word, "python_literal"), (lenient_number, "lenient_number")):
            read_it, value = attempt(read, text)
            if read_it and _has_type(value, types):
                self.repairs.add(repair)
                return value
        self.fits = False
        return scalar(text) if is_scalar else text

    def _text(self, text: str, types: frozenset[str], schema: Mapping[str, object], depth: int) -> object:
        """A text, which stays one wherever a text may be."""
        if not types or "string" in types:
            return text
        for value in _readings(text.strip(), types):
            if _has_type(value, types) or isinstance(value, (dict, list)):
                self.repairs.add("coerced")
                return self._coerced(value, {**schema, "type": [*types]}, depth + 1)
        self.fits = False
        return text

    def _as_is(self, value: object, types: frozenset[str]) -> object:
        if types and not _has_type(value, types):
            if "string" in types:
                self.repairs.add("coerced")
                return json.dumps(value)
            self.fits = False
        return value

    def _check_choice(self, value: object, schema: Mapping[str, object]) -> None:
        choices = schema.get("enum")
        if isinstance(choices, (list, tuple)) and not any(_same(value, choice) for choice in choices):
            self.fits = False
        if "const" in schema and not _same(value, schema["const"]):
            self.fits = False


def types_of(schema: Mapping[str, object]) -> frozenset[str]:
    """The names of the types a schema allows, in small letters; empty where it allows all."""
    named = schema.get("type")
    names = [named] if isinstance(named, str) else named if isinstance(named, (list, tuple)) else []
    types = {name.lower() for name in names if isinstance(name, str)}
    if not types and isinstance(schema.get("properties"), Mapping):
        types = {"object"}
    return frozenset(types | {"null"} if types and schema.get("nullable") is True else types)


def plain(value: object) -> object:
    """A tree as JSON values, without a schema: bare words that are no scalars are texts."""
    if isinstance(value, Bare):
        is_scalar, found = attempt(scalar, value.text)
        return found if is_scalar else value.text
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _size(value: object) -> int:
    """How many values there are in a tree."""
    count, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        count += 1
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return count


def _readings(text: str, types: frozenset[str]) -> Iterator[object]:
    """What a text may stand for where no text is asked for."""
    is_json, value = attempt(parsed, text)
    if is_json:
        yield value
    wanted = {"{": "object", "[": "array"}.get(text[:1])
    if not is_json and wanted in types:
        reader = Reader(text, closed=False)
        try:
            tree = reader.read(0)
        except Unreadable:
            return
        if reader.at == len(text):
            yield tree


def _has_type(value: object, types: frozenset[str]) -> bool:
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in types
    if isinstance(value, int):
        return not types.isdisjoint(("integer", "number"))
    if isinstance(value, float):
        return "number" in types or ("integer" in types and value.is_integer())
    return ("object" if isinstance(value, dict) else "array" if isinstance(value, list) else "string") in types


def _same(value: object, choice: object) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)
