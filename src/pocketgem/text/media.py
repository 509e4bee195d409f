"""Media among the texts of a conversation: where messages hold them, and where a rendered prompt has their places.

A template writes one control token for each medium. What becomes of it is not this room's: a prompt is handed on as
texts, ids and ``Slot``s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pocketgem.errors import TemplateError

Kind = Literal["image", "audio", "video"]
KINDS: tuple[Kind, ...] = ("image", "audio", "video")
PLACES: dict[str, Kind] = {
    "<|image|>": "image",
    "<|audio|>": "audio",
    "<|video|>": "video",
    "<start_of_image>": "image",  # Gemma 3's
}
OPTIONS = {
    "image": {"budget", "media_type"},
    "audio": {"media_type"},
    "video": {"budget", "frames", "media_type"},
}
_PLACE = re.compile("|".join(re.escape(place) for place in PLACES))


@dataclass(frozen=True)
class Slot:
    """The place of a medium in a prompt. ``index`` counts the media of all messages."""

    kind: Kind
    index: int


Part = str | int | Slot


def media_part(part: Mapping[str, object], kind: Kind, where: str) -> dict[str, object]:
    """What a template is told of a medium: that it is there. Raises TemplateError for a part that is no such medium."""
    if part.get(kind) is None:
        raise TemplateError(f"{where} has a part of type {kind!r} without {kind}; it must be {{'type', {kind!r}}}")
    if surplus := part.keys() - {"type", kind} - OPTIONS[kind]:
        raise TemplateError(f"{where} has a part of type {kind!r} with an unknown field {min(surplus)!r}")
    return {"type": kind}


def media_of(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The media parts of messages in their order."""
    contents = (message.get("content") for message in messages)
    lists = (content for content in contents if isinstance(content, Sequence) and not isinstance(content, str | bytes))
    return [part for content in lists for part in content if isinstance(part, Mapping) and part.get("type") in KINDS]


def split_media(rendered: str) -> Iterator[str | Slot]:
    """``rendered`` cut at the places of media."""
    done = 0
    for index, match in enumerate(_PLACE.finditer(rendered)):
        yield rendered[done : match.start()]
        yield Slot(PLACES[match.group()], index)
        done = match.end()
    yield rendered[done:]


def check_places(found: Sequence[Slot], wanted: Sequence[Kind]) -> None:
    """Raises TemplateError where a template left media out, doubled or moved them."""
    kinds = [slot.kind for slot in found]
    if kinds != list(wanted):
        told, wrote = ", ".join(wanted) or "none", ", ".join(kinds) or "none"
        raise TemplateError(f"the chat template does not show the media as they were given: {told} became {wrote}")


class InResults:
    """Media in results of tools. Templates take these for text, so each travels as a character ``mark`` at its end.

    ``settle`` puts the places behind the response, where the later templates of Gemma 4 write them.
    """

    END = "<tool_response|>"

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._places = {kind: place for place, kind in reversed(PLACES.items())}
        self._carried = re.compile(
            rf"({mark}+)((?:(?!{mark}|{re.escape(self.END)}).)*{re.escape(self.END)})", re.DOTALL
        )
        self._kinds: list[Kind] = []

    def carry(self, messages: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        """Copies in which the content of every result is text."""
        return [self._carry(message) if message["role"] == "tool" else message for message in messages]

    def _carry(self, message: dict[str, object]) -> dict[str, object]:
        content = message["content"]
        if not isinstance(content, list):
            return message
        texts = [str(part["text"]) for part in content if part["type"] == "text"]
        media = [part["type"] for part in content if part["type"] != "text"]
        self._kinds += media
        return {**message, "content": "".join(texts) + self._mark * len(media)}

    def settle(self, rendered: str) -> str:
        """The prompt with every place behind its response."""
        kinds = iter(self._kinds)

        def placed(match: re.Match[str]) -> str:
            return match[2] + "".join(self._places[kind] for kind in islice(kinds, len(match[1])))

        return self._carried.sub(placed, rendered) if self._kinds else rendered
