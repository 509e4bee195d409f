"""Ids that a model generated to what they mean: content, thoughts and calls of tools.

One state machine over tokens, fed any number of ids a step; however they are split, the events joined are the same.
Markers are tokens, never text: a model that merely writes "<|channel>" letter by letter has written that text. Nothing
is lost: events and markers together are everything the model said, in order (``read``).

``channel.py`` tells thought from content, ``calls.py`` reads the body of a call. Here is what a token does:

- the end of a turn ends the answer; what a model invents after it is no part of the answer;
- between the markers of a call all is its body, and inside a text of it (between two delimiters) every other token is
  text too;
- right behind a thought, a call may lack its opening marker: if it names a tool of the request, holds at least one
  delimiter and ends the turn, it is one;
- what begins as a call and is none comes out whole, as a ``FailedCall``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pocketgem.text.calls import Body, read_calls
from pocketgem.text.channel import Channel
from pocketgem.text.events import Event, FailedCall, Marker, ToolCall, joined
from pocketgem.text.json_content import JsonContent
from pocketgem.text.markers import Mark, Markers
from pocketgem.text.pending import PendingCall, finished, is_sure
from pocketgem.text.tokenizer import Tokenizer
from pocketgem.text.toolbox import Toolbox
from pocketgem.text.vocab import TURN_ENDS

_WALL = 8  # so many of the same reserved token in a row are a fault, not an answer
_RESERVED = re.compile(rb"<unused[0-9]+>")
_HEADER, _ROLE = re.compile(r"[a-z]{0,16}\n"), re.compile(r"[a-z]{0,16}")
_RESULT_FOLLOWS = ("<|tool_response>", "<start_function_response>")

Anything = Event | Marker


class OutputParser:
    """Feed it ids with ``push``, then call ``finish``. One for each answer.

    ended  the model ended its turn: nothing more will come of further ids
    flaw   after ``finish``: "unterminated_thought", "degenerate_repetition" or "truncated_json" where the answer
           is not whole, so that an empty one has a reason
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thought_open: bool = False,
        after_result: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        json: bool = False,
    ) -> None:
        """Args:
        thought_open: the prompt ended inside a thought (see ``opens_thought``).
        after_result: the prompt ended with the result of a tool (see ``follows_result``).
        tools: the declarations of the request; () where there were none, None to take every call as it stands.
        json: the content must be JSON: fences around it and text before it are no content.
        """
        self.ended = False
        self._tokenizer, self._tools, self._markers = tokenizer, Toolbox(tools), Markers(tokenizer)
        self._decoder = tokenizer.stream()
        self._channel = Channel(thought_open=thought_open, after_result=after_result)
        self._json = JsonContent() if json else None
        self._call: PendingCall | None = None
        self._header: str | None = None  # a turn's header that the model repeats
        self._wall: list[str] = []  # the same reserved token, again and again
        self._after: str | None = None  # what text after the end is
        self._shields = True  # whether an open text of a call hides its closing marker

    def push(self, ids: Iterable[int]) -> list[Event]:
        """The events that are certain after ``ids``."""
        return [event for event in self.read(ids) if not isinstance(event, Marker)]

    def finish(self, *, cut: bool = False) -> list[Event]:
        """What was still held back when the model stopped; ``cut``: when the token limit stopped it."""
        return [event for event in self.read_end(cut=cut) if not isinstance(event, Marker)]

    @property
    def flaw(self) -> str | None:
        return self._channel.flaw or (self._json.flaw if self._json else None)

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to a thought."""
        return self._channel.in_thought and self._call is None

    def read(self, ids: Iterable[int]) -> list[Anything]:
        """As ``push``, with the markers: all of it together is what the model said, in order."""
        parts = [part for id in ids for part in self._step(id)]
        return joined(self._json.read(parts) if self._json else parts)

    def read_end(self, *, cut: bool = False) -> list[Anything]:
        """As ``finish``, with the markers."""
        parts = [Marker(self._decoder.finish())] if self.ended else [*self._end(cut)]
        return joined([*self._json.read(parts), *self._json.finish(cut=cut)] if self._json else parts)

    # ---- text and channels -----------------------------------------------------------------------------------------

    def _step(self, id: int) -> Iterator[Anything]:
        mark = self._markers.of(id)
        if self.ended:
            yield self._after_end(id, mark)
        elif mark is Mark.END:
            yield from self._end(cut=False)
            yield Marker(name := self._name(id))
            self._after = "hallucinated_tool_response" if name in _RESULT_FOLLOWS else "text_after_turn_end"
        elif self._call is not None:
            yield from self._in_call(self._call, id, mark)
        elif mark is None or mark is Mark.DELIMITER:
            yield from self._plain(id)
        else:
            yield from self._flushed()
            yield from self._at_marker(id, mark)

    def _at_marker(self, id: int, mark: Mark) -> Iterator[Anything]:
        name = self._name(id)
        if mark is Mark.CALL:
            yield from self._channel.call()
            self._call = PendingCall(name)
        elif mark is Mark.THOUGHT:
            yield from self._channel.open(name)
        elif mark is Mark.THOUGHT_END:
            yield from self._channel.close(name)
            if self._channel.after_thought and not self._tools.anything:
                self._call = PendingCall("")
        elif mark is not Mark.TURN:
            yield from self._channel.interrupted()
            yield Marker(name, "stray_call_close" if mark is Mark.CALL_END else None)
        elif self._channel.at_start:
            yield Marker(name, "turn_header")
            self._header = ""
        else:
            yield from self._end(cut=False)
            yield Marker(name, "turn_open_as_end")
            self._after = None

    def _after_end(self, id: int, mark: Mark | None) -> Marker:
        """What a model invents after its turn: no part of the answer."""
        text = self._decoder.push([id])
        if mark is Mark.END:
            return Marker(text, "stray_tool_response" if text in _RESULT_FOLLOWS else None)
        return Marker(text, self._after if text.strip() else None)

    def _plain(self, id: int) -> Iterator[Anything]:
        """Text. A reserved token may come by chance; a wall of the same one is a fault, and no answer."""
        piece = self._tokenizer.piece(id)
        if not _RESERVED.fullmatch(piece):
            yield from self._flushed() if self._wall else ()
            yield from self._text(self._decoder.push([id]))
            return
        if self._wall[:1] != [text := piece.decode()]:
            yield from self._flushed()
        self._wall.append(text)

    def _text(self, text: str) -> Iterator[Anything]:
        if self._header is not None:
            held, self._header = self._header + text, None
            if found := _HEADER.match(held):
                yield Marker(found[0], "turn_header")
                text = held[found.end() :]
            elif _ROLE.fullmatch(held):
                self._header, text = held, ""
            else:
                text = held
        yield from self._channel.text(text)

    def _flushed(self) -> Iterator[Anything]:
        """What can no longer become anything else, now that a marker comes: half a character, a header, a wall."""
        yield from self._text(self._decoder.finish())
        if self._header is not None:
            yield Marker(self._header, "turn_header")
            self._header = None
        wall, self._wall = self._wall, []
        if len(wall) < _WALL:
            yield from self._channel.text("".join(wall))
        else:
            yield from self._channel.call()
            yield FailedCall("".join(wall), f"the model repeats {wall[0]} and says nothing", "degenerate_repetition")

    def _end(self, cut: bool) -> Iterator[Anything]:
        """The end of the turn, or of the ids."""
        if (call := self._call) is not None and not cut and self._swallowed_its_end(call):
            yield from self._replayed(call)
            if self.ended:
                return
        if self._call is not None:
            yield from self._read_call(self._call, self._body(self._call, cut=cut))
        yield from self._flushed()
        yield from self._channel.finish()
        self.ended = True

    def _name(self, id: int) -> str:
        return self._tokenizer.decode([id])

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _in_call(self, call: PendingCall, id: int, mark: Mark | None) -> Iterator[Anything]:
        if mark is Mark.DELIMITER:
            call.quoted = not call.quoted
        elif mark is not None and not (call.quoted and self._shields) and self._ends_call(call, mark):
            closed = mark is Mark.CALL_END
            yield from self._read_call(call, self._body(call, closed=closed), self._name(id) if closed else "", mark)
            if not closed:
                yield from self._step(id)
            return
        call.ids.append(id)
        call.parts.append(self._in_body(id, mark))
        if not call.begun:
            yield from self._begin(call)

    def _ends_call(self, call: PendingCall, mark: Mark) -> bool:
        """Whether a marker outside a text ends the call: another call, a turn; a channel, once a bracket closed."""
        if mark in (Mark.CALL_END, Mark.CALL, Mark.TURN) or not call.opener:
            return True
        return mark is not Mark.SILENT and call.complete()

    def _in_body(self, id: int, mark: Mark | None) -> str:
        if mark is None:
            return self._decoder.push([id])
        return self._decoder.finish() + (self._name(id) if mark is Mark.SILENT else mark.value)

    def _body(self, call: PendingCall, *, closed: bool = False, cut: bool = False) -> Body:
        call.parts.append(self._decoder.finish())
        return Body(call.text, closed, cut, self._markers.spelled)

    def _begin(self, call: PendingCall) -> Iterator[Anything]:
        """Decides whether what was collected is meant as a call; if not, it is text."""
        could = call.could_begin(self._tools)
        call.begun = could is True
        if could is False:
            self._call = None
            if call.opener:
                yield Marker("", "opener_without_call")
            yield from self._channel.text(call.opener + self._markers.spelled(call.text))

    def _read_call(
        self, call: PendingCall, body: Body, closer: str = "", mark: Mark | None = None
    ) -> Iterator[Anything]:
        """The body is complete: what it says. ``closer`` is the call's own end, ``mark`` what ended it."""
        self._call = None
        slices = [*read_calls(body, self._tools)]
        extra = {"call_in_thought"} if self._channel.in_thought else set()
        if not call.opener:
            extra.add("missing_call_open")
            if mark not in (None, Mark.CALL_END) or not is_sure(body, [part.what for part in slices]):
                yield from self._channel.text(self._markers.spelled(body.text))
                yield from [Marker(closer, "stray_call_close")] if closer else ()
                return
            yield from self._channel.call()
        for part in slices:
            raw = self._markers.spelled(body.text[part.start : part.end])
            raw = (call.opener if part is slices[0] else "") + raw + (closer if part is slices[-1] else "")
            yield finished(part.what, raw, extra)

    def _swallowed_its_end(self, call: PendingCall) -> bool:
        """Whether a text that never ended hides the call's own end: what stands before that must be a call."""
        head, end, _ = call.text.partition(Mark.CALL_END.value) if call.quoted and call.opener else ("", "", "")
        body = Body(head, spell=self._markers.spelled)
        return bool(end) and all(isinstance(part.what, ToolCall) for part in read_calls(body, self._tools))

    def _replayed(self, call: PendingCall) -> Iterator[Anything]:
        """A text in it never ended, and so swallowed the end of the call: again, with nothing hidden by a text."""
        self._decoder.finish()
        self._call, self._shields = PendingCall(call.opener), False
        for id in call.ids:
            yield from self._step(id)


def parser_after(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    tools: Sequence[Mapping[str, object]] | None = None,
    json: bool = False,
) -> OutputParser:
    """The parser for the answer to a prompt."""
    return OutputParser(
        tokenizer,
        thought_open=opens_thought(tokenizer, prompt),
        after_result=follows_result(tokenizer, prompt),
        tools=tools,
        json=json,
    )


def opens_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thought, as some templates leave it for the model to go on."""
    return _last_of(tokenizer, prompt, ("<|channel>", "<channel|>", *TURN_ENDS, "<|turn>")) == "<|channel>"


def follows_result(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the last that a prompt has is the result of a tool."""
    names = ("<tool_response|>", "<end_function_response>", *TURN_ENDS, "<|turn>", "<start_of_turn>")
    return _last_of(tokenizer, prompt, names) in names[:2]


def _last_of(tokenizer: Tokenizer, prompt: Sequence[int], names: Sequence[str]) -> str | None:
    special = tokenizer.special_tokens
    markers = {special[name]: name for name in names if name in special}
    return next((markers[id] for id in reversed(prompt) if id in markers), None)
