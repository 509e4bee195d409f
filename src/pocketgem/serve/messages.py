"""Anthropic's ``/v1/messages``: an answer as events, or whole.

The events folded by the official client are the whole answer (``tests/test_messages_dialect.py``), but for the
extensions in ``usage``, which the client does not fold. Other extensions stand where it keeps them: ``ignored`` in the
message, ``tool_call_error`` and ``empty_reason`` in a block of text of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pocketgem.engine.request import FinishReason
from pocketgem.serve.dialect import Asked, Out, Sent, Stamp, finite, progress, to_json
from pocketgem.serve.errors import anthropic as error
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.serve.messages_read import KNOWN, read
from pocketgem.serve.said import CUT_OFF, empty_reason, failure, said, shown_text
from pocketgem.serve.usage import extension, media_tokens
from pocketgem.text.events import Content, Event, FailedCall, Thought, ToolCall

__all__ = ["KNOWN", "Stream", "count", "error", "read", "whole"]

SIGNATURE = "pocketgem"  # clients send it back with a thought; which thoughts are kept the server decides itself

Block = dict[str, object]


def count(tokens: int, media: Mapping[str, int]) -> dict[str, object]:
    """The answer of count_tokens. ``media``: how many of them are of each kind, where there are any."""
    details = {f"{kind}_tokens": count for kind, count in media.items() if count}
    return {"input_tokens": tokens, **({"input_tokens_details": details} if details else {})}


def whole(asked: Asked, stamp: Stamp, updates: Iterable[Update]) -> dict[str, object]:
    """The answer at once. Raises RunError where the updates end before it does."""
    answer = said(updates)
    blocks = [_block(event, index, stamp) for index, event in enumerate(answer.events)]
    if not answer.calls:
        words, thought = bool(answer.text.strip()), bool(answer.thought)
        blocks += _empty(answer.done, words=words, thought=thought)
    end = _end(answer.done, calls=bool(answer.calls))
    return {**_message(asked, stamp), "content": blocks, **end, "usage": _usage(answer.done)}


class Stream:
    """The answer in events. ``start`` once, ``push`` every update, and after Done nothing more."""

    def __init__(self, asked: Asked, stamp: Stamp) -> None:
        self._asked, self._stamp = asked, stamp
        self._open: type[Event] | None = None  # the kind of block that takes more
        self._index = 0  # of the next block
        self._words = self._thought = self._calls = False

    def start(self) -> list[Out]:
        """The message without content. How long the prompt is, its last event tells."""
        empty: dict[str, object] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**_message(self._asked, self._stamp), **empty, "usage": {"input_tokens": 0, "output_tokens": 0}}
        return [_event("message_start", message=message)]

    def push(self, update: Update) -> list[Out]:
        if isinstance(update, Reading):  # official clients skip a ping whatever it holds
            return [_event("ping", progress=progress(update))]
        if isinstance(update, Done):
            return self._done(update)
        self._words = self._words or bool(shown_text(update).strip())
        if isinstance(update, Content | Thought):
            return self._piece(update) if update.text else []
        self._calls = self._calls or isinstance(update, ToolCall)
        return [*self._close(), *self._complete(_block(update, self._index, self._stamp))]

    def fail(self, status: int, message: str) -> list[Out]:
        """The run failed after the stream began. Official clients raise an APIStatusError that holds the message."""
        return [Sent("error", error(status, message))]

    def _piece(self, piece: Content | Thought) -> list[Out]:
        """More of the open block, or the beginning of one."""
        thought = isinstance(piece, Thought)
        self._thought = self._thought or thought
        out: list[Out] = []
        if self._open is not type(piece):
            out += self._close()
            block = _thought("", "") if thought else _text("")
            out.append(_event("content_block_start", index=self._index, content_block=block))
            self._open = type(piece)
        key = "thinking" if thought else "text"
        return [*out, self._delta(f"{key}_delta", key, piece.text)]

    def _complete(self, block: Block) -> list[Out]:
        """A block from its start to its end."""
        kind, key, begun = {
            "tool_use": ("input_json_delta", "partial_json", {**block, "input": {}}),
            "text": ("text_delta", "text", {**block, "text": ""}),
        }[str(block["type"])]
        rest = to_json(block["input"]) if "input" in block else str(block["text"])
        start = _event("content_block_start", index=self._index, content_block=begun)
        out: list[Out] = [start, *([self._delta(kind, key, rest)] if rest else []), self._stop()]
        self._index += 1
        return out

    def _close(self) -> list[Out]:
        """The end of the open block, where there is one."""
        if self._open is None:
            return []
        signed = [self._delta("signature_delta", "signature", SIGNATURE)] if self._open is Thought else []
        out: list[Out] = [*signed, self._stop()]
        self._open = None
        self._index += 1
        return out

    def _done(self, done: Done) -> list[Out]:
        if done.finish is FinishReason.ABORT:
            return self.fail(503, CUT_OFF)
        out = self._close()
        if not self._calls:
            for block in _empty(done, words=self._words, thought=self._thought):
                out += self._complete(block)
        end = _event("message_delta", delta=_end(done, calls=self._calls), usage=_usage(done))
        return [*out, end, _event("message_stop")]

    def _delta(self, kind: str, key: str, text: str) -> Sent:
        return _event("content_block_delta", index=self._index, delta={"type": kind, key: text})

    def _stop(self) -> Sent:
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: object) -> Sent:
    return Sent(kind, {"type": kind, **fields})


def _message(asked: Asked, stamp: Stamp) -> dict[str, object]:
    head = {"id": f"msg_{stamp.id}", "type": "message", "role": "assistant", "model": asked.job.model}
    return head | ({"ignored": list(asked.ignored)} if asked.ignored else {})


def _block(event: Event, index: int, stamp: Stamp) -> Block:
    if isinstance(event, Content):
        return _text(event.text)
    if isinstance(event, Thought):
        return _thought(event.text, SIGNATURE)
    if isinstance(event, FailedCall):
        return {**_text(event.raw), "tool_call_error": failure(event)}
    return {"type": "tool_use", "id": f"toolu_{stamp.id}_{index}", "name": event.name, "input": finite(event.arguments)}


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _thought(text: str, signature: str) -> Block:
    return {"type": "thinking", "thinking": text, "signature": signature}


def _empty(done: Done, *, words: bool, thought: bool) -> list[Block]:
    """A block that says why there is nothing to read, where there is nothing."""
    reason = empty_reason(done, words=words, thought=thought)
    return [{**_text(""), "empty_reason": reason}] if reason else []


def _end(done: Done, *, calls: bool) -> dict[str, object]:
    reason = "tool_use" if calls else "end_turn" if done.stopped_by is None else "stop_sequence"
    if done.finish is FinishReason.LENGTH:
        reason = "max_tokens"
    return {"stop_reason": reason, "stop_sequence": done.stopped_by if reason == "stop_sequence" else None}


def _usage(done: Done) -> dict[str, object]:
    """Of the prompt, ``input_tokens`` is what was read anew. The rest of the names are those of every dialect."""
    stats = done.stats
    counts: dict[str, object] = {
        "input_tokens": stats.prompt_tokens - stats.reused_tokens,
        "cache_read_input_tokens": stats.reused_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": stats.completion_tokens,
    }
    if done.thought_tokens is not None:
        counts["output_tokens_details"] = {"thinking_tokens": done.thought_tokens}
    details = media_tokens(stats)
    return counts | ({"input_tokens_details": details} if details else {}) | extension(done)
