"""Whether a stranger's JSON schema is one that can be compiled: its size, its depth, the types of its keywords.

What compiles schemas walks down them by recursion, so everything is bounded here first, by a walk that has none. Errors
say where, as a JSON pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pocketgem.errors import PromptError
from pocketgem.text.expressions import check_pattern

MAX_BYTES = 1 << 18  # of the schema as JSON; the largest in public collections that people use for answers have half
MAX_DEPTH = 64  # objects and lists inside each other, of the schema itself
MAX_NODES = 10_000  # values
MAX_CHOICES = 4096  # values of one enum; compiling takes time in proportion
MAX_COMBINED = 8  # expressions of a schema that lays some over others: their product is what is compiled
MAX_COUNT = 100_000  # for lengths and numbers of items: a grammar counts them one by one

TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COMBINING = {"allOf", "$ref", "anyOf", "oneOf"}
_COMBINED = {"pattern", "properties", "patternProperties", "items", "prefixItems", "additionalProperties"}
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


@dataclass(frozen=True)
class Place:
    """One schema inside another and where it stands."""

    schema: object
    where: str


def check_schema(schema: object, name: str) -> None:
    """Raise PromptError unless ``schema`` is within the limits and its keywords have the types they must have."""
    check_size(schema, name)
    patterns, combined = 0, False
    for place in inner_schemas(schema, name):
        if isinstance(place.schema, Mapping):
            patterns += "pattern" in place.schema or "patternProperties" in place.schema
            combined = combined or _combines(place.schema)
    if combined and patterns > MAX_COMBINED:
        raise PromptError(f"{name} combines {patterns} expressions by allOf or $ref; at most {MAX_COMBINED} can be")


def combines(schema: object, name: str) -> bool:
    """Whether any value has to satisfy several schemas at once."""
    return any(isinstance(place.schema, Mapping) and _combines(place.schema) for place in inner_schemas(schema, name))


def _combines(schema: Mapping[str, object]) -> bool:
    """Whether a value must satisfy several schemas at once here."""
    several = schema.get("allOf", ())
    if isinstance(several, (list, tuple)) and len(several) > 1:
        return True
    return bool(_COMBINING & schema.keys() and _COMBINED & schema.keys())


def inner_schemas(schema: object, name: str) -> Iterator[Place]:
    """A schema, all schemas inside it and those it refers to, each once and after a look at its keywords.

    Raises PromptError for a wrong one.
    """
    waiting, seen = [Place(schema, name)], set[int]()
    while waiting:
        place = waiting.pop()
        if id(place.schema) in seen:
            continue
        if isinstance(place.schema, Mapping):
            seen.add(id(place.schema))
        waiting += _checked(place)
        if isinstance(place.schema, Mapping) and "$ref" in place.schema:
            reference = str(place.schema["$ref"])
            waiting.append(Place(resolve(schema, reference, place.where), f"{place.where}/$ref"))
        yield place


def check_size(value: object, name: str) -> None:
    """Raise PromptError unless ``value`` is JSON within the limits of bytes, depth and number of values."""
    nodes, waiting = 0, [(value, 0)]
    size = 0
    while waiting:
        item, depth = waiting.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise PromptError(f"{name} is nested deeper than {MAX_DEPTH} levels")
        inside = _inside(item, name)
        size += sum(len(part) for part in inside if isinstance(part, str)) + 4
        if nodes > MAX_NODES or size > MAX_BYTES:
            raise PromptError(f"{name} is too large: at most {MAX_NODES} values and {MAX_BYTES >> 10} KiB")
        waiting += [(part, depth + 1) for part in inside]


def _inside(value: object, name: str) -> list[object]:
    """What a JSON value holds: keys and values of an object, items of a list, the text of a text."""
    if isinstance(value, Mapping):
        if odd := next((key for key in value if not isinstance(key, str)), None):
            raise PromptError(f"{name} has a key that is no text: {str(odd)[:40]!r}")
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return [*value]
    if isinstance(value, str):
        if len(value) > MAX_BYTES:
            raise PromptError(f"{name} is too large: at most {MAX_NODES} values and {MAX_BYTES >> 10} KiB")
        return []
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 256):
        return []
    if isinstance(value, float) and math.isfinite(value):
        return []
    raise PromptError(f"{name} holds a value that is not JSON or a number out of bounds, a {type(value).__name__}")


def _checked(place: Place) -> Iterator[Place]:
    """Look at the keywords of one schema; yields the schemas inside."""
    schema, where = place.schema, place.where
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise PromptError(f"{where}: a schema is an object or true or false, not {_shown(schema)}")
    _check_type(schema, where)
    _check_values(schema, where)
    _check_reference(schema, where)
    for key in _SCHEMAS:
        if key in schema:
            listed = key == "items" and isinstance(schema[key], list)  # of old drafts: what prefixItems is now
            yield from _listed(schema, key, where) if listed else [Place(schema[key], f"{where}/{key}")]
    for key in _LISTS:
        if key in schema:
            yield from _listed(schema, key, where)
    for key in _MAPS:
        if key in schema:
            yield from _mapped(schema, key, where)


def _listed(schema: Mapping[str, object], key: str, where: str) -> list[Place]:
    items = schema[key]
    if not isinstance(items, (list, tuple)) or not items:
        raise PromptError(f"{where}/{key} must be a list of schemas, not {_shown(items)}")
    return [Place(item, f"{where}/{key}/{index}") for index, item in enumerate(items)]


def _mapped(schema: Mapping[str, object], key: str, where: str) -> list[Place]:
    items = schema[key]
    if not isinstance(items, Mapping):
        raise PromptError(f"{where}/{key} must be an object of schemas, not {_shown(items)}")
    return [Place(item, f"{where}/{key}/{_short(name)}") for name, item in items.items()]


def _check_type(schema: Mapping[str, object], where: str) -> None:
    given = schema.get("type", [])
    for name in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(name, str) or name.lower() not in TYPES:
            raise PromptError(f"{where}/type is {_shown(name)}; types are {', '.join(TYPES)}")
    if given in ([], ()) and "type" in schema:
        raise PromptError(f"{where}/type is empty; types are {', '.join(TYPES)}")


def _check_values(schema: Mapping[str, object], where: str) -> None:
    if "enum" in schema:
        values = schema["enum"]
        if not isinstance(values, (list, tuple)) or not 0 < len(values) <= MAX_CHOICES:
            raise PromptError(f"{where}/enum must be a list of 1 to {MAX_CHOICES} values")
    for key in _COUNTS:
        value = schema.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
            raise PromptError(f"{where}/{key} must be a whole number from 0, not {_shown(value)}")
        if value > MAX_COUNT:
            raise PromptError(f"{where}/{key} is {value}, over the limit of {MAX_COUNT}")
    for key in _BOUNDS:
        value = schema.get(key, 1)
        if key.startswith("exclusive") and isinstance(value, bool):
            continue  # draft 4
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (key == "multipleOf" and value <= 0):
            raise PromptError(f"{where}/{key} must be a number{' above 0' * (key == 'multipleOf')}")
    required = schema.get("required", [])
    if not isinstance(required, (list, tuple)) or not all(isinstance(name, str) for name in required):
        raise PromptError(f"{where}/required must be a list of names, not {_shown(required)}")
    check_pattern(schema.get("pattern", ""), f"{where}/pattern")
    named = schema.get("patternProperties")
    for pattern in named if isinstance(named, Mapping) else ():
        check_pattern(pattern, f"{where}/patternProperties")


def _check_reference(schema: Mapping[str, object], where: str) -> None:
    for key in ("$dynamicRef", "$recursiveRef"):
        if key in schema:
            raise PromptError(f"{where}/{key} is not supported; use $ref")
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise PromptError(f"{where}/$ref is {_shown(reference)}: only places in the same schema, '#/...', are followed")


def resolve(root: object, reference: str, where: str) -> object:
    """The schema that a local ``$ref`` names. Raises PromptError where there is none."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, (list, tuple)) and part.isdecimal() and int(part[:9]) < len(found):
            found = found[int(part)]
        else:
            raise PromptError(f"{where}/$ref is {_shown(reference)}, and there is no such place in the schema")
    if not isinstance(found, (Mapping, bool)):
        raise PromptError(f"{where}/$ref is {_shown(reference)}, which is no schema")
    return found


def _shown(value: object) -> str:
    try:
        return json.dumps(value)[:60]
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


def _short(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")[:60]
