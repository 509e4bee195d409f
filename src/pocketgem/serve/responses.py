"""OpenAI's ``/v1/responses``: an answer as events, or whole.

The response in the stream's last event is the whole answer, and so is what its deltas come to
(``tests/test_responses_dialect.py``). What is no part of OpenAI's API: ``tool_call_error`` in a part of text of its
own, ``empty_reason`` and ``ignored`` in the response, and in ``usage``.
"""

from __future__ import annotations

from collections.abc import Mapping

from pocketgem.engine.request import FinishReason
from pocketgem.errors import RunError
from pocketgem.serve.dialect import Asked, Out, Sent, Stamp, progress, progress_comment
from pocketgem.serve.errors import openai as error
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.serve.responses_output import OUTPUT, Json, PartKind, Place, call_events, call_item, event, item, part
from pocketgem.serve.responses_read import KNOWN, read
from pocketgem.serve.responses_whole import ended, last_logprobs, remembered, response, status, thought_kind, whole
from pocketgem.serve.said import CUT_OFF, empty_reason, failure, shown_text
from pocketgem.text.events import Content, Event, FailedCall, ToolCall

__all__ = ["KNOWN", "Stream", "error", "read", "remembered", "whole"]


class Stream:
    """The answer in events. ``start`` once, ``push`` every update, and after Done nothing more.

    ``whole`` is the whole answer once Done was pushed.
    """

    def __init__(self, asked: Asked, stamp: Stamp) -> None:
        self._asked, self._stamp = asked, stamp
        self._sent = 0
        self._output: list[Json] = []
        self._place: Place | None = None  # of the open item and its next or open part
        self._parts: list[Json] = []  # of the open item, complete
        self._pieces: list[str] | None = None  # of the open part
        self._words = self._thought = self._calls = False
        self.whole: Json | None = None

    def start(self) -> list[Out]:
        begun = response(self._asked, self._stamp, "in_progress", [])
        return self._numbered([event(f"response.{kind}", response=begun) for kind in ("created", "in_progress")])

    def push(self, update: Update) -> list[Out]:
        if isinstance(update, Reading):
            return self._reading(update)
        if isinstance(update, Done):
            return self._done(update)
        return self._numbered(self._event(update))

    def fail(self, status: int, message: str) -> list[Out]:
        """The run failed after the stream began."""
        code = "invalid_prompt" if status < 500 else "server_error"
        failed_response = response(self._asked, self._stamp, "failed", self._output)
        failed_response["error"] = {"code": code, "message": message}
        return self._numbered([event("response.failed", response=failed_response)])

    def _reading(self, reading: Reading) -> list[Out]:
        """A comment; for those who asked, one more ``in_progress``, which official clients fold to nothing."""
        if not self._asked.progress:
            return [progress_comment(reading)]
        begun = response(self._asked, self._stamp, "in_progress", [])
        return self._numbered([event("response.in_progress", response=begun, progress=progress(reading))])

    def _event(self, update: Event) -> list[Sent]:
        self._words = self._words or bool(shown_text(update).strip())
        if isinstance(update, ToolCall):
            return self._tool_call(update)
        if isinstance(update, FailedCall):
            return self._failed(update)
        if not update.text:
            return []
        if isinstance(update, Content):
            return self._piece(OUTPUT, update.text)
        self._thought = True
        return self._piece(thought_kind(self._asked), update.text)

    def _piece(self, kind: PartKind, text: str, more: Json | None = None) -> list[Sent]:
        """More of the open part, or the beginning of one; ``more`` stands in the part from the beginning."""
        out = self._item(kind)
        place = self._placed()
        if self._pieces is None:
            self._pieces = []
            out.append(place.added(more or {}))
        self._pieces.append(text)
        return [*out, place.delta(text)]

    def _failed(self, failed: FailedCall) -> list[Sent]:
        """A part of its own, complete."""
        more: Json = {"tool_call_error": failure(failed)}
        out = self._close_part({}) if self._place and self._place.kind is OUTPUT else []
        return [*out, *self._piece(OUTPUT, failed.raw, more), *self._close_part(more)]

    def _tool_call(self, call: ToolCall) -> list[Sent]:
        self._calls = True
        out = self._close("completed", {})
        index = len(self._output)
        self._output.append(call_item(call, self._stamp, index))
        return [*out, *call_events(call, self._stamp, index)]

    def _done(self, done: Done) -> list[Out]:
        if done.finish is FinishReason.ABORT:
            return self.fail(503, CUT_OFF)
        out = self._close(status(done), last_logprobs(self._asked, self._stamp, done))
        nothing = None if self._calls else empty_reason(done, words=self._words, thought=self._thought)
        self.whole = ended(self._asked, self._stamp, done, self._output, nothing)
        return self._numbered([*out, event(f"response.{status(done)}", response=self.whole)])

    # ---- the open item and its open part -----------------------------------------------------------------------------

    def _placed(self) -> Place:
        if self._place is None:
            raise RunError("a piece of text came before its item")
        return self._place

    def _item(self, kind: PartKind) -> list[Sent]:
        """What makes an item of this kind the open one."""
        if self._place is not None and self._place.kind is kind:
            return []
        out = self._close("completed", {})
        self._place = Place(kind, self._stamp, len(self._output))
        begun = item(self._place, [], "in_progress")
        return [*out, event("response.output_item.added", output_index=self._place.item, item=begun)]

    def _close_part(self, more: Json) -> list[Sent]:
        if self._pieces is None:
            return []
        place, text = self._placed(), "".join(self._pieces)
        self._parts.append(part(place.kind, text, more))
        self._place, self._pieces = Place(place.kind, place.stamp, place.item, place.part + 1), None
        return place.done(text, more)

    def _close(self, status: str, more: Json) -> list[Sent]:
        if self._place is None:
            return []
        out = self._close_part(more if self._place.kind is OUTPUT else {})
        done = item(self._place, self._parts, status)
        index, self._place, self._parts = self._place.item, None, []
        self._output.append(done)
        return [*out, event("response.output_item.done", output_index=index, item=done)]

    def _numbered(self, events: list[Sent]) -> list[Out]:
        out: list[Out] = []
        for one in events:
            fields = one.data if isinstance(one.data, Mapping) else {}
            out.append(Sent(one.event, {**fields, "sequence_number": self._sent}))
            self._sent += 1
        return out
