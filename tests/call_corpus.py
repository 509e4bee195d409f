"""Lines of outputs that broke parsers, how to run one, and what came of it.

``tests/data/toolcalls.jsonl`` is the project's own; a larger one of captured outputs is run where it lies beside the
repository. A line has ``raw`` text in which markers are tokens, unless ``segments`` say which are ("s") and which are
ordinary text ("t"); ``tools`` (null: not known, []: none); and perhaps ``prompt_tail``, ``finish``, ``request`` and
``family``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pocketgem.text.events import Content, Event, FailedCall, Marker, Thought, ToolCall
from pocketgem.text.parse import OutputParser, follows_result, opens_thought
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures

OWN = fixtures.DATA / "toolcalls.jsonl"
SHARED = Path(os.environ.get("POCKETGEM_SHARED", Path(__file__).parents[2] / "shared")) / "corpus" / "toolcalls.jsonl"

Line = dict[str, Any]
Split = Callable[[list[int]], Sequence[list[int]]]


def lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokenizer_of(line: Line) -> Tokenizer:
    families = {"functiongemma": fixtures.functiongemma_tokenizer, "gemma3n": fixtures.spm_tokenizer}
    return families.get(line.get("family", ""), fixtures.gemma4_tokenizer)()


def ids_of(line: Line) -> list[int]:
    tokenizer = tokenizer_of(line)
    ids: list[int] = []
    for segment in line.get("segments") or [{"raw": line["raw"]}]:
        text, special = next(iter(segment.values())), "t" not in segment
        ids += tokenizer.encode(text, add_bos=False, parse_special=special)
    return ids


def parser_of(line: Line) -> OutputParser:
    tokenizer = tokenizer_of(line)
    prompt = tokenizer.encode(line.get("prompt_tail") or "<|turn>model\n", add_bos=False, parse_special=True)
    return OutputParser(
        tokenizer,
        thought_open=opens_thought(tokenizer, prompt),
        after_result=follows_result(tokenizer, prompt),
        tools=line["tools"],
        json="response_format" in (line.get("request") or {}),
    )


def run(line: Line, split: Split = lambda ids: [ids]) -> tuple[list[Event | Marker], str | None]:
    """Everything the parser made of the line, and the flaw."""
    parser = parser_of(line)
    parts = [part for ids in split(ids_of(line)) for part in parser.read(ids)]
    return parts + parser.read_end(cut=line.get("finish") == "length"), parser.flaw


def said(parts: Sequence[Event | Marker]) -> str:
    return "".join(part.raw if isinstance(part, (ToolCall, FailedCall)) else part.text for part in parts)


def outcome(parts: Sequence[Event | Marker], flaw: str | None) -> Line:
    """In the words of the corpus."""
    calls = [part for part in parts if isinstance(part, ToolCall)]
    failed = [part for part in parts if isinstance(part, FailedCall)]
    flawed = [call for call in calls if call.flaw]
    repairs = {name for call in calls for name in call.repairs}
    return {
        "content": "".join(part.text for part in parts if isinstance(part, Content)),
        "reasoning": "".join(part.text for part in parts if isinstance(part, Thought)),
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "error": failed[0].kind if failed else flawed[0].flaw if flawed else flaw,
        # one slice for each opening marker: together they are what the line calls one
        "error_raw": "".join(one.raw for one in failed) if failed else flawed[0].raw if flawed else None,
        "repairs": sorted(repairs | {part.repair for part in parts if isinstance(part, Marker) and part.repair}),
    }


def differences(line: Line, found: Line) -> list[str]:
    """The fields in which an outcome is not what the line expects."""
    expected = line["expect"]
    wanted = {**expected, "repairs": sorted(expected.get("repairs", []))}
    fields = ["content", "reasoning", "tool_calls", "error", "repairs", *["error_raw"][: "error_raw" in expected]]
    compare = line.get("compare")
    return [name for name in fields if _form(found.get(name), name, compare) != _form(wanted.get(name), name, compare)]


def _form(value: Any, name: str, compare: str | None) -> Any:
    if name in ("content", "reasoning"):
        text = value or ""
        if compare == "json" and name == "content":
            return json.loads(text)
        return text.strip() if compare == "trim" else text
    if name == "tool_calls" and compare != "json_number":
        return json.dumps(value or [], sort_keys=True)  # 1, 1.0 and true are three things
    return value or None
