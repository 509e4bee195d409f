"""A JSON schema as a list of cases without $ref, allOf, anyOf and oneOf: what a grammar can be written from.

``oneOf`` is taken as ``anyOf``: no grammar can say "and not the others". What else it cannot say is noted, by keyword.
The schema was checked before (``schema_check.py``); the work here is counted, since alternatives multiply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pocketgem.errors import PromptError
from pocketgem.text.schema_check import TYPES, resolve

MAX_STEPS = 20_000  # over all schemas of one answer
MAX_CHAIN = 32  # references on the way to one case: a circle that adds nothing is longer

LOOSENED = frozenset({
    "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "patternProperties",
    "propertyNames", "contains", "minContains", "maxContains", "uniqueItems", "unevaluatedProperties",
    "unevaluatedItems", "minProperties", "maxProperties", "format", "contentEncoding", "contentMediaType",
})  # fmt: skip

Case = dict[str, Any]  # keyword -> value; "type" a frozenset, "values" a list, "pattern" a list; no combinators
_HIGHEST = {"minimum", "exclusiveMinimum", "minLength", "minItems"}
_LOWEST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems"}


class Cases:
    """Splits the schemas of one document. ``loosened`` collects keywords that were passed over."""

    def __init__(self, root: object, name: str) -> None:
        self._root, self._name, self._steps = root, name, 0
        self.loosened: set[str] = set()

    def of(self, schema: object) -> list[Case]:
        """The cases of one schema; none for one that nothing satisfies. Raises PromptError when there are too many."""
        found: list[Case] = []
        waiting: list[tuple[Case, tuple[object, ...], int]] = [({}, (schema,), 0)]
        while waiting:
            self._spend()
            case, pending, chain = waiting.pop()
            if not pending:
                found.append(case)
            elif chain <= MAX_CHAIN:
                waiting += reversed(self._next(case, pending[0], pending[1:], chain))
        return found

    def _next(
        self, case: Case, schema: object, rest: tuple[object, ...], chain: int
    ) -> list[tuple[Case, tuple[object, ...], int]]:
        if isinstance(schema, bool) or not isinstance(schema, Mapping):
            return [] if schema is False else [(case, rest, chain)]
        if "$ref" in schema:
            aim = resolve(self._root, str(schema["$ref"]), self._name)
            return [(case, (aim, _without(schema, "$ref"), *rest), chain + 1)]
        if "allOf" in schema:
            return [(case, (*schema["allOf"], _without(schema, "allOf"), *rest), chain)]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return [(case, (option, _without(schema, key), *rest), chain) for option in schema[key]]
        self.loosened |= schema.keys() & LOOSENED
        both = self._both(case, _normal(schema))
        return [] if both is None else [(both, rest, chain)]

    def _both(self, one: Case, other: Case) -> Case | None:
        """What satisfies both, None where nothing can."""
        both = {**one, **other}
        for key in one.keys() & other.keys():
            both[key] = self._agreed(key, one[key], other[key])
        if "properties" in one or "properties" in other:
            both["properties"] = _properties(one, other)
        impossible = both.get("type") == frozenset() or both.get("values") == []
        return None if impossible else both

    def _agreed(self, key: str, one: Any, other: Any) -> Any:
        if key == "type":
            return _common_types(one, other)
        if key == "values":
            return [value for value in one if any(same(value, there) for there in other)]
        if key in ("required", "pattern"):
            return [*one, *(item for item in other if item not in one)]
        if key in ("items", "additionalProperties"):
            return False if one is False or other is False else {"allOf": [one, other]}
        if key in _HIGHEST or key in _LOWEST:
            return max(one, other) if key in _HIGHEST else min(one, other)
        if one != other:
            self.loosened.add(key)
        return one

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise PromptError(f"{self._name} has too many combinations of alternatives; simplify anyOf and allOf")


def _normal(schema: Mapping[str, Any]) -> Case:
    """One schema's keywords in the forms that a case has."""
    case: Case = {key: value for key, value in schema.items() if key in _KEPT and value is not None}
    if "type" in schema:
        given = schema["type"]
        case["type"] = frozenset(name.lower() for name in (given if isinstance(given, (list, tuple)) else [given]))
        if schema.get("nullable") is True:
            case["type"] |= {"null"}
    if "const" in schema:
        case["values"] = [schema["const"]]
    if "enum" in schema:
        listed = list(schema["enum"])
        case["values"] = [v for v in case.get("values", listed) if any(same(v, there) for there in listed)]
    if isinstance(schema.get("items"), (list, tuple)):  # of old drafts
        case["prefixItems"] = case.pop("items")
        if "additionalItems" in schema:
            case["items"] = schema["additionalItems"]
    if "pattern" in schema:
        case["pattern"] = [schema["pattern"]]
    for bound in ("Minimum", "Maximum"):
        of_draft_4 = isinstance(schema.get(f"exclusive{bound}"), bool)
        if of_draft_4 and case.pop(f"exclusive{bound}") and bound.lower() in case:
            case[f"exclusive{bound}"] = case.pop(bound.lower())
    return case


_KEPT = {
    "properties", "required", "additionalProperties", "items", "prefixItems", "multipleOf", *_HIGHEST, *_LOWEST,
}  # fmt: skip


def _properties(one: Case, other: Case) -> dict[str, object]:
    """Properties of both; one that only the one lists must also be what the other says of additional ones."""
    merged: dict[str, object] = {}
    for name in {**one.get("properties", {}), **other.get("properties", {})}:
        sides = [case.get("properties", {}).get(name, case.get("additionalProperties", True)) for case in (one, other)]
        sides = [side for side in sides if side is not True]
        merged[name] = False if any(side is False for side in sides) else _all_of(sides)
    return merged


def _all_of(schemas: Sequence[object]) -> object:
    if not schemas:
        return True
    return schemas[0] if len(schemas) == 1 else {"allOf": list(schemas)}


def _common_types(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    wide = [types | ({"integer"} if "number" in types else set()) for types in (one, other)]
    common = wide[0] & wide[1]
    return common - {"integer"} if "number" in common else common


def same(one: object, other: object) -> bool:
    """Equality as JSON has it: true is not 1, and 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    return type(one) is type(other) and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def types_of(case: Case) -> list[str]:
    """The types a case allows, in JSON Schema's order. Where it names none: what its keywords speak of, else all."""
    if "type" in case:
        return [name for name in TYPES if name in case["type"]]
    for name, words in _TELLING.items():
        if words & case.keys():
            return [name]
    return [name for name in TYPES if name != "integer"]


_TELLING = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"pattern", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}


def is_type(value: object, name: str) -> bool:
    """Whether a JSON value is of a JSON Schema type."""
    if name == "boolean":
        return isinstance(value, bool)
    if name == "null":
        return value is None
    if name in ("number", "integer"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole if name == "integer" else isinstance(value, (int, float)))
    kinds: tuple[type, ...] = {"string": (str,), "array": (list, tuple)}.get(name, (Mapping,))
    return isinstance(value, kinds)


def _without(schema: Mapping[str, object], key: str) -> object:
    rest = {name: value for name, value in schema.items() if name != key}
    return rest or True
