"""Lines of JSON become examples: ids, and which of them the model is to learn to say.

    {"prompt": text, "completion": text}           a text and how it goes on
    {"messages": [...], "tools": [...]}            a conversation; the last message is the answer to learn

Conversations are rendered by the template that serving uses, so that training and use see the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgem.errors import FormatError, InputError
from pocketgem.text.tokenizer import Tokenizer

MOST_BYTES = 1 << 30  # of a file
MOST_LINE = 4 << 20  # characters


@dataclass(frozen=True)
class Example:
    """``ids``, of which those from ``answer`` on are learned."""

    ids: tuple[int, ...]
    answer: int

    @property
    def learned(self) -> int:
        """How many ids count in the loss."""
        return len(self.ids) - self.answer


Prompt = Callable[..., Sequence[int]]  # ``LLM.chat_prompt``


@dataclass(frozen=True)
class Reader:
    """Makes examples with one model's tokenizer and template. end_id: the id that ends an answer."""

    tokenizer: Tokenizer
    chat_prompt: Prompt
    end_id: int
    max_length: int

    def read(self, path: Path) -> list[Example]:
        """All examples of a file. Raises FormatError naming the line, InputError for a file without any."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a file with one JSON object a line")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: more than {MOST_BYTES >> 20} MiB of examples; split the file")
        examples = [self.example(entry, f"{path}, line {number}") for number, entry in _lines(path)]
        if not examples:
            raise InputError(f"{path}: no examples; give one JSON object a line")
        return examples

    def example(self, entry: Mapping[str, object], where: str) -> Example:
        """One object. Raises FormatError for one that is no example, or that is longer than ``max_length``."""
        if "messages" in entry:
            prompt, answer = self._chat(entry, where)
        else:
            prompt, answer = self._completion(entry, where)
        ids = (*prompt, *answer)
        if len(ids) > self.max_length:
            raise FormatError(f"{where}: {len(ids)} tokens, of which {self.max_length} are taken; raise --max-length")
        return Example(ids, len(prompt))

    def _completion(self, entry: Mapping[str, object], where: str) -> tuple[list[int], list[int]]:
        prompt, completion = (_text(entry, name, where) for name in ("prompt", "completion"))
        return self.tokenizer.encode(prompt), [*self.tokenizer.encode(completion, add_bos=False), self.end_id]

    def _chat(self, entry: Mapping[str, object], where: str) -> tuple[list[int], list[int]]:
        messages, tools = entry["messages"], entry.get("tools")
        if not isinstance(messages, list) or len(messages) < 2 or not isinstance(messages[-1], dict):
            raise FormatError(f"{where}: messages must be a list that ends with the answer")
        if messages[-1].get("role") not in ("assistant", "model"):
            raise FormatError(f"{where}: the last message is not the assistant's, so there is nothing to learn")
        prompt = list(self.chat_prompt(messages[:-1], tools=tools))
        raw = messages[-1].get("raw")  # an answer in the model's own notation: tool calls
        text = raw if isinstance(raw, str) else _text(messages[-1], "content", where)
        answer = self.tokenizer.encode(text, add_bos=False, parse_special=isinstance(raw, str))
        return prompt, [*answer, self.end_id]


def _text(entry: Mapping[str, object], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise FormatError(f"{where}: {name} must be a text that is not empty")
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
        except UnicodeDecodeError:
            raise FormatError(f"{path}: not UTF-8 text") from None


def _object(line: str, where: str) -> dict[str, object]:
    if len(line) > MOST_LINE:
        raise FormatError(f"{where}: longer than {MOST_LINE} characters")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: a JSON object is expected, with prompt and completion, or with messages")
    return entry
