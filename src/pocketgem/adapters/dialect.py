"""What an adapter says of how to talk to the model with it: a chat template, and names for reserved tokens.

Both lie beside its weights, where Hugging Face's libraries put them: ``chat_template.jinja``, and
``added_tokens_decoder`` in ``tokenizer_config.json``. A base that was never taught to chat has neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketgem.checkpoint.load import read_json, read_text
from pocketgem.config.fields import MAX_SIZE, Fields
from pocketgem.errors import FormatError

TEMPLATE, TOKENS = "chat_template.jinja", "tokenizer_config.json"
MOST_NAMES = 1 << 16  # libraries list every control token, Gemma 3's 6,414
MOST_LENGTH = 64  # characters of a name


@dataclass(frozen=True)
class Dialect:
    """template: jinja, None for the base's own. names: what reserved tokens are called, text -> id."""

    template: str | None = field(default=None, repr=False)
    names: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.template is not None or bool(self.names)

    def files(self) -> dict[str, bytes]:
        """The files that say this, by name."""
        found = {} if self.template is None else {TEMPLATE: self.template.encode()}
        if self.names:
            tokens = {str(id): {"content": name, "special": True} for name, id in self.names.items()}
            found[TOKENS] = json.dumps({"added_tokens_decoder": tokens}, indent=2).encode()
        return found


def read_dialect(folder: Path) -> Dialect:
    """The dialect in a folder; an empty one where it says nothing. Raises FormatError."""
    template = read_text(folder / TEMPLATE) if (folder / TEMPLATE).is_file() else None
    return Dialect(template, _names(folder / TOKENS) if (folder / TOKENS).is_file() else {})


def _names(path: Path) -> dict[str, int]:
    listed = Fields(read_json(path), str(path)).section("added_tokens_decoder").data
    if len(listed) > MOST_NAMES:
        raise FormatError(f"{path}: {len(listed)} tokens are named, more than {MOST_NAMES}")
    found: dict[str, int] = {}
    for key, token in listed.items():
        name = token.get("content") if isinstance(token, dict) else None
        if not key.isdecimal() or int(key) > MAX_SIZE or not isinstance(name, str) or not 0 < len(name) <= MOST_LENGTH:
            raise FormatError(f"{path}: added_tokens_decoder[{key[:20]!r}] is no name of a token")
        if name in found:
            raise FormatError(f"{path}: two tokens are named {name!r}")
        found[name] = int(key)
    return found
