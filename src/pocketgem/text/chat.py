"""A conversation to prompt ids, by the checkpoint's own template, with everybody's text kept text.

A template writes control tokens (``<|turn>``) and messages into one string. If a message contains the same characters,
nothing in that string tells the two apart. So before rendering, a mark that occurs nowhere else is put into all texts
of messages and tools, wherever a control token could begin or end; what is still a control token after rendering was
written by the template. The marks are taken out before the rest is encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from pocketgem.errors import TemplateError
from pocketgem.text.chain import BeforeCalls, fold_results, name_results
from pocketgem.text.media import PLACES, InResults, Kind, Part, Slot, check_places, split_media
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
        """Ids of a conversation of texts up to where the model answers; the begin token is there once.

        Raises TemplateError for messages that are no conversation, or that the template refuses.
        """
        parts = self.parts(messages, tools=tools, thinking=thinking)
        if any(isinstance(part, Slot) for part in parts):
            raise TemplateError("these messages hold media, of which ids alone can be made by senses only")
        return self.encoded(part for part in parts if not isinstance(part, Slot))

    def parts(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool = False,
    ) -> list[Part]:
        """The same as texts, ids of control tokens, and one ``Slot`` for each medium in the messages' order.

        Raises TemplateError as ``prompt`` does, and for a template that leaves media out or doubles them.
        """
        if self._template is None:
            raise TemplateError("this model has no chat template; use plain completion, or an instruction-tuned model")
        chat = name_results(drop_past_thoughts(normalize(messages)))
        kinds = _kinds(chat)
        special = {*self._tokenizer.special_tokens, *(PLACES if kinds else ())}
        marks = Marks(special, _texts([chat, tools]))
        results = InResults(marks.spare[2])
        chat = results.carry(chat)
        if self._template.folds_results:
            chat = fold_results(chat)
        rendered = results.settle(self._rendered(self._template, chat, tools, marks, thinking=thinking))
        if not kinds:
            return [*self._split(rendered, marks)]
        pieces = [*split_media(rendered)]
        check_places([piece for piece in pieces if isinstance(piece, Slot)], kinds)
        split = ([piece] if isinstance(piece, Slot) else self._split(piece, marks) for piece in pieces)
        return [part for parts in split for part in parts]

    def encoded(self, parts: Iterable[str | int]) -> list[int]:
        """Ids of texts and ids; texts that stand side by side are encoded as one."""
        return self._tokenizer.with_bos(self._encode(parts))

    def _encode(self, parts: Iterable[str | int]) -> Iterator[int]:
        for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
            if is_text:
                yield from self._tokenizer.encode("".join(map(str, group)), add_bos=False)
            else:
                yield from map(int, group)

    def _rendered(
        self,
        template: ChatTemplate,
        chat: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        marks: Marks,
        *,
        thinking: bool,
    ) -> str:
        carrier = BeforeCalls(*marks.spare[:2])
        carried = carrier.carry(chat)
        options = {"tools": marks.put(tools), "enable_thinking": thinking}
        if carried != chat:
            settled = carrier.settle(template.render(marks.put(carried), **options), carried)
            if settled is not None:
                return settled
        return template.render(marks.put(chat), **options)

    def _split(self, rendered: str, marks: Marks) -> Iterator[str | int]:
        for part in self._tokenizer.split_special(rendered):
            yield part if isinstance(part, int) else marks.remove(part)


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
        marks = [*islice(free, 4)]
        if len(marks) < 4:
            raise TemplateError("the messages use every private-use character of Unicode; four must be left free")
        self._mark, *self.spare = marks  # three more that occur nowhere

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


def _kinds(chat: Sequence[Message]) -> list[Kind]:
    """Kinds of the media in normal messages, in their order."""
    contents = (message["content"] for message in chat)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return [part["type"] for part in parts if part["type"] != "text"]


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
