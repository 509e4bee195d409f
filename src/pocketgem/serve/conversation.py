"""What stays the same of a conversation while it grows: who speaks to which model, and how it began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

BLOCK_CHARACTERS, BLOCK_IDS = 1024, 256  # of a plain prompt, which may grow at its end
CHAT_LISTS = {"/v1/chat/completions": "messages", "/v1/messages": "messages", "/v1/responses": "input"}
SYSTEM = ("system", "instructions")  # where the dialects keep what stands before the messages


def conversation_of(route: str, owner: str, data: Mapping[str, object]) -> str | None:
    """A digest that all turns of a conversation have in common; None for requests that have no past.

    A chat is known by all up to its first message of a user, a plain prompt by its first block: one that is shorter
    gets another digest while it grows to a block. Nothing is checked here; what is no request finds its error later.
    """
    if route in CHAT_LISTS:
        start: object = [[data.get(name) for name in SYSTEM], _beginning(data.get(CHAT_LISTS[route]))]
    elif route == "/v1/completions":
        start = _block(data.get("prompt"))
    else:
        return None
    known = json.dumps([owner, data.get("model"), start], default=str)
    return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


def _beginning(messages: object) -> list[object]:
    """Roles and words up to the first message of a user. A text alone is such a message."""
    if not isinstance(messages, list):
        return [["user", _words(messages)]]
    found: list[object] = []
    for message in messages:
        if isinstance(message, Mapping):
            found.append([message.get("role"), _words(message.get("content"))])
            if message.get("role") == "user":
                break
    return found


def _words(content: object) -> object:
    """A text, however its client wrote it: as it is, or as a list of parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    if all(isinstance(text, str) for text in texts):
        return "".join(map(str, texts))
    return content


def _block(prompt: object) -> object:
    """The beginning of a prompt, of the first where there are several."""
    if isinstance(prompt, str):
        return prompt[:BLOCK_CHARACTERS]
    if isinstance(prompt, list):
        first = prompt[0] if prompt else None
        return _block(first) if isinstance(first, str | list) else prompt[:BLOCK_IDS]
    return None
