"""Ids to events: whatever the split, the same; and nothing the model said is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.text.events import Content, Event, Thought
from pocketgem.text.parse import OutputParser, opens_thought
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures

MARKERS = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<turn|>", "<eos>", "<|tool_response>"]
WORDS = ["thought", "thought\n", "tho", "ught", "\n", "\n\n", "user", "call:w{a:1}", "日本", " "]


def ids_of(text: str, tokenizer: Tokenizer | None = None) -> list[int]:
    return (tokenizer or fixtures.gemma4_tokenizer()).encode(text, add_bos=False, parse_special=True)


def parsed(pieces: list[list[int]], *, thought_open: bool = False, tokenizer: Tokenizer | None = None) -> list[Event]:
    parser = OutputParser(tokenizer or fixtures.gemma4_tokenizer(), thought_open=thought_open)
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.finish())


def merged(events: list[Event]) -> list[Event]:
    result: list[Event] = []
    for event in events:
        assert event.text
        if result and type(result[-1]) is type(event):
            result[-1] = type(event)(result[-1].text + event.text)
        else:
            result.append(event)
    return result


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
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", [Thought("ab"), Content("c")]),
        ("a<channel|>b", [Content("ab")]),  # a closing marker that closes nothing
        ("a<|channel>thought\nb<channel|>c", [Content("a"), Thought("b"), Content("c")]),
        (
            '<|channel>thought\na<|tool_call>call:w{c:<|"|>x<|"|>}<tool_call|><|tool_response>',
            [Thought("a"), Content('<|tool_call>call:w{c:<|"|>x<|"|>}<tool_call|>')],
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


@given(data=st.data(), thought_open=st.booleans())
@settings(deadline=None)
def test_any_split_gives_the_same_events(data: st.DataObject, thought_open: bool) -> None:
    ids = generated(data)
    whole = parsed([ids], thought_open=thought_open)
    assert parsed(split(data, ids), thought_open=thought_open) == whole
    assert parsed([[id] for id in ids], thought_open=thought_open) == whole


def by_segments(ids: list[int], thought_open: bool) -> list[Event]:
    """What the module's docstring promises, said about whole stretches of text between markers: the oracle."""
    tokenizer = fixtures.gemma4_tokenizer()
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    silent = {names[id] for id in tokenizer.end_ids} | {"<bos>", "<pad>"}
    kind, label, run, events = Thought if thought_open else Content, False, [], []
    for id in [*ids, None]:
        marker = None if id is None else names.get(id)
        if id is not None and marker not in silent | {"<|channel>", "<channel|>", "<|tool_call>"}:
            run.append(id)
            continue
        text, run = tokenizer.decode(run), []
        if label:
            label = "thought\n".startswith(text) or text == "\n"
            text = "" if text == "thought" else re.sub(r"\A(thought)?\n", "", text)
        if kind is Thought and marker == "<channel|>":
            text = text.removesuffix("\n")
        events.append(kind(text))
        if marker == "<|channel>":
            kind, label = Thought, True
        elif marker in ("<channel|>", "<|tool_call>"):
            kind, label = Content, False
        run = [id] if marker == "<|tool_call>" and id is not None else []
    return merged([event for event in events if event.text])


@given(data=st.data(), thought_open=st.booleans())
@settings(deadline=None)
def test_nothing_is_lost_but_the_markers(data: st.DataObject, thought_open: bool) -> None:
    ids = generated(data)
    assert parsed([ids], thought_open=thought_open) == by_segments(ids, thought_open)


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
