"""Tools as the dialects declare them, and which of them the model may or must call."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from pocketgem.serve.fields import FieldError, Fields, plain, shown
from pocketgem.text.shape import JsonObject, JsonSchema, Regex, Shape, ToolChoice

MAX_TOOLS = 256
MAX_PATTERN = 16384  # characters of a regular expression

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # what the call syntax of the model can hold, and all dialects allow

Tool = Mapping[str, object]
Format = JsonObject | JsonSchema | Regex


def declared(fields: Fields, schema_key: str) -> Tool:
    """A tool as templates take it. ``fields`` holds its name, its description and, at ``schema_key``, its schema."""
    name = fields.text("name", most=256)
    if not _NAME.fullmatch(name):
        fields.refuse("name", f"is {shown(name)}; a name has 1 to 128 letters, digits, dots, dashes and underscores")
    function: dict[str, object] = {
        "name": name,
        "description": fields.text("description", ""),
        "parameters": fields.json(schema_key) or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def name_of(tool: Tool) -> str:
    function = tool["function"]
    return str(function["name"]) if isinstance(function, Mapping) else ""


def checked_names(tools: Sequence[Tool], path: str) -> tuple[Tool, ...]:
    """The tools, no two of one name."""
    names = [name_of(tool) for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise FieldError(f"{path}[{index}]", f"is a second tool of the name {name!r}")
    return tuple(tools)


def allowed_only(tools: tuple[Tool, ...], names: Collection[str], path: str) -> tuple[Tool, ...]:
    """The tools of these names. Raises FieldError for a name that none has."""
    if unknown := sorted(set(names) - {name_of(tool) for tool in tools}):
        raise FieldError(path, f"names {shown(unknown[0])}, which is none of the tools")
    return tuple(tool for tool in tools if name_of(tool) in names)


def shape(
    tools: tuple[Tool, ...],
    choice: ToolChoice | str | None,
    path: str,
    *,
    parallel: bool = True,
    format: Format | None = None,
    thinking_budget: int | None = None,
) -> Shape:
    """The rules of an answer. ``choice``: a ToolChoice, the name of the one tool to call, or None for the default."""
    tool = choice if isinstance(choice, str) and not isinstance(choice, ToolChoice) else None
    if tool is not None and tool not in map(name_of, tools):
        raise FieldError(path, f"names {shown(tool)}, which is none of the tools")
    if choice is ToolChoice.REQUIRED and not tools:
        raise FieldError(path, "asks for a call, and there are no tools")
    kind = choice if isinstance(choice, ToolChoice) else ToolChoice.REQUIRED if tool else ToolChoice.AUTO
    return Shape(tools, kind, tool, parallel and tool is None, format, thinking_budget)


def json_format(fields: Fields, key: str = "schema") -> Format:
    """What a schema describes; any object where there is none."""
    schema = fields.json(key)
    return JsonSchema(schema) if schema else JsonObject()


def regex(fields: Fields, key: str = "regex") -> Regex | None:
    """The extension: text that the content must match whole."""
    return Regex(fields.text(key, most=MAX_PATTERN)) if fields.has(key) else None


def arguments(value: object, path: str) -> dict[str, object]:
    """The arguments of a call in the history, already parsed."""
    if not isinstance(value, Mapping):
        raise FieldError(path, f"must be an object, not {shown(value)}")
    copy = plain(value, path)
    return copy if isinstance(copy, dict) else {}
