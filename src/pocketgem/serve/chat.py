"""OpenAI's ``/v1/chat/completions``: an answer as chunks, or whole.

The chunks folded by the official client are the whole answer (``tests/test_chat_dialect.py``). What is no part of
OpenAI's API stands in fields of its own: ``reasoning_content`` and ``reasoning`` (the same text, under the two names
that clients look for), ``tool_call_errors``, ``empty_reason``, ``ignored``, and in ``usage``.
"""

from __future__ import annotations

from collections.abc import Iterable

from pocketgem.engine.request import FinishReason
from pocketgem.serve.chat_read import KNOWN, read
from pocketgem.serve.dialect import Asked, Out, Sent, Stamp, progress, progress_comment, to_json
from pocketgem.serve.errors import openai as error
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.serve.said import CUT_OFF, empty_reason, failure, said, shown_text
from pocketgem.serve.usage import chat_usage, logprobs
from pocketgem.text.events import Content, Thought, ToolCall

__all__ = ["KNOWN", "Stream", "error", "read", "whole"]

END = Sent(None, "[DONE]")


def whole(asked: Asked, stamp: Stamp, updates: Iterable[Update]) -> dict[str, object]:
    """The answer at once. Raises RunError where the updates end before it does."""
    answer = said(updates)
    message: dict[str, object] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.thought:
        message |= _thought(answer.thought)
    if answer.calls:
        message["tool_calls"] = [_call(one, index, stamp) for index, one in enumerate(answer.calls)]
    if answer.failed:
        message["tool_call_errors"] = [{"index": index, **failure(one)} for index, one in enumerate(answer.failed)]
    if not answer.calls:
        message |= _empty(answer.done, words=bool(answer.text.strip()), thought=bool(answer.thought))
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer.done, len(answer.calls))}
    choice["logprobs"] = _logprobs(asked, stamp, answer.done)
    head = _head(asked, stamp, "chat.completion")
    return {**head, "choices": [choice], "usage": chat_usage(answer.done)}


class Stream:
    """The answer in chunks. ``start`` once, ``push`` every update, and after Done nothing more."""

    def __init__(self, asked: Asked, stamp: Stamp) -> None:
        self._asked, self._stamp = asked, stamp
        self._head = _head(asked, stamp, "chat.completion.chunk")
        self._text = self._words = self._thought = False
        self._calls = self._failed = 0

    def start(self) -> list[Out]:
        """The chunk with the role: something to send before the prompt is read."""
        return [self._chunk({"role": "assistant", "content": None})]

    def push(self, update: Update) -> list[Out]:
        if isinstance(update, Reading):
            return self._reading(update)
        if isinstance(update, Done):
            return self._done(update)
        if isinstance(update, Thought):
            self._thought = self._thought or bool(update.text)
            return [self._chunk(_thought(update.text))] if update.text else []
        if isinstance(update, ToolCall):
            return self._tool_call(update)
        text = shown_text(update)
        self._text, self._words = self._text or bool(text), self._words or bool(text.strip())
        out: list[Out] = [self._chunk({"content": text})] if text else []
        if not isinstance(update, Content):
            out.append(self._chunk({"tool_call_errors": [{"index": self._failed, **failure(update)}]}))
            self._failed += 1
        return out

    def fail(self, status: int, message: str) -> list[Out]:
        """The run failed after the stream began. Official clients raise APIError with the message."""
        return [Sent(None, error(status, message)), END]

    def _reading(self, reading: Reading) -> list[Out]:
        """A comment; for those who asked, a chunk without choices, which official clients fold to nothing."""
        if not self._asked.progress:
            return [progress_comment(reading)]
        return [Sent(None, {**self._head, "choices": [], "progress": progress(reading)})]

    def _tool_call(self, call: ToolCall) -> list[Out]:
        """Index, id, type and name first, then the arguments: strict clients want the former once and complete."""
        entry = _call(call, self._calls, self._stamp)
        first = {"index": self._calls, **entry, "function": {"name": call.name, "arguments": ""}}
        rest = {"index": self._calls, "function": {"arguments": to_json(call.arguments)}}
        self._calls += 1
        return [self._chunk({"tool_calls": [first]}), self._chunk({"tool_calls": [rest]})]

    def _done(self, done: Done) -> list[Out]:
        if done.finish is FinishReason.ABORT:
            return self.fail(503, CUT_OFF)
        delta: dict[str, object] = {}
        if not self._calls:
            delta |= {} if self._text else {"content": ""}
            delta |= _empty(done, words=self._words, thought=self._thought)
        last = self._chunk(delta, _finish(done, self._calls), _logprobs(self._asked, self._stamp, done))
        counts = Sent(None, {**self._head, "choices": [], "usage": chat_usage(done)})
        return [last, *([counts] if self._asked.usage else []), END]

    def _chunk(self, delta: dict[str, object], finish: str | None = None, logprobs: object = None) -> Sent:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return Sent(None, {**self._head, "choices": [choice], **({"usage": None} if self._asked.usage else {})})


def _head(asked: Asked, stamp: Stamp, kind: str) -> dict[str, object]:
    head: dict[str, object] = {"id": f"chatcmpl-{stamp.id}", "object": kind, "created": stamp.created}
    head["model"] = asked.job.model
    return head | ({"ignored": list(asked.ignored)} if asked.ignored else {})


def _thought(text: str) -> dict[str, object]:
    return {"reasoning_content": text, "reasoning": text}


def _empty(done: Done, *, words: bool, thought: bool) -> dict[str, object]:
    reason = empty_reason(done, words=words, thought=thought)
    return {"empty_reason": reason} if reason else {}


def _call(call: ToolCall, index: int, stamp: Stamp) -> dict[str, object]:
    function = {"name": call.name, "arguments": to_json(call.arguments)}
    return {"id": f"call_{stamp.id}_{index}", "type": "function", "function": function}


def _finish(done: Done, calls: int) -> str:
    if done.finish is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if calls else "stop"


def _logprobs(asked: Asked, stamp: Stamp, done: Done) -> dict[str, object] | None:
    """With the last chunk, all at once: which token made which piece of text is known no earlier."""
    if "logprobs" not in asked.job.sampling:
        return None
    return {"content": logprobs(done.logprobs, stamp.piece), "refusal": None}
