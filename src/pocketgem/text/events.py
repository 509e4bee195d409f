"""What an answer is made of, in the order the model said it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text of the reasoning before it."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A complete call of a tool. ``raw`` is what the model wrote for it, markers included.

    flaw     "unknown_tool" or "schema_mismatch": the call can be read, but the tools of the request do not allow it
    repairs  the leniencies it took to read it (``docs/tools.md`` lists them); none for a call as it should be
    """

    name: str
    arguments: dict[str, object]
    raw: str
    flaw: str | None = None
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedCall:
    """What began as a call of a tool and cannot be read as one: all that the model wrote, and why it failed.

    kind  "malformed_call", "malformed_arguments", "unterminated_call", "tools_not_requested", or
          "degenerate_repetition" for a wall of one meaningless token, which is no answer either
    """

    raw: str
    reason: str
    kind: str = "malformed_call"


@dataclass(frozen=True)
class Marker:
    """What the model said around its answer: markers of channels and turns, and whatever came after its turn.

    It is no event. With the events it makes up everything the model said. ``repair`` names what was wrong with it.
    """

    text: str
    repair: str | None = None


Event = Content | Thought | ToolCall | FailedCall


def joined(parts: Iterable[Event | Marker]) -> list[Event | Marker]:
    """Without parts that say nothing, and with neighbouring texts of the same kind as one."""
    result: list[Event | Marker] = []
    for part in parts:
        if isinstance(part, (Content, Thought)):
            if not part.text:
                continue
            if result and isinstance(last := result[-1], (Content, Thought)) and type(last) is type(part):
                part = replace(part, text=last.text + part.text)
                del result[-1]
        if not isinstance(part, Marker) or part.text or part.repair:
            result.append(part)
    return result
