"""An answer put together from its updates, and what all dialects say about how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from pocketgem.engine.request import FinishReason
from pocketgem.errors import RunError
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.text.events import Content, Event, FailedCall, Thought, ToolCall

CUT_OFF = "the run was ended before the answer was complete"


@dataclass(frozen=True)
class Said:
    """A whole answer. ``events`` in the model's order, neighbouring pieces of text and of thought joined."""

    events: tuple[Event, ...]
    done: Done

    @property
    def text(self) -> str:
        """What the person reads: the content, and what was written for calls that failed."""
        return "".join(shown_text(event) for event in self.events)

    @property
    def thought(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Thought))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(event for event in self.events if isinstance(event, ToolCall))

    @property
    def failed(self) -> tuple[FailedCall, ...]:
        return tuple(event for event in self.events if isinstance(event, FailedCall))


def said(updates: Iterable[Update]) -> Said:
    """The fold of all updates. Raises RunError where they end before the answer does."""
    events: list[Event] = []
    done: Done | None = None
    for update in updates:
        if isinstance(update, Done):
            done = update
        elif not isinstance(update, Reading):
            events.append(update)
    if done is None or done.finish is FinishReason.ABORT:
        raise RunError(CUT_OFF)
    return Said(tuple(_joined(events)), done)


def shown_text(event: Event) -> str:
    """The part of an event that belongs to the text of the answer."""
    if isinstance(event, Content):
        return event.text
    return event.raw if isinstance(event, FailedCall) else ""


def empty_reason(done: Done, *, words: bool, thought: bool) -> str | None:
    """Why there is nothing to read in an answer without calls; None where there are words."""
    if words:
        return None
    if done.finish is FinishReason.LENGTH:
        while_ = "while the model was thinking" if thought else "before any text"
        advice = "raise max_tokens" + (" or lower the thinking budget" if thought else "")
        return f"the token limit was reached {while_}; {advice}"
    if done.stopped_by is not None:
        return f"the stop string {done.stopped_by[:80]!r} came before any text"
    return "the model ended its turn " + ("after thinking, without an answer" if thought else "without a word")


def failure(call: FailedCall) -> dict[str, object]:
    """A call that could not be read, for programs. The text of the answer holds ``raw`` as well."""
    return {"type": "tool_call_parse_error", "reason": call.reason, "raw": call.raw}


def _joined(events: Iterable[Event]) -> Iterator[Event]:
    there = (event for event in events if not isinstance(event, Content | Thought) or event.text)
    for kind, group in groupby(there, type):
        if kind is Content or kind is Thought:
            text = "".join(event.text for event in group if isinstance(event, Content | Thought))
            yield kind(text)
        else:
            yield from group
