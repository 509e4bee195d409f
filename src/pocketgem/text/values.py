"""The arguments of a call: the model's own syntax, and what models write instead of it, to a tree of values.

    {key:<|"|>text<|"|>,days:3,ok:true,tags:[<|"|>a<|"|>],inner:{none:null}}

Values without delimiters stay ``Bare``: what they are is for the tool's schema to say. One pass over the text with a
stack of its own, so nesting costs no recursion; every look ahead is bounded, so time grows with the length alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NoReturn

from pocketgem.text.bare import KEY, QUOTE, Place, is_stand_in, scalar_end, text_end
from pocketgem.text.literals import MAX_DEPTH, NotJson, unescaped
from pocketgem.text.markers import STAND_INS

_SPACE = re.compile(r"\s*")
_KEY = re.compile(KEY)
_IDENTIFIER = re.compile(r"\w+")
_JSON = re.compile(rf'"(?:[^"\\{STAND_INS}]++|\\.)*+"', re.DOTALL)
_QUOTED = {
    quote: re.compile(rf"{quote}([^{STAND_INS}]*?){quote}(?=\s*(?:[,}}\])]|{QUOTE}\s*[,}}\])]|\Z))") for quote in "'`"
}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


class Unreadable(Exception):
    """The text is no list of arguments. ``ended``: it could be the beginning of one."""

    def __init__(self, reason: str, *, ended: bool = False) -> None:
        super().__init__(reason)
        self.ended = ended


@dataclass(frozen=True)
class Bare:
    """A value without delimiters, as it stands there."""

    text: str


@dataclass
class _Frame:
    """An object or list that is being read."""

    closer: str
    items: dict[str, object] | list[object]
    key: str = ""
    filled: bool = False  # a value stands there, and a comma or the end must follow
    comma: bool = False  # a comma stands there
    doubled: bool = False  # the arguments are an object inside these brackets


@dataclass
class Reader:
    """Reads one object of ``text``.

    known   names of the tool's parameters
    closed  the call's own closing marker stood behind it
    spell   writes out the stand-ins inside a text
    """

    text: str
    known: Collection[str] = ()
    closed: bool = True
    spell: Callable[[str], str] = str
    repairs: set[str] = field(default_factory=set)
    at: int = 0
    stack: list[_Frame] = field(default_factory=list)
    _loose: bool = False  # the last value was in other quotes, so that a delimiter may still hang behind it
    _guessed: bool = False  # the last value was text without any quotes
    _result: object = None

    def read(self, at: int) -> object:
        """The object or list whose bracket stands at ``at``. Afterwards ``at`` is behind it. Raises Unreadable."""
        self.at = at
        self._push()
        while self.stack:
            self._skip()
            if self.at == len(self.text):
                self._end()
            elif self.stack[-1].filled:
                self._after_value(self.stack[-1])
            else:
                self._item(self.stack[-1])
        return self._result

    def _skip(self) -> None:
        if found := _SPACE.match(self.text, self.at):
            self.at = found.end()

    def _push(self) -> None:
        if len(self.stack) == MAX_DEPTH:
            raise Unreadable(f"the arguments are nested more than {MAX_DEPTH} deep")
        opener = self.text[self.at]
        self.stack.append(_Frame(_CLOSERS[opener], [] if opener == "[" else {}))
        self.at += 1

    def _pop(self) -> None:
        self.at += 1
        self._close()

    def _close(self) -> None:
        items = self.stack.pop().items
        self._result = items
        if self.stack:
            self._put(items)

    def _put(self, value: object, *, loose: bool = False, guessed: bool = False) -> None:
        frame = self.stack[-1]
        if frame.doubled and isinstance(value, dict):
            frame.items, frame.doubled = value, False
        elif isinstance(frame.items, dict):
            if frame.key in frame.items:
                self.repairs.add("duplicate_key")
            frame.items[frame.key] = value
        else:
            frame.items.append(value)
        frame.filled, self._loose, self._guessed = True, loose, guessed

    def _end(self) -> None:
        """The text is over. Only brackets may be missing, and only where the model closed the call itself."""
        if not self.closed or self._guessed or not self.stack[-1].filled:
            raise Unreadable("the arguments have no end", ended=not self.closed)
        self.repairs.add("missing_brace")
        while self.stack:
            self._close()

    def _after_value(self, frame: _Frame) -> None:
        char = self.text[self.at]
        if char == frame.closer:
            self._pop()
        elif char == ",":
            frame.filled, frame.comma = False, True
            self.at += 1
        elif char == QUOTE and self._loose:
            self.repairs.add("dangling_delimiter")
            self._loose = False
            self.at += 1
        else:
            raise Unreadable(f"after a value stands {self._near()}, where only a comma or a bracket may")

    def _item(self, frame: _Frame) -> None:
        """A key and its value, a value of a list, or the bracket that ends it."""
        if self.text[self.at] == frame.closer:
            if frame.comma:
                self.repairs.add("trailing_comma")
            self._pop()
        elif isinstance(frame.items, dict):
            self._member(frame)
        else:
            self._value(frame)

    def _member(self, frame: _Frame) -> None:
        char = self.text[self.at]
        if char == "{" and len(self.stack) == 1 and not frame.items and not frame.comma:
            self.repairs.add("double_brace")
            frame.doubled = True
            self._push()
            return
        frame.key = self._key(char)
        self._skip()
        separator = self.text[self.at : self.at + 1]
        if separator not in (":", "="):
            raise Unreadable(f"the key {frame.key[:40]!r} has no value", ended=not separator and not self.closed)
        if separator == "=":
            self.repairs.add("eq_separator")
        self.at += 1
        self._skip()
        self._value(frame)

    def _key(self, char: str) -> str:
        if char == QUOTE:
            return self._delimited()
        if char == '"':
            self.repairs.add("json_quoted_key")
            return self._json()
        if char == "'":
            self.repairs.add("single_quoted_key")
            end = self.text.find("'", self.at + 1, self.at + 258)
            if end < 0:
                self._fail("a key has no closing quote")
            return self._take(end)
        found = _KEY.match(self.text, self.at)
        key = found[0].strip() if found else ""
        if not found or not key:
            raise Unreadable(f"where a key should be stands {self._near()}")
        if not _IDENTIFIER.fullmatch(key):
            self.repairs.add("bare_key_nonident")
        self.at = found.end()
        return key

    def _value(self, frame: _Frame) -> None:
        char = self.text[self.at : self.at + 1]
        if char == QUOTE:
            self._delimited_value()
        elif char == '"':
            self.repairs.add("json_quoted_value")
            self._put(self._json(), loose=True)
        elif char in ("'", "`"):
            self._in_quotes(char)
        elif char in ("{", "["):
            self._push()
        elif char in (frame.closer, ",") and isinstance(frame.items, dict):
            self.repairs.add("empty_value")
            self._put("")
        else:
            self._bare(frame)

    def _take(self, end: int) -> str:
        """What stands between the quote here and the one at ``end``."""
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def _delimited(self) -> str:
        end = self.text.find(QUOTE, self.at + 1)
        if end < 0:
            self._fail("a text has no closing delimiter")
        return self.spell(self._take(end))

    def _delimited_value(self) -> None:
        if self.text.find(QUOTE, self.at + 1) > 0:
            self._put(self._delimited())
        elif self.closed:
            self._put(self._undelimited())
            while self.stack:
                self._close()
        else:
            self._fail("a text has no closing delimiter")

    def _undelimited(self) -> str:
        """A text that lacks its closing delimiter is sure only if exactly the brackets follow that are open."""
        text = self.text[self.at + 1 :]
        for frame in self.stack:
            if not (text := text.rstrip()).endswith(frame.closer):
                raise Unreadable("a text has no closing delimiter")
            text = text[:-1]
        if any(map(is_stand_in, text)):
            raise Unreadable("a text has no closing delimiter")
        self.repairs.add("missing_close_delimiter")
        self.at = len(self.text)
        return text

    def _json(self) -> str:
        found = _JSON.match(self.text, self.at)
        if not found:
            self._fail("a text in double quotes does not end")
        try:
            text = unescaped(found[0])
        except NotJson as error:
            raise Unreadable("a text in double quotes has an escape that JSON does not know") from error
        self.at = found.end()
        return text

    def _in_quotes(self, quote: str) -> None:
        found = _QUOTED[quote].match(self.text, self.at)
        if not found:
            self._fail(f"a text in {quote} does not end")
        else:
            self.repairs.add("single_quoted_value" if quote == "'" else "backtick_value")
            self.at = found.end()
            self._put(found[1], loose=True)

    def _bare(self, frame: _Frame) -> None:
        deep = len(self.stack) > 1
        place = Place(isinstance(frame.items, list), frame.closer == ")", () if deep else self.known)
        start, end = self.at, scalar_end(self.text, self.at, place)
        if end is not None:
            self.at = end
            self._put(Bare(self.text[start:end]))
            return
        end = text_end(self.text, start, place)
        if end is None:
            self._fail("a text without quotes does not end")
        self._bare_text(start, end)

    def _bare_text(self, start: int, end: int) -> None:
        text, stop = self.text[start:end], self.text[end]
        if stop == QUOTE:
            self.repairs.add("missing_open_delimiter")
            self.at = end + 1
            self._put(text)
        elif is_stand_in(stop) or not text.strip():
            raise Unreadable(f"where a value should be stands {self._near()}")
        else:
            self.at = end
            self._put(Bare(text.rstrip()), guessed=True)

    def _near(self) -> str:
        return repr(self.text[self.at : self.at + 20])

    def _fail(self, reason: str) -> NoReturn:
        raise Unreadable(reason, ended=not self.closed)
