"""A conversation to prompt ids, by the checkpoint's own template, with everybody's text kept text.

A template writes control tokens (``<|turn>``) and messages into one string. If a message contains the same characters,
nothing in that string tells the two apart. So before rendering, a mark that occurs nowhere else is put into all texts
of messages and tools, wherever a control token could begin or end; what is still a control token after rendering was
written by the template. The marks are taken out before the rest is encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pocketgem.errors import TemplateError
from pocketgem.text.chain import BeforeCalls, fold_results, name_results
from pocketgem.text.messages import Message, drop_past_thoughts, normalize
from pocketgem.text.template import ChatTemplate
from pocketgem.text.tokenizer import Tokenizer

# Characters for private use: no text means anything by them, so none needs all of them.
_MARKS = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


class Chat:
    """A template and the tokenizer whose control tokens it writes."""

    def __init__(self, template: ChatTemplate | None, tokenizer: Tokenizer) -> None:
        """``template`` is None for a checkpoint without one: ``prompt`` then raises TemplateError."""
        self._template, self._tokenizer = template, tokenizer

    def prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
    ) -> list[int]:
        """Ids of the conversation up to where the model answers; the begin token is there once.

        Raises TemplateError for messages that are no conversation, or that the template refuses.
        """
        if self._template is None:
            raise TemplateError("this model has no chat template; use plain completion, or an instruction-tuned model")
        chat = name_results(drop_past_thoughts(normalize(messages)))
        if self._template.folds_results:
            chat = fold_results(chat)
        marks = Marks(self._tokenizer.special_tokens, _texts([chat, tools]))
        rendered = self._rendered(self._template, chat, tools, marks, thinking=thinking)
        return self._tokenizer.with_bos(self._ids(rendered, marks))

    def _rendered(
        self,
        template: ChatTemplate,
        chat: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        marks: Marks,
        *,
        thinking: bool,
    ) -> str:
        carrier = BeforeCalls(*marks.spare)
        carried = carrier.carry(chat)
        options = {"tools": marks.put(tools), "enable_thinking": thinking}
        if carried != chat:
            settled = carrier.settle(template.render(marks.put(carried), **options), carried)
            if settled is not None:
                return settled
        return template.render(marks.put(chat), **options)

    def _ids(self, rendered: str, marks: Marks) -> Iterator[int]:
        for part in self._tokenizer.split_special(rendered):
            if isinstance(part, int):
                yield part
            else:
                yield from self._tokenizer.encode(marks.remove(part), add_bos=False)


class Marks:
    """A character that occurs nowhere in ``texts``, to break every piece of a control token in them.

    A control token that appears although the template did not write it whole has its first or its last character in
    somebody's text, even when it was put together from two texts. So the mark goes behind every character that begins
    a control token and before every one that ends one. Only a template that itself puts '<|' before and '|>' behind a
    text can still make a token of it, and means to.
    """

    def __init__(self, special: Iterable[str], texts: Iterable[str]) -> None:
        first = re.escape("".join({text[0] for text in special}))
        last = re.escape("".join({text[-1] for text in special}))
        self._places = re.compile(f"(?<=[{first}])|(?=[{last}])")
        everything = "".join(texts)
        used = {*everything}
        free = (chr(code) for code in _MARKS if chr(code) not in used and _escaped(chr(code)) not in everything)
        marks = [*islice(free, 3)]
        if len(marks) < 3:
            raise TemplateError("the messages use every private-use character of Unicode; three must be left free")
        self._mark, *spare = marks
        self.spare = spare[0], spare[1]  # two more that occur nowhere

    def put(self, value: Any) -> Any:
        """A copy of ``value`` (JSON values) with the mark in all its texts and keys."""
        if isinstance(value, str):
            return self._places.sub(self._mark, value)
        if isinstance(value, Mapping):
            return {self.put(key): self.put(item) for key, item in value.items()}
        return [self.put(item) for item in value] if isinstance(value, (list, tuple)) else value

    def remove(self, text: str) -> str:
        """``text`` without marks, also where the template's ``tojson`` has escaped them."""
        return text.replace(self._mark, "").replace(_escaped(self._mark), "")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _texts(value: object) -> Iterator[str]:
    """All texts and keys in ``value``."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
