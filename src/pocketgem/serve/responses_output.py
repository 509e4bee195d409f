"""What an answer is made of in OpenAI's responses: items, their parts of text, and the events that tell of them."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem.serve.dialect import Sent, Stamp, to_json
from pocketgem.text.events import ToolCall

Json = dict[str, object]


@dataclass(frozen=True)
class PartKind:
    """A kind of text: its type, and how its events are called.

    item   the type of the items that hold it       prefix  of these items' ids
    texts  of the events about pieces of the text   parts   of those about the whole part
    index  the field that says which part it is
    """

    type: str
    item: str
    prefix: str
    texts: str
    parts: str
    index: str


OUTPUT = PartKind("output_text", "message", "msg", "response.output_text", "response.content_part", "content_index")
REASONING = PartKind(
    "reasoning_text", "reasoning", "rs", "response.reasoning_text", "response.content_part", "content_index"
)
SUMMARY = PartKind(
    "summary_text",
    "reasoning",
    "rs",
    "response.reasoning_summary_text",
    "response.reasoning_summary_part",
    "summary_index",
)


@dataclass(frozen=True)
class Place:
    """A part of the answer: the ``part``th of the ``item``th item."""

    kind: PartKind
    stamp: Stamp
    item: int
    part: int = 0

    @property
    def id(self) -> str:
        return f"{self.kind.prefix}_{self.stamp.id}_{self.item}"

    def added(self, more: Json) -> Sent:
        """The part begins."""
        return self._event(f"{self.kind.parts}.added", part=part(self.kind, "", more))

    def delta(self, text: str) -> Sent:
        return self._event(f"{self.kind.texts}.delta", delta=text, **self._logprobs([]))

    def done(self, text: str, more: Json) -> list[Sent]:
        """The part is complete."""
        logprobs = self._logprobs(more.get("logprobs", []))
        finished = self._event(f"{self.kind.texts}.done", text=text, **logprobs)
        return [finished, self._event(f"{self.kind.parts}.done", part=part(self.kind, text, more))]

    def _event(self, type: str, **fields: object) -> Sent:
        return event(type, item_id=self.id, output_index=self.item, **{self.kind.index: self.part}, **fields)

    def _logprobs(self, found: object) -> Json:
        return {"logprobs": found} if self.kind is OUTPUT else {}


def event(type: str, **fields: object) -> Sent:
    return Sent(type, {"type": type, **fields})


def part(kind: PartKind, text: str, more: Json) -> Json:
    """A part of text; ``more``: its log-probabilities, or the error of a call that failed."""
    rest: Json = {"annotations": [], "logprobs": []} if kind is OUTPUT else {}
    return {"type": kind.type, "text": text, **rest, **more}


def item(place: Place, parts: list[Json], status: str) -> Json:
    """An item of text."""
    head: Json = {"id": place.id, "type": place.kind.item, "status": status}
    if place.kind is OUTPUT:
        return {**head, "role": "assistant", "content": parts}
    if place.kind is SUMMARY:
        return {**head, "summary": parts}
    return {**head, "summary": [], "content": parts}


def call_item(call: ToolCall, stamp: Stamp, index: int, *, begun: bool = False) -> Json:
    """An item that calls a tool; ``begun``: before its arguments were told."""
    return {
        "id": f"fc_{stamp.id}_{index}",
        "type": "function_call",
        "status": "in_progress" if begun else "completed",
        "call_id": f"call_{stamp.id}_{index}",
        "name": call.name,
        "arguments": "" if begun else to_json(call.arguments),
    }


def call_events(call: ToolCall, stamp: Stamp, index: int) -> list[Sent]:
    """A call from its beginning to its end."""
    begun, whole = call_item(call, stamp, index, begun=True), call_item(call, stamp, index)
    where: Json = {"item_id": whole["id"], "output_index": index}
    return [
        event("response.output_item.added", output_index=index, item=begun),
        event("response.function_call_arguments.delta", **where, delta=whole["arguments"]),
        event("response.function_call_arguments.done", **where, name=call.name, arguments=whole["arguments"]),
        event("response.output_item.done", output_index=index, item=whole),
    ]
