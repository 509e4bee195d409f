"""Chains of tool calls as templates take them: each result by the name of its tool, and in the place a template reads.

The generations of Gemma 4's template differ: the first knows results only as ``tool_responses`` of the message that
called, later ones take messages with the role ``tool``. Both write the content of a message with calls behind the
results and end the turn there, so that no turn of the model is open any more. What a model said before it called goes
where it said it: see ``before_calls``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pocketgem.errors import TemplateError
from pocketgem.text.messages import Message


def name_results(messages: Sequence[Message]) -> list[Message]:
    """Copies in which every tool result has the name of its tool: by ``tool_call_id``, else its own, else by position.

    Raises TemplateError for a result that answers no call: templates would leave it out without a word.
    """
    named: list[Message] = []
    calls: list[Mapping[str, object]] = []  # those whose results may come now
    position = 0
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            calls, position = _calls(message), 0
        elif not calls:
            raise TemplateError(f"message {index} is a tool's result, but the message before it calls no tool")
        else:
            message = {**message, "name": _name(message, calls, position)}
            position += 1
        named.append(message)
    return named


def fold_results(messages: Sequence[Message]) -> list[Message]:
    """For templates that know results only as ``tool_responses`` of the message with the calls."""
    folded: list[Message] = []
    for message in messages:
        if message["role"] == "tool" and folded:
            caller = folded[-1]
            response = {"name": message.get("name"), "response": message["content"]}
            folded[-1] = {**caller, "tool_responses": [*_list(caller.get("tool_responses")), response]}
        else:
            folded.append(message)
    return folded


class BeforeCalls:
    """Text that an assistant said before its calls, carried through the template in its thought.

    Templates write the thought of an ongoing chain right before the calls, and the content elsewhere. So the content
    travels at the end of the thought, between two characters that occur nowhere else, and ``settle`` puts it behind
    the channel's end, where the model said it.
    """

    def __init__(self, start: str, end: str) -> None:
        self.start, self.end = start, end
        self._empty = re.compile(rf"<\|channel>thought\n{start}([^{end}]*){end}\n?<channel\|>")
        self._after = re.compile(rf"\n?{start}([^{end}]*){end}(\n?<channel\|>)")

    def carry(self, messages: Sequence[Message]) -> list[Message]:
        """Copies with the content in the thought, of those messages whose thought a template shows."""
        last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
        return [
            self._carried(message)
            if index > last_user and message.get("tool_calls") and message["content"]
            else message
            for index, message in enumerate(messages)
        ]

    def _carried(self, message: Message) -> Message:
        thought = f"{message.get('reasoning') or ''}{self.start}{str(message['content']).strip()}{self.end}"
        return {**message, "content": "", "reasoning": thought, "reasoning_content": thought}

    def settle(self, rendered: str, carried: Sequence[Message]) -> str | None:
        """The prompt with every such text in its place; None if the template did not write them all there."""
        wanted = sum(self.start in str(message.get("reasoning")) for message in carried)
        rendered, alone = self._empty.subn(r"\1", rendered)
        rendered, behind = self._after.subn(r"\2\1", rendered)
        return rendered if alone + behind == wanted and self.start not in rendered else None


def _calls(message: Message) -> list[Mapping[str, object]]:
    return [call for call in _list(message.get("tool_calls")) if isinstance(call, Mapping)]


def _name(message: Message, calls: Sequence[Mapping[str, object]], position: int) -> str:
    id = message.get("tool_call_id")
    by_id = [call for call in calls if id is not None and call.get("id") == id]
    if not by_id and (own := message.get("name")):
        return str(own)
    function = (by_id or calls[min(position, len(calls) - 1) :])[0].get("function")
    return str(function.get("name")) if isinstance(function, Mapping) else "unknown"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []
