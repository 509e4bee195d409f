"""The items of OpenAI's responses as messages. A turn of the assistant is one message, and there several items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from pocketgem.serve.fields import MAX_NAME, Fields, shown
from pocketgem.serve.history import Message, call, joined, part_text
from pocketgem.serve.parts import RESPONSES, content

_INPUT_TEXT = ("input_text", "text", "output_text")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: Iterable[Fields]) -> tuple[Message, ...]:
    """Items as messages. What the assistant thought, said and called before anybody answered is one message."""
    messages: list[Message] = []
    for assistant, group in groupby(map(_one, items), lambda message: message["role"] == "assistant"):
        turn = list(group)
        messages += [_together(turn)] if assistant else turn
    return tuple(messages)


def _one(item: Fields) -> Message:
    kind = item.text("type", "message", most=MAX_NAME)
    if kind not in _ITEMS:
        item.refuse("type", f"is {shown(kind)}; taken here: {', '.join(_ITEMS)}")
    return _ITEMS[kind](item)


def _message(item: Fields) -> Message:
    role = item.one_of("role", _ROLES)
    if role == "user":
        return {"role": role, "content": content(item, "content", _INPUT_TEXT, RESPONSES)}
    kinds = (*_INPUT_TEXT, "refusal") if role == "assistant" else _INPUT_TEXT
    return {"role": role, "content": joined(item, "content", kinds)}


def _call(item: Fields) -> Message:
    made = call(item.text("call_id", most=MAX_NAME), item, "arguments")
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def _output(item: Fields) -> Message:
    output = content(item, "output", _INPUT_TEXT, RESPONSES)
    return {"role": "tool", "tool_call_id": item.text("call_id", most=MAX_NAME), "content": output}


def _reasoning(item: Fields) -> Message:
    """The thought itself, or else its summary. What is encrypted was not made here."""
    parts = item.sections("content") or item.sections("summary")
    thought = "".join(part_text(part, ("reasoning_text", "summary_text", "text")) for part in parts)
    return {"role": "assistant", "content": "", **({"reasoning_content": thought} if thought else {})}


_ITEMS: dict[str, Callable[[Fields], Message]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _reasoning,
}


def _together(messages: Sequence[Message]) -> Message:
    both: Message = {"role": "assistant"}
    for key in ("content", "reasoning_content"):
        text = "".join(str(message.get(key, "")) for message in messages)
        both |= {key: text} if text or key == "content" else {}
    calls = [one for message in messages for one in _calls(message)]
    return both | ({"tool_calls": calls} if calls else {})


def _calls(message: Message) -> list[object]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []
