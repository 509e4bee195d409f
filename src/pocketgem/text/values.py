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

from pocketgem.text.literals import MAX_DEPTH, NotJson, unescaped
from pocketgem.text.markers import STAND_INS, Mark

_QUOTE = Mark.DELIMITER.value
_SPACE = re.compile(r"\s*")
_KEY = re.compile(rf"[^:={{}}\[\](),\"'{STAND_INS}]{{1,256}}")
_IDENTIFIER = re.compile(r"\w+")
_JSON = re.compile(rf'"(?:[^"\\{STAND_INS}]++|\\.)*+"', re.DOTALL)
_QUOTED = {
    quote: re.compile(rf"{quote}([^{STAND_INS}]*?){quote}(?=\s*(?:[,}}\])]|{_QUOTE}\s*[,}}\])]|\Z))") for quote in "'`"
}
_SCALAR = re.compile(
    r"(?:[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|true|false|null|True|False|None|none|nil|NaN|-?Infinity)"
    r"(?=\s*(?:[}\])]|\Z|,))",
    re.ASCII,
)
_STAND_IN = re.compile(f"[{STAND_INS}]")
_STOP = re.compile(rf"[,{{}}\[\](){STAND_INS}]")
# After a comma: a key with its separator and what follows it, or the end of the list.
_NEXT_KEY = re.compile(
    rf"\s{{0,64}}(?:([\w@$.\-]{{1,64}})|[\"'][^\"'\n]{{1,64}}[\"'])\s{{0,64}}[:=]\s{{0,64}}({_QUOTE}?)"
)
_NEXT_MEMBER = re.compile(rf"\s{{0,64}}(?:{_QUOTE}|[^:={{}}\[\](),\"'{STAND_INS}]{{1,256}}[:=])")
_NEXT_END = re.compile(r"\s{0,64}(?:[}\])]|\Z)")
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
        if isinstance(frame.items, dict):
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
        elif char == _QUOTE and self._loose:
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
            self._doubled(frame)
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

    def _doubled(self, frame: _Frame) -> None:
        """The arguments as an object inside the brackets of the call: its members are the call's."""
        inner = Reader(self.text, self.known, closed=False, spell=self.spell, repairs=self.repairs)
        items = inner.read(self.at)
        if isinstance(items, dict):
            frame.items = items
        frame.filled, self.at = True, inner.at

    def _key(self, char: str) -> str:
        if char == _QUOTE:
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
        if char == _QUOTE:
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
        end = self.text.find(_QUOTE, self.at + 1)
        if end < 0:
            self._fail("a text has no closing delimiter")
        return self.spell(self._take(end))

    def _delimited_value(self) -> None:
        if self.text.find(_QUOTE, self.at + 1) > 0:
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
        if _STAND_IN.search(text):
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
        found = _SCALAR.match(self.text, self.at)
        if found and (
            self.text[found.end() : found.end() + 1] != "," or self._parts(frame, found.end() + 1, sure=True)
        ):
            self.at = found.end()
            self._put(Bare(found[0]))
            return
        start, end = self.at, self._bare_end(frame)
        text = self.text[start:end].rstrip()
        if self.text[end] == _QUOTE:
            self.repairs.add("missing_open_delimiter")
            self.at = end + 1
            self._put(self.text[start:end])
        elif text:
            self.at = end
            self._put(Bare(text), guessed=True)
        else:
            raise Unreadable(f"where a value should be stands {self._near()}")

    def _bare_end(self, frame: _Frame) -> int:
        """Where a text without quotes ends: at a bracket it did not open, a comma before a key, or a delimiter."""
        depth, openers = 0, "{[(" if frame.closer == ")" else "{["
        closers = "}])" if frame.closer == ")" else "}]"
        for stop in _STOP.finditer(self.text, self.at):
            char = stop[0]
            if char == _QUOTE or (char in closers and depth == 0):
                return stop.start()
            if char == "," and depth == 0 and self._parts(frame, stop.end()):
                return stop.start()
            if _STAND_IN.match(char):
                raise Unreadable("a control token stands inside a value")
            depth += (char in openers) - (char in closers)
        self._fail("a text without quotes does not end")

    def _parts(self, frame: _Frame, at: int, *, sure: bool = False) -> bool:
        """Whether the comma before ``at`` ends a value. ``sure``: a number or word stands before it."""
        if isinstance(frame.items, list) or _NEXT_END.match(self.text, at):
            return True
        if sure:
            return bool(_NEXT_MEMBER.match(self.text, at))
        found = _NEXT_KEY.match(self.text, at)
        return found is not None and self._begins(found)

    def _begins(self, key: re.Match[str]) -> bool:
        """Whether what looks like a key is one, and not part of the text before it."""
        return not self.known or len(self.stack) > 1 or key[1] in self.known or bool(key[2])

    def _near(self) -> str:
        return repr(self.text[self.at : self.at + 20])

    def _fail(self, reason: str) -> NoReturn:
        raise Unreadable(reason, ended=not self.closed)
