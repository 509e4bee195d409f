"""A call whose body is still being collected: whether it is meant as one, and what it is when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pocketgem.text.calls import Body, could_begin
from pocketgem.text.events import FailedCall, ToolCall
from pocketgem.text.markers import Mark
from pocketgem.text.toolbox import Toolbox

_CALL = "call:"


@dataclass
class PendingCall:
    """What stands behind ``opener``, the marker of a call; it is empty for one that may lack its marker.

    quoted  a text of the body is open
    begun   it is sure to be meant as a call
    """

    opener: str
    ids: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    quoted: bool = False
    begun: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def complete(self) -> bool:
        """Whether it seems to be: a bracket closed last."""
        last = next((part.rstrip() for part in reversed(self.parts) if part.strip()), "")
        return last.endswith(("}", ")"))

    def could_begin(self, tools: Toolbox) -> bool | None:
        """Whether it is meant as a call, None for not yet clear. Without a marker it must name a tool."""
        if self.opener:
            return could_begin(self.text)
        if not self.text.startswith(_CALL):
            return None if _CALL.startswith(self.text) else False
        name, bracket, _ = self.text.removeprefix(_CALL).partition("{")
        if bracket:
            return tools.resolve(name) == name
        return None if tools.may_begin(name) else False


def is_sure(body: Body, found: Sequence[ToolCall | FailedCall]) -> bool:
    """Whether a call without an opening marker is one: it needs no repairs, and has a delimiter, which no text has."""
    repairs = [call.repairs if isinstance(call, ToolCall) and not call.flaw else ("failed",) for call in found]
    return Mark.DELIMITER.value in body.text and all({*names} <= {"missing_call_close"} for names in repairs)


def finished(what: ToolCall | FailedCall, raw: str, repairs: set[str]) -> ToolCall | FailedCall:
    """With its raw text, and the repairs that its place took."""
    if isinstance(what, FailedCall):
        return replace(what, raw=raw)
    return replace(what, raw=raw, repairs=tuple(sorted({*what.repairs, *repairs})))
