"""Ids that a model generated to what they mean: the answer, and the thoughts before it.

One state machine over tokens, fed any number of ids a step; however they are split, the events joined are the same.
Markers are tokens, never text: a model that merely writes "<|channel>" letter by letter has written that text. These,
and only these, do not come out as text:

- ``<|channel>`` with the label ``thought``, or none, and its newline;
- ``<channel|>`` with the newline before it, where it closes one (elsewhere just the token: some prompts open the
  thought themselves);
- the begin, end and padding tokens, and those that end a turn: ``<turn|>``, ``<end_of_turn>``, ``<|tool_response>``.

A tool call comes out as content with its markers, and ends a thought that was left open before it. In a vocabulary
without channels everything is content.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pocketgem.text.events import Content, Event, Thought
from pocketgem.text.tokenizer import Tokenizer
from pocketgem.text.vocab import TURN_ENDS

_OPEN, _CLOSE, _CALL = "<|channel>", "<channel|>", "<|tool_call>"
_SILENT = ("<bos>", "<eos>", "<pad>")
_LABELS = ("thought\n", "\n")


class _State(enum.Enum):
    CONTENT = enum.auto()
    LABEL = enum.auto()  # after <|channel>, while the text may still become the label
    THOUGHT = enum.auto()


class OutputParser:
    """Feed it ids with ``push``, then call ``finish``. One for each answer."""

    def __init__(self, tokenizer: Tokenizer, *, thought_open: bool = False) -> None:
        """``thought_open``: the prompt ended inside a thought (see ``opens_thought``)."""
        special = tokenizer.special_tokens
        self._open, self._close, self._call = (special.get(name) for name in (_OPEN, _CLOSE, _CALL))
        self._silent = tokenizer.end_ids | {special[name] for name in _SILENT if name in special}
        self._decoder = tokenizer.stream()
        self._state = _State.THOUGHT if thought_open else _State.CONTENT
        self._held = ""  # text of a thought that may turn out to be part of a marker

    def push(self, ids: Iterable[int]) -> list[Event]:
        """The events that are certain after ``ids``."""
        return _joined(event for id in ids for event in self._step(id))

    def finish(self) -> list[Event]:
        """What was still held back when the model stopped."""
        return _joined(self._leave(_State.CONTENT, closed=False))

    def _step(self, id: int) -> Iterator[Event]:
        if id == self._open:
            yield from self._leave(_State.LABEL, closed=False)
        elif id == self._close:
            yield from self._leave(_State.CONTENT, closed=True)
        elif id in self._silent:
            yield from self._leave(self._state, closed=False)
        else:
            if id == self._call:
                yield from self._leave(_State.CONTENT, closed=False)
            yield from self._text(self._decoder.push([id]))

    def _text(self, text: str) -> Iterator[Event]:
        if self._state is _State.CONTENT:
            yield Content(text)
            return
        self._held += text
        if self._state is _State.LABEL and not any(label.startswith(self._held) for label in _LABELS):
            self._held, self._state = _without_label(self._held), _State.THOUGHT
        if self._state is _State.THOUGHT:
            ready = self._held.removesuffix("\n")  # one newline waits: it may belong to the closing marker
            self._held = self._held[len(ready) :]
            yield Thought(ready)

    def _leave(self, state: _State, *, closed: bool) -> Iterator[Event]:
        """Ends the text of the present state, ``closed`` by its marker or not, and goes to ``state``."""
        yield from self._text(self._decoder.finish())
        if self._state is _State.LABEL:
            self._held = "" if self._held == "thought" else _without_label(self._held)
        if not (closed and self._held == "\n"):
            yield Thought(self._held)
        self._held, self._state = "", state


def _without_label(text: str) -> str:
    label = next((label for label in _LABELS if text.startswith(label)), "")
    return text.removeprefix(label)


def opens_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thought, as some templates leave it for the model to go on."""
    special = tokenizer.special_tokens
    markers = {special[name]: name for name in (_OPEN, _CLOSE, *TURN_ENDS, "<|turn>") if name in special}
    last = next((markers[id] for id in reversed(prompt) if id in markers), None)
    return last == _OPEN


def _joined(events: Iterable[Event]) -> list[Event]:
    """Without empty texts, and with neighbouring texts of the same kind as one."""
    joined: list[Event] = []
    for event in events:
        if isinstance(event, (Content, Thought)):
            if not event.text:
                continue
            if joined and isinstance(last := joined[-1], (Content, Thought)) and type(last) is type(event):
                event = replace(event, text=last.text + event.text)
                del joined[-1]
        joined.append(event)
    return joined
