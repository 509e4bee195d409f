"""A conversation as a file: a JSON list of messages, checked when it comes back."""

from __future__ import annotations

import json
from pathlib import Path

from pocketgem.cli.lines import write_whole
from pocketgem.errors import PromptError

MAX_TRANSCRIPT = 16 << 20  # bytes
ROLES = ("system", "user", "assistant")


def save_messages(path: Path, messages: list[dict[str, str]]) -> None:
    """Write messages; an existing file is replaced only if it is a conversation too. Raises PromptError or OSError."""
    if path.exists():
        try:
            load_messages(path)
        except PromptError as error:
            raise PromptError(f"{path} exists and is not a conversation; it stays as it is") from error
    text = json.dumps(messages, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, lambda place: place.write_bytes(text.encode("utf-8", "backslashreplace")))


def load_messages(path: Path) -> list[dict[str, str]]:
    """Read messages back. Raises PromptError for a file that is none, OSError where it cannot be read."""
    if not path.is_file():
        raise PromptError(f"{path}: no such file")
    if path.stat().st_size > MAX_TRANSCRIPT:
        raise PromptError(f"{path}: larger than {MAX_TRANSCRIPT >> 20} MiB")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: not JSON") from error
    if not isinstance(data, list):
        raise PromptError(f"{path}: not a list of messages")
    return [_message(item, f"{path}: message {index}") for index, item in enumerate(data)]


def _message(item: object, where: str) -> dict[str, str]:
    if not isinstance(item, dict) or item.get("role") not in ROLES or not isinstance(item.get("content"), str):
        raise PromptError(f"{where} needs a role ({', '.join(ROLES)}) and a text as content")
    if item["role"] == "system" and not where.endswith(" 0"):
        raise PromptError(f"{where} is a system turn, which can only come first")
    return {"role": item["role"], "content": item["content"]}
