"""The options of ``run`` that give an answer a form, and the tools that it may call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketgem.errors import PromptError

MAX_FILE = 1 << 20  # bytes; what a schema may have is less


def form(schema: Path | None, regex: str | None, budget: int | None, tools: Path | None = None) -> dict[str, Any]:
    """What ``LLM.stream_chat`` takes for these options. Raises PromptError, before a model is loaded."""
    from pocketgem.text.expressions import check_pattern
    from pocketgem.text.schema_check import check_schema
    from pocketgem.text.shape import JsonSchema, Regex

    if schema is not None and regex is not None:
        raise PromptError("--json-schema and --regex both say what the answer must be; give one")
    found: dict[str, Any] = {} if budget is None else {"thinking_budget": budget}
    if schema is not None:
        found["format"] = JsonSchema(_read(schema))
        check_schema(found["format"].schema, str(schema))
    if regex is not None:
        check_pattern(regex, "--regex")
        found["format"] = Regex(regex)
    if tools is not None:
        found["tools"] = _tools(tools)
    return found


def _tools(path: Path) -> list[Any]:
    from pocketgem.text.notation import check_tools

    tools = _read(path)
    if not isinstance(tools, list) or not tools:
        raise PromptError(f"{path}: a list of tools is expected, each declared as in OpenAI's API")
    check_tools(tools)
    return tools


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise PromptError(f"{path}: more than {MAX_FILE >> 20} MiB")
        return json.loads(content)
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: not JSON: {str(error)[:100]}") from error
