"""What an answer is made of, in the order the model said it."""

from __future__ import annotations

from dataclasses import dataclass


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
    """A complete call of a tool. ``raw`` is what the model wrote for it, markers included."""

    name: str
    arguments: dict[str, object]
    raw: str


@dataclass(frozen=True)
class FailedCall:
    """What began as a call of a tool and cannot be read as one: all that the model wrote, and why it failed."""

    raw: str
    reason: str


Event = Content | Thought | ToolCall | FailedCall
