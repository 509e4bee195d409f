"""Lines of JSON become examples: ids, and which of them the model is to learn to say.

    {"prompt": text, "completion": text}           a text and how it goes on
    {"messages": [...], "tools": [...]}            a conversation; every turn of the assistant is learned

A turn is what the model would have to say at that place of the conversation: the ids after those that serving would
send it, by the same template, up to the id that ends it. So calls of tools are learned in the model's own notation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgem.errors import FormatError, InputError, TemplateError
from pocketgem.text.tokenizer import Tokenizer

MOST_BYTES = 1 << 30  # of a file
MOST_LINE = 4 << 20  # characters
ASSISTANT = ("assistant", "model")
_OURS = ("raw", "weight")  # fields of a message that no template knows


@dataclass(frozen=True)
class Example:
    """``ids``, of which those from ``answer`` on are learned; or, where there are several, those of ``turns`` only."""

    ids: tuple[int, ...]
    answer: int
    turns: tuple[tuple[int, int], ...] = ()  # from, up to which

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """What is learned, in order."""
        return self.turns or ((self.answer, len(self.ids)),)

    @property
    def learned(self) -> int:
        """How many ids count in the loss."""
        return sum(stop - start for start, stop in self.spans)


Prompt = Callable[..., Sequence[int]]  # ``LLM.chat_prompt``


@dataclass(frozen=True)
class Reader:
    """Makes examples with one model's tokenizer and template. end_id: the id that ends an answer.

    learn: "answers", or "all" for every id but the first.
    """

    tokenizer: Tokenizer
    chat_prompt: Prompt
    end_id: int
    max_length: int
    learn: str = "answers"

    def read(self, path: Path) -> list[Example]:
        """All examples of a file. Raises FormatError naming the line, InputError for a file without any."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a file with one JSON object a line")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: more than {MOST_BYTES >> 20} MiB of examples; split the file")
        examples = [one for number, entry in _lines(path) for one in self.examples(entry, f"{path}, line {number}")]
        if not examples:
            raise InputError(f"{path}: no examples; give one JSON object a line")
        return examples

    def examples(self, entry: Mapping[str, object], where: str) -> list[Example]:
        """One object: one example, or more where a template changes what it said of earlier turns.

        Raises FormatError for one that is no example, or that is longer than ``max_length``.
        """
        turns = self._turns(entry, where) if "messages" in entry else [self._completion(entry, where)]
        found: list[Example] = []
        for prompt, answer in turns:
            ids, last = (*prompt, *answer), found[-1] if found else None
            if last is not None and tuple(prompt[: len(last.ids)]) == last.ids:
                found[-1] = Example(ids, last.answer, (*last.spans, (len(prompt), len(ids))))
            else:
                found.append(Example(ids, len(prompt)))
        if longest := max((len(one.ids) for one in found if len(one.ids) > self.max_length), default=0):
            raise FormatError(f"{where}: {longest} tokens, of which {self.max_length} are taken; raise --max-length")
        return [Example(one.ids, 1) for one in found] if self.learn == "all" else found

    def _completion(self, entry: Mapping[str, object], where: str) -> tuple[list[int], list[int]]:
        prompt, completion = (_text(entry, name, where) for name in ("prompt", "completion"))
        return self.tokenizer.encode(prompt), [*self.tokenizer.encode(completion, add_bos=False), self.end_id]

    def _turns(self, entry: Mapping[str, object], where: str) -> list[tuple[list[int], list[int]]]:
        """Prompt and answer of every turn of the assistant that is to be learned."""
        messages, tools = entry["messages"], entry.get("tools")
        if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(one, dict) for one in messages):
            raise FormatError(f"{where}: messages must be a list that ends with the answer")
        if messages[-1].get("role") not in ASSISTANT:
            raise FormatError(f"{where}: the last message is not the assistant's, so there is nothing to learn")
        said = [{name: value for name, value in one.items() if name not in _OURS} for one in messages]
        answers = [at for at, one in enumerate(messages) if at and one.get("role") in ASSISTANT]
        learned = [at for at in answers if messages[at].get("weight") != 0]
        try:
            return [self._turn(messages, said, at, tools, where) for at in learned]
        except TemplateError as error:
            raise FormatError(f"{where}: {error}") from None

    def _turn(
        self, messages: list[dict[str, object]], said: list[dict[str, object]], at: int, tools: object, where: str
    ) -> tuple[list[int], list[int]]:
        prompt, message = list(self.chat_prompt(said[:at], tools=tools)), messages[at]
        if isinstance(raw := message.get("raw"), str):  # in the model's own notation
            return prompt, [*self.tokenizer.encode(raw, add_bos=False, parse_special=True), self.end_id]
        if not message.get("tool_calls"):
            return prompt, [*self.tokenizer.encode(_text(message, "content", where), add_bos=False), self.end_id]
        return prompt, self._calls(prompt, said, at, tools, where)

    def _calls(self, prompt: list[int], said: list[dict[str, object]], at: int, tools: object, where: str) -> list[int]:
        """What the template makes of a message that calls tools, with what ends it: where the results would follow."""
        results = [one for one in said[at + 1 :][:1] if one.get("role") == "tool"] or _results(said[at])
        whole = list(self.chat_prompt([*said[: at + 1], *results], tools=tools))
        after = whole[len(prompt) :]
        end = next((place for place, id in enumerate(after) if id in self.tokenizer.end_ids), None)
        if whole[: len(prompt)] != prompt or not end:
            raise FormatError(f"{where}: the model's template does not write the call where the model would; give raw")
        return after[: end + 1]


def _results(message: Mapping[str, object]) -> list[dict[str, object]]:
    """Some result for every call, so that a template shows where a call ends."""
    calls = message.get("tool_calls")
    named = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [{"role": "tool", "content": "done", **_name(call)} for call in named]


def _name(call: Mapping[str, object]) -> dict[str, object]:
    """What a result says of its call."""
    function = call.get("function")
    said = {"tool_call_id": call.get("id"), "name": function.get("name") if isinstance(function, dict) else None}
    return {key: value for key, value in said.items() if isinstance(value, str)}


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
