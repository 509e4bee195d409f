"""The body of a call to calls: the name, the brackets, what may stand between two calls, and why it is none.

    call:get_weather{city:<|"|>Oslo<|"|>}

What models write instead is read where it can mean one thing only, and each leniency is named in the call's
``repairs``. Where it could mean two, the whole slice comes back as a ``FailedCall``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pocketgem.text.coerce import Coercion
from pocketgem.text.events import FailedCall, ToolCall
from pocketgem.text.literals import NotJson, parsed
from pocketgem.text.markers import STAND_INS
from pocketgem.text.toolbox import Toolbox
from pocketgem.text.values import Bare, Reader, Unreadable

MAX_NAME = 256
_NAME = rf"[^\s{{}}()\[\]\"'`,=<>{STAND_INS}]{{0,{MAX_NAME}}}"
_HEAD = re.compile(rf"\s*(call\s*:)?\s*([:\-]?)({_NAME})\s*")
_NEXT = re.compile(r"\s*,?\s*(?=call\s*:)")
_REST = re.compile(r"[\s})]*")
_ARGUMENTS = ("arguments", "parameters", "args")


@dataclass(frozen=True)
class Body:
    """What stands between the markers of a call, with stand-ins for tokens.

    closed  the call's own closing marker stood behind it
    cut     the token limit ended it
    spell   writes out the stand-ins
    """

    text: str
    closed: bool = True
    cut: bool = False
    spell: Callable[[str], str] = str


@dataclass(frozen=True)
class Slice:
    """A part of a body: what it came to, and where it stands. ``what`` is a call without its raw text."""

    what: ToolCall | FailedCall
    start: int
    end: int


class CallError(Exception):
    """This is no call."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def could_begin(text: str) -> bool | None:
    """Whether what stands behind an opening marker is the beginning of a call: True, False, or None for not yet clear.

    A model that writes the marker into a sentence ("use <|tool_call> to ...") has not called anything.
    """
    found = _HEAD.match(text)
    if not found or len(text) > MAX_NAME + 64:
        return False
    if found[1] or text[found.end() : found.end() + 1] in ("{", "("):
        return True
    return None if found.end() == len(text) and not _words(text) else False


def _words(text: str) -> bool:
    """Whether a space stands behind a word: prose, unless the word is the beginning of ``call :``."""
    return text[-1:].isspace() and text.strip() not in ("", "call")


@dataclass
class _Reading:
    """One body as it is read, from call to call."""

    body: Body
    tools: Toolbox
    at: int = 0
    repairs: set[str] = field(default_factory=set)

    def next(self) -> ToolCall:
        """The call at ``at``. Afterwards ``at`` is behind it. Raises CallError."""
        name, tree = self._read()
        known = self.tools.resolve(name)
        if known is not None and known != name:
            self.repairs.add("name_suffix_match")
        coercion = Coercion({} if known is None else self.tools.schema(known), self.repairs)
        arguments = coercion.apply(tree)
        flaw = "unknown_tool" if known is None else None if coercion.fits else "schema_mismatch"
        found = arguments if isinstance(arguments, dict) else {}
        return ToolCall(name if known is None else known, found, "", flaw, tuple(sorted(self.repairs)))

    def _read(self) -> tuple[str, object]:
        found = _HEAD.match(self.body.text, self.at)
        name = found[3] if found else ""
        self.at = found.end() if found else self.at
        bracket = self.body.text[self.at : self.at + 1]
        if bracket not in ("{", "("):
            raise self._no_bracket(name, bracket)
        if name and found and not found[1]:
            self.repairs.add("call_prefix_missing")
        if bracket == "(":
            self.repairs.add("paren_shell")
        resolved = self.tools.resolve(name)
        known, body = self.tools.parameters(resolved or ""), self.body
        reader = Reader(body.text, known, closed=body.closed, spell=body.spell, repairs=self.repairs)
        tree = self._tree(reader)
        return (name, tree) if name else self._from_json(tree)

    def _tree(self, reader: Reader) -> object:
        try:
            tree = reader.read(self.at)
        except Unreadable as error:
            kind = "unterminated_call" if error.ended and self.body.cut else "malformed_arguments"
            raise CallError(kind, str(error)) from error
        self.at = reader.at
        return tree

    def _no_bracket(self, name: str, bracket: str) -> CallError:
        if not bracket and self.body.cut:
            return CallError("unterminated_call", "the call has no end")
        return CallError("malformed_call", f"no arguments in brackets follow the name {name[:40]!r}")

    def _from_json(self, tree: object) -> tuple[str, object]:
        """``{"name": ..., "arguments": {...}}``, as other models call."""
        members = tree if isinstance(tree, dict) else {}
        name = members.get("name")
        name = name.text if isinstance(name, Bare) else name
        arguments: object = next((members[key] for key in _ARGUMENTS if key in members), {})
        if isinstance(arguments, str):
            try:
                arguments = parsed(arguments)
            except NotJson:
                arguments = None
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise CallError("malformed_call", "the call has no name")
        self.repairs.add("json_call")
        return name, arguments

    def after(self) -> bool:
        """What stands behind a call: nothing, brackets too many, or the next call (True). Raises CallError."""
        text = self.body.text
        if (found := _NEXT.match(text, self.at)) and found.end() < len(text):
            self.at = found.end()
            return True
        rest = _REST.match(text, self.at)
        if rest and rest.end() == len(text):
            if rest[0].strip():
                self.repairs.add("extra_brace")
            self.at = len(text)
            return False
        raise CallError("malformed_call", "text stands behind the arguments of the call")


def read_calls(body: Body, tools: Toolbox) -> Iterator[Slice]:
    """The calls of a body in order; the last may be what could not be read, and has all that is left."""
    reading, more = _Reading(body, tools), True
    if tools.empty:
        yield Slice(FailedCall("", "no tools were offered for this answer", "tools_not_requested"), 0, len(body.text))
        return
    while more:
        start = reading.at
        try:
            call = reading.next()
            more = reading.after()
        except CallError as error:
            yield Slice(FailedCall("", str(error), error.kind), start, len(body.text))
            return
        if not more and not body.closed:
            reading.repairs.add("missing_call_close")
        end = reading.at
        yield Slice(_with(call, reading.repairs), start, end)
        reading.repairs = {"second_call_without_opener"}


def _with(call: ToolCall, repairs: set[str]) -> ToolCall:
    return ToolCall(call.name, call.arguments, call.raw, call.flaw, tuple(sorted(repairs)))
