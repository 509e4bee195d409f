"""Ids to events: whatever the split, the same; and nothing the model said is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.text.events import Content, Event, FailedCall, Marker, Thought, ToolCall
from pocketgem.text.parse import OutputParser, opens_thought
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures

MARKERS = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<turn|>", "<eos>", "<|tool_response>"]
MARKERS += ["<|turn>", "<unused7>", "<pad>", "<tool_response|>"]
WORDS = [
    "thought",
    "thought\n",
    "tho",
    "ught",
    "\n",
    "\n\n",
    "user",
    "call:w{a:1}",
    "日本",
    " ",
    "call:w{",
    "a:",
    "}",
    "{",
    "[",
    "(",
    ")",
    ",",
    "'",
    '"',
    "```",
]
TOOLS = [{"name": "w", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}]


def ids_of(text: str, tokenizer: Tokenizer | None = None) -> list[int]:
    return (tokenizer or fixtures.gemma4_tokenizer()).encode(text, add_bos=False, parse_special=True)


def read(pieces: list[list[int]], *, tokenizer: Tokenizer | None = None, **options: Any) -> list[Event | Marker]:
    parser = OutputParser(tokenizer or fixtures.gemma4_tokenizer(), **options)
    parts = [part for piece in pieces for part in parser.read(piece)]
    return merged(parts + parser.read_end())


def parsed(pieces: list[list[int]], *, tokenizer: Tokenizer | None = None, **options: Any) -> list[Event]:
    parser = OutputParser(tokenizer or fixtures.gemma4_tokenizer(), **options)
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.finish())


def merged(parts: list[Any]) -> list[Any]:
    result: list[Any] = []
    for part in parts:
        if result and type(result[-1]) is type(part) and isinstance(part, (Content, Thought)):
            assert part.text
            result[-1] = type(part)(result[-1].text + part.text)
        else:
            result.append(part)
    return result


def said(parts: list[Event | Marker]) -> str:
    return "".join(part.raw if isinstance(part, (ToolCall, FailedCall)) else part.text for part in parts)


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("hello<turn|>", [Content("hello")]),
        ("<|channel>thought\nhelp\n<channel|>hello<turn|>", [Thought("help"), Content("hello")]),
        ("<|channel>thought\nhelp<channel|>hello", [Thought("help"), Content("hello")]),
        ("<|channel>thought\na\n\nb\n\n<channel|>c", [Thought("a\n\nb\n"), Content("c")]),
        ("<|channel>thought\n<channel|>hello", [Content("hello")]),
        ("<|channel>thought<channel|>hello", [Content("hello")]),
        ("<|channel><channel|>hello", [Content("hello")]),
        ("<|channel>\nhelp\n<channel|>hello", [Thought("help"), Content("hello")]),
        ("<|channel>\n\n<channel|>hello", [Content("hello")]),
        ("<|channel>thousand words<channel|>hello", [Thought("thousand words"), Content("hello")]),
        ("<|channel>tho<channel|>hello", [Thought("tho"), Content("hello")]),
        ("<|channel>thought\nno end\n", [Thought("no end\n")]),
        ("<|channel>tho", [Thought("tho")]),
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", [Thought("athought\nb"), Content("c")]),
        ("a<channel|>b", [Content("ab")]),  # a closing marker that closes nothing
        ("a<|channel>thought\nb<channel|>c", [Content("a"), Thought("b"), Content("c")]),
        (
            '<|channel>thought\na<|tool_call>call:w{c:<|"|>x<|"|>}<tool_call|><|tool_response>',
            [
                Thought("a"),
                ToolCall(
                    "w",
                    {"c": "x"},
                    '<|tool_call>call:w{c:<|"|>x<|"|>}<tool_call|>',
                    repairs=("call_in_thought",),
                ),
            ],
        ),
        ("<bos>a<pad><eos>", [Content("a")]),
        ("a<|think|>", [Content("a<|think|>")]),  # a control token without a meaning here is shown, not swallowed
        ("", []),
    ],
)
def test_events(text: str, events: list[Event]) -> None:
    assert parsed([ids_of(text)]) == events
    assert parsed([[id] for id in ids_of(text)]) == events


def test_a_thought_that_the_prompt_opened() -> None:
    assert parsed([ids_of("help\n<channel|>hello")], thought_open=True) == [Thought("help"), Content("hello")]
    assert parsed([ids_of("<channel|>hello")], thought_open=True) == [Content("hello")]
    assert parsed([ids_of("thought\nhelp")], thought_open=True) == [Thought("thought\nhelp")]


def test_markers_written_letter_by_letter_are_text() -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    text = "<|channel>thought\nhelp<channel|><turn|>"
    assert parsed([tokenizer.encode(text, add_bos=False)]) == [Content(text)]


def test_without_channels_everything_is_content() -> None:
    gemma3 = fixtures.spm_tokenizer()
    text = "<|channel>thought\nhelp<channel|>"
    assert parsed([ids_of(text + "<end_of_turn>", gemma3)], tokenizer=gemma3) == [Content(text)]


def test_bytes_of_a_character_wait_for_each_other() -> None:
    ids = ids_of("😀")
    parser = OutputParser(fixtures.gemma4_tokenizer())
    assert [parser.push([id]) for id in ids] == [[], [], [], [Content("😀")]]
    assert parser.finish() == []
    half = parsed([[*ids[:2], *ids_of("<|channel>thought\n"), *ids[2:]]])
    assert half == [Content("\ufffd"), Thought("\ufffd\ufffd")]


def generated(data: st.DataObject) -> list[int]:
    tokenizer = fixtures.gemma4_tokenizer()
    text = data.draw(st.lists(st.sampled_from([*MARKERS, *WORDS])))
    noise = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=5))
    return ids_of("".join(text)) + noise


def split(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    places = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=12)))
    return [ids[a:b] for a, b in zip([0, *places], [*places, len(ids)], strict=True)]


@given(data=st.data(), thought_open=st.booleans(), json=st.booleans(), tools=st.sampled_from([None, (), TOOLS]))
@settings(deadline=None)
def test_any_split_gives_the_same_events(data: st.DataObject, thought_open: bool, json: bool, tools: Any) -> None:
    ids = generated(data)
    options = {"thought_open": thought_open, "json": json, "tools": tools}
    whole = parsed([ids], **options)
    assert parsed(split(data, ids), **options) == whole
    assert parsed([[id] for id in ids], **options) == whole


@given(data=st.data(), thought_open=st.booleans(), json=st.booleans(), tools=st.sampled_from([None, (), TOOLS]))
@settings(deadline=None, max_examples=400)
def test_nothing_is_lost(data: st.DataObject, thought_open: bool, json: bool, tools: Any) -> None:
    ids = generated(data)
    parts = read(split(data, ids), thought_open=thought_open, json=json, tools=tools)
    assert said(parts) == said(read([ids], thought_open=thought_open, json=json, tools=tools))
    assert said(parts) == fixtures.gemma4_tokenizer().decode(ids)


@pytest.mark.parametrize("marker", ["<tool_call|>", "<pad>"])
@pytest.mark.parametrize(
    "before", ["thought\n", "thought\nx", "tho", "<|channel>tho", "<|channel>thought", "<|channel>x\n"]
)
def test_a_marker_stands_where_it_was_said(marker: str, before: str) -> None:
    text = f"{before}{marker}y\n<channel|>z"
    assert said(read([ids_of(text)])) == text


def test_the_tokens_that_end_a_turn() -> None:
    gemma4, gemma3 = fixtures.gemma4_tokenizer(), fixtures.spm_tokenizer()
    assert {gemma4.decode([id]) for id in gemma4.end_ids} == {"<eos>", "<turn|>", "<|tool_response>"}
    assert {gemma3.decode([id]) for id in gemma3.end_ids} == {"<eos>", "<end_of_turn>"}


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<bos><|turn>user\nhi<turn|>\n<|turn>model\n", False),
        ("<|turn>model\n<|channel>thought\n", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", False),
        ("<|turn>model\n<|channel>thought\na<turn|>\n<|turn>model\n", False),
        ("", False),
    ],
)
def test_a_prompt_that_opens_a_thought(prompt: str, opened: bool) -> None:
    assert opens_thought(fixtures.gemma4_tokenizer(), ids_of(prompt)) is opened
