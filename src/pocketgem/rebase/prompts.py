"""Prompts for a capsule: given in a file, or made by the model itself from a few of them, or from nothing.

A file has one prompt a line: plain text, or a JSON object with ``prompt``, or with ``messages`` (a last message of the
assistant's is left out, so the lines of a training file serve too). Nobody's answers are needed.

Making them: what all given prompts begin and end with is kept as a frame; what differs is shown to the base, without
the adapter, as a list of JSON strings to go on with. What comes back counts when it is a string of about the length
of those that were given, and new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pocketgem.engine.request import SamplingParams
from pocketgem.errors import FormatError, InputError, RunError
from pocketgem.llm import LLM
from pocketgem.rebase.capsule import LEAST_PROMPTS, MOST_ANSWERS
from pocketgem.rebase.record import SIDE_BY_SIDE, Prompt, Watch, said

MOST_FILE, MOST_LINE = 64 << 20, 1 << 20  # bytes, characters
SHOWN = 8  # prompts in a list to go on with
ROUNDS = 6  # times as many as are wanted are tried at most
OPENING = 24  # ids of a text that begins from nothing


@dataclass(frozen=True)
class Given:
    """One prompt: the text that may be varied, and how a text of its kind becomes ids."""

    text: str
    encode: Callable[[str], Sequence[int]]

    @property
    def ids(self) -> Prompt:
        return tuple(self.encode(self.text))


def read_prompts(path: Path, llm: LLM) -> list[Given]:
    """All of a file. Raises InputError for a file that cannot be taken, FormatError naming the line."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file with one prompt a line")
    if path.stat().st_size > MOST_FILE:
        raise InputError(f"{path}: more than {MOST_FILE >> 20} MiB of prompts")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text") from None
    found = [_line(line, llm, f"{path}, line {at}") for at, line in enumerate(lines, 1) if line.strip()]
    if not found or len(found) > MOST_ANSWERS:
        raise InputError(f"{path}: {len(found)} prompts, expected 1 to {MOST_ANSWERS}")
    return found


def _line(line: str, llm: LLM, where: str) -> Given:
    if len(line) > MOST_LINE:
        raise FormatError(f"{where}: longer than {MOST_LINE} characters")
    if not line.lstrip().startswith("{"):
        return Given(line, llm.tokenize)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from None
    if isinstance(text := entry.get("prompt"), str) and text:
        return Given(text, llm.tokenize)
    return _conversation(entry, llm, where)


def _conversation(entry: Mapping[str, object], llm: LLM, where: str) -> Given:
    messages = entry.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise FormatError(f"{where}: a prompt or messages are expected")
    turns = messages[:-1] if messages and messages[-1].get("role") in ("assistant", "model") else messages
    if not turns or not isinstance(text := turns[-1].get("content"), str):
        raise FormatError(f"{where}: the last message before the answer has no text")
    tools = entry.get("tools")
    offered = tools if isinstance(tools, list) else None

    def encode(text: str) -> Sequence[int]:
        return llm.chat_prompt([*turns[:-1], {**turns[-1], "content": text}], tools=offered)

    return Given(text, encode)


# ---- made ------------------------------------------------------------------------------------------------------------


def more_prompts(llm: LLM, given: Sequence[Given], count: int, seed: int, watch: Watch) -> list[Prompt]:
    """``count`` new prompts like the given ones, made by the model that ``llm`` is. Raises RunError for too few."""
    rng, frame = Random(seed), _frame([one.text for one in given])
    middles = [one.text[len(frame[0]) : len(one.text) - len(frame[1])] for one in given]
    longest = max(len(llm.tokenize(json.dumps(one))) for one in middles)
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=seed, stop=("\n",), max_tokens=2 * longest + 8)
    seen, found = {one.text for one in given}, list[Prompt]()
    for at in range(0, ROUNDS * count, SIDE_BY_SIDE):
        shown = [rng.sample(middles, min(SHOWN, len(middles))) for _ in range(SIDE_BY_SIDE)]
        lists = ["\n".join(map(json.dumps, some)) + '\n"' for some in shown]
        for answer in llm.generate_many(lists, params=replace(params, seed=seed + at)):
            text = frame[0] + middle + frame[1] if (middle := _string(answer.text)) else ""
            if text and text not in seen and _is_like(middle, middles) and len(found) < count:
                seen.add(text)
                found.append(tuple(rng.choice(given).encode(text)))
        watch("prompts", len(found), count)
        if len(found) == count:
            break
    if len(found) + len(given) < LEAST_PROMPTS:
        raise RunError(f"the model made {len(found)} prompts like those that were given; give more, or other ones")
    return found


def free_prompts(llm: LLM, count: int, seed: int, watch: Watch) -> list[Prompt]:
    """Beginnings of texts as the model makes them up from nothing, with whatever adapter is on it."""
    start, found = llm.tokenize(""), dict[Prompt, None]()
    params = SamplingParams(temperature=1.0, max_tokens=OPENING)
    for at in range(0, ROUNDS * count, SIDE_BY_SIDE):
        batch = [replace(params, seed=seed + at + one) for one in range(SIDE_BY_SIDE)]
        found |= {
            (*start, *ids): None for ids in said(llm, [tuple(start)] * SIDE_BY_SIDE, batch) if len(ids) == OPENING
        }
        watch("prompts", min(len(found), count), count)
        if len(found) >= count:
            break
    return list(found)[:count]


def _frame(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin and end with, cut back to where no word is cut. One text alone has none."""
    if len(texts) < 2:
        return "", ""
    begin = _common(texts)
    return begin, _common([text[len(begin) :][::-1] for text in texts])[::-1]


def _common(texts: Sequence[str]) -> str:
    """What all begin with, without a last word that may go on."""
    low, high = min(texts), max(texts)  # what these two share, all between them do
    kept = next((at for at, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    while kept and low[kept - 1].isalnum():
        kept -= 1
    return low[:kept]


def _string(text: str) -> str:
    """What stands in the JSON string whose opening quote was given; empty for anything else."""
    try:
        value = json.loads('"' + text.split("\n")[0].rstrip().rstrip(","))
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def _is_like(text: str, others: Sequence[str]) -> bool:
    lengths = [len(one) for one in others]
    return min(lengths) / 2 <= len(text) <= 2 * max(lengths) and bool(text.strip())
