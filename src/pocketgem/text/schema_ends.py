"""Whether anything finite satisfies a schema: one that requires itself inside itself would be written for ever."""

from __future__ import annotations

from collections.abc import Mapping

from pocketgem.errors import PromptError
from pocketgem.text.schema_check import inner_schemas, resolve

MAX_SWEEPS = 100  # over all schemas; more only where references were laid in a long line, and then nothing is refused
_SCALARS = {"string", "number", "integer", "boolean", "null"}


def check_end(root: object, name: str) -> None:
    """Raise PromptError when ``root``, a checked schema, can be satisfied by nothing that ends."""
    schemas = [place.schema for place in inner_schemas(root, name)]
    ended: set[int] = set()
    for _ in range(MAX_SWEEPS):
        before = len(ended)
        for schema in reversed(schemas):
            if id(schema) not in ended and _ends(schema, root, ended, name):
                ended.add(id(schema))
        if id(root) in ended:
            return
        if len(ended) == before:
            raise PromptError(f"{name} requires itself inside itself, or nothing satisfies it: no answer could end")


def _ends(schema: object, root: object, ended: set[int], name: str) -> bool:
    """Whether one schema has a finite instance, going by those that are known to have one."""
    if not isinstance(schema, Mapping):
        return schema is not False
    parts = list(schema.get("allOf", []))
    if "$ref" in schema:
        parts.append(resolve(root, str(schema["$ref"]), name))
    if not all(_known(part, ended) for part in parts):
        return False
    if not all(any(_known(option, ended) for option in schema[key]) for key in ("anyOf", "oneOf") if key in schema):
        return False
    if "enum" in schema or "const" in schema:
        return True
    given = schema.get("type", "null")
    types = {str(kind).lower() for kind in (given if isinstance(given, (list, tuple)) else [given])}
    if types & _SCALARS:
        return True
    return ("object" in types and _object_ends(schema, ended)) or ("array" in types and _array_ends(schema, ended))


def _object_ends(schema: Mapping[str, object], ended: set[int]) -> bool:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, (list, tuple)):
        return True
    return all(_known(properties.get(name, True), ended) for name in required)


def _array_ends(schema: Mapping[str, object], ended: set[int]) -> bool:
    return not schema.get("minItems") or _known(schema.get("items", True), ended)


def _known(schema: object, ended: set[int]) -> bool:
    return schema is True or isinstance(schema, list) or id(schema) in ended
