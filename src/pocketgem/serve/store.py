"""Conversations that a later request may go on from by their id, in memory and within a limit."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketgem.serve.dialect import to_json
from pocketgem.serve.history import Message

MAX_BYTES = 64 << 20
MAX_ENTRIES = 4096


@dataclass(frozen=True)
class Kept:
    """A response as it was sent, and the conversation up to and with it, instructions left out."""

    messages: tuple[Message, ...]
    response: Mapping[str, object]
    size: int  # bytes of both as JSON, and of media


@dataclass
class _Shelf:
    """What one owner has; the entry used last stands last."""

    entries: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    size: int = 0


def _size(messages: tuple[Message, ...]) -> int:
    """Bytes of messages: as JSON, and of media as they are."""
    media = [part for message in messages for part in _media(message)]
    files = sum(len(value) for part in media for value in part.values() if isinstance(value, bytes))
    return files + len(json.dumps(messages, default=lambda value: "").encode())


def _media(message: Message) -> list[Message]:
    content = message.get("content")
    return content if isinstance(content, list) else []


class Conversations:
    """Responses by owner and id. Who has another's id finds nothing by it.

    When the limit is passed, the owner who holds most loses what was used longest ago: a flood costs its maker. For
    one thread, or one loop of asyncio.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._shelves: dict[str, _Shelf] = {}

    def keep(self, owner: str, id: str, messages: tuple[Message, ...], response: Mapping[str, object]) -> None:
        """``owner`` is any name of whoever may come back for it, such as the hash of an API key."""
        self.forget(owner, id)
        size = _size(messages) + len(to_json(response).encode())
        if size > self._max_bytes:
            return
        shelf = self._shelves.setdefault(owner, _Shelf())
        shelf.entries[id] = Kept(messages, response, size)
        shelf.size += size
        self._make_room()

    def find(self, owner: str, id: str) -> Kept | None:
        """It counts as used now. None where it was never kept, was dropped, or is somebody else's."""
        shelf = self._shelves.get(owner)
        kept = shelf.entries.get(id) if shelf else None
        if shelf and kept:
            shelf.entries.move_to_end(id)
        return kept

    def recall(self, owner: str, id: str) -> tuple[Message, ...] | None:
        """Its conversation alone, as ``responses.read`` asks for it."""
        kept = self.find(owner, id)
        return kept.messages if kept else None

    def forget(self, owner: str, id: str) -> bool:
        """Whether there was anything to forget."""
        shelf = self._shelves.get(owner)
        kept = shelf.entries.pop(id, None) if shelf else None
        if shelf is None or kept is None:
            return False
        shelf.size -= kept.size
        if not shelf.entries:
            del self._shelves[owner]
        return True

    @property
    def size(self) -> int:
        """Bytes that all entries count for."""
        return sum(shelf.size for shelf in self._shelves.values())

    def __len__(self) -> int:
        return sum(len(shelf.entries) for shelf in self._shelves.values())

    def _make_room(self) -> None:
        while self.size > self._max_bytes or len(self) > self._max_entries:
            crowded = len(self) > self._max_entries
            owner = max(self._shelves, key=lambda name: self._held(name, crowded=crowded))
            self.forget(owner, next(iter(self._shelves[owner].entries)))

    def _held(self, owner: str, *, crowded: bool) -> int:
        shelf = self._shelves[owner]
        return len(shelf.entries) if crowded else shelf.size
