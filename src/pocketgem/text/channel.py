"""Content and thought: which of the two a text is, and which of its characters are only furniture.

What comes out as ``Marker``, and not as text:

- the label ``thought`` that a model writes when it opens its channel, with its newline, also where the marker before it
  got lost (at the start of an answer that goes on with the closing marker) or where a thought was closed from outside;
- one newline before the closing marker;
- markers that close or open nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from pocketgem.text.events import Content, FailedCall, Marker, Thought

_LABEL = "thought\n"
_LABELS = (_LABEL, "thought ", "\n")
_BLANK = 64  # characters of white space that an opened thought may wait for words
_LOOP = 3  # so many closing markers that close nothing, or labels and nothing else, are a model gone astray

Part = Content | Thought | FailedCall | Marker


class _State(enum.Enum):
    START = enum.auto()  # nothing was said, or what was said may still become a label
    LABELLED = enum.auto()  # a label without a marker before it: thought or content, its end will tell
    CONTENT = enum.auto()
    AFTER = enum.auto()  # a thought was closed, and nothing was said since
    OPENED = enum.auto()  # after <|channel>, while the text may still become the label
    THOUGHT = enum.auto()


class Channel:
    """Text and channel markers in, parts out. ``flaw`` is set by ``finish``: what is wrong with the answer, if any."""

    def __init__(self, *, thought_open: bool = False, after_result: bool = False) -> None:
        """``thought_open``: the prompt ended inside a thought. ``after_result``: with the result of a tool."""
        self._state = _State.THOUGHT if thought_open else _State.START
        self._after_result = after_result
        self._held: list[str] = []
        self._blank = True  # nothing of the thought was said
        self._idle = 0  # closing markers that closed nothing
        self._said = False  # content or a call
        self._called = False  # a call was the last that came out of this thought
        self.flaw: str | None = None

    @property
    def at_start(self) -> bool:
        """Nothing was said yet."""
        return self._state is _State.START and not self._held

    @property
    def after_thought(self) -> bool:
        """A thought was just closed."""
        return self._state is _State.AFTER and not self._held

    @property
    def in_thought(self) -> bool:
        return self._state in (_State.OPENED, _State.THOUGHT)

    def text(self, text: str) -> Iterator[Part]:
        """What is certain after more text."""
        if not text:
            return
        self._held.append(text)
        if self._state is _State.START:
            self._start()
        elif self._state is _State.AFTER:
            yield from self._after()
        elif self._state is _State.OPENED:
            yield from self._opened()
        if self._state is _State.CONTENT:
            yield from self._content(self._take())
        elif self._state is _State.THOUGHT:
            held = self._take()
            ready = held.removesuffix("\n")  # one newline waits: it may belong to the closing marker
            self._held = ["\n"] if ready != held else []
            yield from self._thought(ready)

    def open(self, marker: str) -> Iterator[Part]:
        """The model opens a thought."""
        if not self.in_thought:
            yield from self._settled()
            yield Marker(marker)
            self._state, self._blank, self._called = _State.OPENED, True, False
            return
        if self._state is _State.OPENED and (held := self._take()):
            yield from self._label(held) if held == "thought" else self._thought(held)
        else:
            yield from self._thought(self._take())
        yield Marker(marker, "repeated_channel_open")
        self._state = _State.OPENED if self._blank else _State.THOUGHT

    def close(self, marker: str) -> Iterator[Part]:
        """The model closes a thought, or thinks it does."""
        held, state = self._take(), self._state
        if state in (_State.START, _State.AFTER) and held == "thought":
            held, state = held + "", _State.LABELLED
        if state is _State.LABELLED:
            yield from self._unopened(held)
        elif not self.in_thought:
            self._idle += 1
            yield from self._content(held)
            self._state = _State.CONTENT if held else self._state
            yield Marker(marker, "stray_channel_close")
            return
        elif state is _State.OPENED and held:
            yield from self._label(held) if held == "thought" else self._thought(held)
        elif held == "\n":
            yield Marker(held)
        yield Marker(marker)
        self._state = _State.AFTER

    def call(self) -> Iterator[Part]:
        """A call comes, or another part that is neither content nor thought."""
        if self.in_thought:
            yield from self._thought(self._take())
            self._state, self._called = _State.THOUGHT, True
        elif self._state is _State.LABELLED:
            yield from self._unopened(self._take())
            self._state = _State.CONTENT
        else:
            yield from self._settled()
        self._said = True

    def interrupted(self) -> Iterator[Part]:
        """Another marker comes, which changes nothing but parts the text: what was held back comes before it."""
        if self._held and self.in_thought:
            held, opened = self._take(), self._state is _State.OPENED
            yield from self._label(held) if opened and held == "thought" else self._thought(held)
            self._state = _State.THOUGHT
        elif self._held:
            yield from self._settled()

    def finish(self) -> Iterator[Part]:
        """The end: what was held back. Sets ``flaw``."""
        if self._idle >= _LOOP:
            self.flaw = "degenerate_repetition"
        if not self.in_thought:
            yield from self._settled()
            return
        held = self._take()
        if self._state is _State.OPENED and not held.strip() and self._said:
            yield Marker(held, "dangling_channel_open")
            return
        if self._state is _State.OPENED and held == "thought":
            yield Marker(held)
        else:
            yield from self._thought(held)
        if not self._called:
            self.flaw = "unterminated_thought"

    def _take(self) -> str:
        held, self._held = "".join(self._held), []
        return held

    def _start(self) -> None:
        held = self._take()
        self._held = [held]
        if held.startswith(_LABEL):
            self._state = _State.LABELLED
        elif not _LABEL.startswith(held):
            self._state = _State.CONTENT

    def _after(self) -> Iterator[Part]:
        held = self._take()
        if held.startswith(_LABEL):
            yield Marker(_LABEL, "orphan_channel_label")
            held = held.removeprefix(_LABEL)
        elif _LABEL.startswith(held):
            self._held = [held]
            return
        self._state, self._held = _State.CONTENT, [held]

    def _opened(self) -> Iterator[Part]:
        held = self._take()
        label = next((label for label in _LABELS if held.startswith(label)), "")
        blank = not held.strip() and len(held) <= _BLANK
        if not label and (blank or any(label.startswith(held) for label in _LABELS)):
            self._held = [held]
            return
        yield from self._label(label)
        self._state, self._held = _State.THOUGHT, [held.removeprefix(label)]

    def _settled(self) -> Iterator[Part]:
        """What was held back outside a thought, now that it can become nothing else."""
        held, labelled = self._take(), self._state is _State.LABELLED
        self._state = _State.CONTENT
        if labelled and len(held) >= _LOOP * len(_LABEL) and not held.replace(_LABEL, ""):
            yield FailedCall(held, "the model repeats the label of a thought and says nothing", "degenerate_repetition")
            self._said = True
        elif labelled and self._after_result:
            yield Marker(_LABEL, "orphan_channel_label")
            yield from self._content(held.removeprefix(_LABEL))
        else:
            yield from self._content(held)

    def _unopened(self, held: str) -> Iterator[Part]:
        """A label without its marker, and the thought behind it."""
        label = _LABEL if held.startswith(_LABEL) else held
        thought = held.removeprefix(label)
        self._idle += not thought
        yield Marker(label, "missing_channel_open")
        yield from self._thought(thought.removesuffix("\n"))
        if thought.endswith("\n"):
            yield Marker("\n")

    def _label(self, text: str) -> Iterator[Part]:
        if text:
            yield Marker(text)

    def _content(self, text: str) -> Iterator[Part]:
        if text:
            self._said = True
            yield Content(text)

    def _thought(self, text: str) -> Iterator[Part]:
        if text:
            self._blank = self._called = False
            yield Thought(text)
