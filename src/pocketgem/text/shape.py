"""What an answer must look like, as a request asks for it. Data only: ``guides.py`` makes it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class ToolChoice(StrEnum):
    """Whether the model calls tools. A tool's name asks for that very tool (``Shape.tool``)."""

    NONE = "none"  # must not
    AUTO = "auto"  # may
    REQUIRED = "required"  # must, one or more


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """JSON that a schema describes."""

    schema: Mapping[str, object]


@dataclass(frozen=True)
class Regex:
    """Text that an expression matches whole."""

    pattern: str


Format = JsonObject | JsonSchema | Regex


@dataclass(frozen=True)
class Shape:
    """Rules for one answer.

    tools            declarations as OpenAI has them: {"type": "function", "function": {"name", "parameters", ...}}
    tool             with ``ToolChoice.REQUIRED``: the name of the one tool to call
    parallel         whether one answer may hold several calls
    format           what the content must be; thoughts and calls are free of it
    thinking_budget  most tokens of thought before the channel is closed for it; None: no limit; 0: no thought
    """

    tools: tuple[Mapping[str, object], ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    tool: str | None = None
    parallel: bool = True
    format: Format | None = None
    thinking_budget: int | None = None

    @property
    def offered(self) -> tuple[Mapping[str, object], ...]:
        """The tools that may be called."""
        return () if self.choice is ToolChoice.NONE else self.tools

    @property
    def is_json(self) -> bool:
        """Whether the content is to be JSON."""
        return isinstance(self.format, JsonObject | JsonSchema)


def shaped(
    tools: Sequence[Mapping[str, object]] | None,
    choice: str | None,
    *,
    parallel: bool = True,
    format: Format | None = None,
    thinking_budget: int | None = None,
) -> Shape:
    """A shape with the choice as one word: none, auto, required, or the name of the one tool to call. None: auto."""
    known = {str(one): one for one in ToolChoice}
    tool = None if choice is None or choice in known else choice
    kind = ToolChoice.REQUIRED if tool is not None else known[choice or "auto"]
    return Shape(tuple(tools or ()), kind, tool, parallel, format, thinking_budget)
