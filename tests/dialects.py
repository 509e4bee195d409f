"""Scripted answers for the dialects' tests, and what the wire would carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pocketgem.answers import Stats, TokenLogprob
from pocketgem.engine.request import FinishReason
from pocketgem.serve.dialect import Comment, Out, Stamp
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.text.events import Content, FailedCall, Thought, ToolCall

STAMP = Stamp("a1b2c3d4", 1_790_000_000, lambda id: b"\xe2" if id == 9 else f"t{id}".encode())
STATS = Stats(prompt_tokens=120, reused_tokens=100, completion_tokens=30, prefill_seconds=0.5, decode_seconds=1.25)
DONE = Done(FinishReason.STOP, STATS, reuse="the last turn was edited")
LENGTH = Done(FinishReason.LENGTH, STATS)
ABORT = Done(FinishReason.ABORT, STATS)
WEATHER = ToolCall("get_weather", {"city": "Zürich", "days": 3, "units": ["C", None]}, "<call>")
TIME = ToolCall("get_time", {}, "<call>")
BROKEN = FailedCall('<|tool_call>call:get_weather{city:"Zür', "the call was cut off")
READING = [Reading(0, 120, 100), Reading(60, 120, 100, 0.5), Reading(120, 120, 100, 0.0)]
LOGPROBS = (TokenLogprob(7, "t7", -0.5, ((7, -0.5), (9, -1.25))), TokenLogprob(9, "�", float("-inf"), ()))

SCRIPTS: dict[str, list[Update]] = {
    "content": [Content("Hel"), Content("lo, "), Content("Zürich 🏔"), DONE],
    "progress": [*READING, Content("Hello"), DONE],
    "thought": [Thought("Let me "), Thought("see."), Content("42"), DONE],
    "one call": [WEATHER, DONE],
    "parallel calls": [Thought("Two things."), Content("One moment. "), WEATHER, TIME, WEATHER, DONE],
    "text around calls": [Content("a"), WEATHER, Content("b"), Content("c"), TIME, Content("d"), DONE],
    "thought between calls": [Thought("x"), WEATHER, Thought("y"), TIME, Thought("z"), DONE],
    "failed": [Content("I will "), Content("look. "), BROKEN, DONE],
    "failed alone": [BROKEN, LENGTH],
    "failed beside calls": [WEATHER, BROKEN, TIME, FailedCall("<again>", "no such tool"), Content("!"), DONE],
    "length": [Content("and so "), Content("on and"), LENGTH],
    "length after a call": [WEATHER, Content("and"), LENGTH],
    "thought without end": [Thought("Hmm. "), Thought("Hmm."), LENGTH],
    "thought alone": [Thought("Nothing to say."), DONE],
    "nothing": [DONE],
    "nothing by length": [LENGTH],
    "empty pieces": [Content(""), Thought(""), Content("x"), Content(""), Thought(""), DONE],
    "white space": [Content("\n"), Content("  "), DONE],
    "stop string": [Content("up to"), Done(FinishReason.STOP, STATS, stopped_by="END")],
    "stop string at once": [Done(FinishReason.STOP, STATS, stopped_by="END")],
    "log-probabilities": [Content("t7"), Done(FinishReason.STOP, STATS, logprobs=LOGPROBS, thought_tokens=2)],
}


def streamed(stream: Any, updates: Sequence[Update]) -> list[Out]:
    """Everything a stream sends for these updates."""
    out: list[Out] = list(stream.start())
    for update in updates:
        out += stream.push(update)
    return out


def wire(out: Iterable[Out]) -> bytes:
    """As the app frames it."""
    return "".join(_framed(one) for one in out).encode()


def _framed(one: Out) -> str:
    if isinstance(one, Comment):
        assert "\n" not in one.text
        assert "\r" not in one.text
        return f": {one.text}\n\n"
    assert "\n" not in one.body
    return (f"event: {one.event}\n" if one.event else "") + f"data: {one.body}\n\n"


def handler(
    library: Any, stream: Callable[[dict[str, Any]], bytes], whole: Callable[[dict[str, Any]], Any]
) -> Callable[[Any], Any]:
    """A server in one function, for ``library.MockTransport``: what was asked for decides how it is answered."""

    def answer(request: Any) -> Any:
        body = json.loads(request.content)
        if body.get("stream"):
            return library.Response(200, headers={"content-type": "text/event-stream"}, content=stream(body))
        return library.Response(200, json=whole(body))

    return answer
