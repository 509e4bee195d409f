"""What holds for all dialects: random answers fold to the whole, pieces may be cut anywhere, and the seams fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from pocketgem.answers import Stats
from pocketgem.engine.request import FinishReason, SamplingParams
from pocketgem.serve import chat, messages, responses
from pocketgem.serve.catalog import Listed, catalog
from pocketgem.serve.dialect import Sent
from pocketgem.serve.job import Done, Reading, Update
from pocketgem.text.events import Content, Event, FailedCall, Thought, ToolCall
from pocketgem.text.messages import normalize

from .dialects import SCRIPTS, STAMP, streamed

TEXT = st.text(max_size=5) | st.sampled_from(["\n", " ", "<|tool_call>", "data: x\n\n", "\u2028", "🏔"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Content, TEXT),
    st.builds(Thought, TEXT),
    st.builds(ToolCall, st.sampled_from(["f", "g"]), st.dictionaries(st.text(max_size=3), VALUES, max_size=2), TEXT),
    st.builds(FailedCall, TEXT, TEXT),
)
READINGS = st.builds(Reading, st.just(1), st.just(9), st.just(0), st.none() | st.floats(0, 1e9))
DONES = st.builds(
    Done,
    st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
    st.builds(Stats, st.integers(5, 99), st.integers(0, 5), st.integers(0, 9)),
    stopped_by=st.none() | st.text(min_size=1, max_size=3),
    reuse=st.none() | TEXT,
    thought_tokens=st.none() | st.integers(0, 9),
)
ANSWERS = st.builds(
    lambda read, said, done: [*read, *said, done], st.lists(READINGS, max_size=2), st.lists(EVENTS), DONES
)

ASKED: dict[ModuleType, dict[str, Any]] = {
    chat: {"messages": [{"role": "user", "content": "Hi"}], "stream_options": {"include_usage": True}},
    messages: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    responses: {"input": "Hi"},
}
DIALECTS = pytest.mark.parametrize("dialect", ASKED, ids=lambda dialect: dialect.__name__.rpartition(".")[2])


def whole(dialect: Any, updates: list[Update]) -> Any:
    return json.loads(json.dumps(dialect.whole(dialect.read(ASKED[dialect]), STAMP, updates)))


def sent(dialect: Any, updates: list[Update]) -> list[Any]:
    """The objects of a stream, as they come over the wire."""
    out = streamed(dialect.Stream(dialect.read(ASKED[dialect]), STAMP), updates)
    return [json.loads(one.body) for one in out if isinstance(one, Sent) and one.body != "[DONE]"]


NOT_FOLDED = {"cache_reason", "prefill_seconds", "decode_seconds", "parsed_output"}


def shown(value: Any) -> Any:
    """Without nulls, and without what official clients add or do not keep."""
    if isinstance(value, dict):
        gone = (
            {"index"} if "function" in value else {"cache_reason", "prefill_seconds", "decode_seconds", "parsed_output"}
        )
        return {key: shown(item) for key, item in value.items() if item is not None and key not in gone}
    return [shown(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(ANSWERS)
def test_random_chunks_fold_to_the_whole_completion(updates: list[Update]) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in sent(chat, updates):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    assert shown(state.current_completion_snapshot.to_dict()) == shown(whole(chat, updates))


@settings(max_examples=40, deadline=None)
@given(ANSWERS)
def test_random_events_fold_to_the_whole_message(updates: list[Update]) -> None:
    snapshot, buffers = None, {}
    for event in sent(messages, updates):
        if event["type"] != "ping":
            snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    assert shown(snapshot.to_dict()) == shown(whole(messages, updates))


@settings(max_examples=40, deadline=None)
@given(ANSWERS)
def test_random_events_end_in_the_whole_response(updates: list[Update]) -> None:
    told = sent(responses, updates)
    assert told[-1]["response"] == whole(responses, updates)
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]


@DIALECTS
@settings(max_examples=40, deadline=None)
@given(updates=ANSWERS)
def test_pieces_may_be_cut_anywhere(dialect: ModuleType, updates: list[Update]) -> None:
    cut: list[Update] = []
    for update in updates:
        if isinstance(update, Content | Thought):
            cut += [type(update)(character) for character in update.text]
        else:
            cut.append(update)
    assert whole(dialect, cut) == whole(dialect, updates)


@DIALECTS
@settings(max_examples=40, deadline=None)
@given(updates=ANSWERS)
def test_nothing_the_model_said_is_lost(dialect: ModuleType, updates: list[Update]) -> None:
    said = "".join(texts_of(whole(dialect, updates)))
    for update in updates:
        if isinstance(update, Content | Thought):
            assert update.text in said
        elif isinstance(update, FailedCall):
            assert update.raw in said
            assert update.reason in said
        elif isinstance(update, ToolCall):
            assert update.name in said


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from texts_of(item)


@DIALECTS
def test_a_stamp_makes_ids_of_its_own(dialect: Any) -> None:
    one = dialect.whole(dialect.read(ASKED[dialect]), STAMP, SCRIPTS["one call"])
    assert STAMP.id in one["id"]
    assert json.dumps(one).count(STAMP.id) >= 2  # the answer's and the call's


ENDS = {
    "content": ("stop", "end_turn", "completed"),
    "one call": ("tool_calls", "tool_use", "completed"),
    "failed": ("stop", "end_turn", "completed"),
    "length": ("length", "max_tokens", "incomplete"),
    "length after a call": ("length", "max_tokens", "incomplete"),
    "stop string": ("stop", "stop_sequence", "completed"),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_an_answer_ended(name: str) -> None:
    found = [whole(dialect, SCRIPTS[name]) for dialect in (chat, messages, responses)]
    assert (found[0]["choices"][0]["finish_reason"], found[1]["stop_reason"], found[2]["status"]) == ENDS[name]


PAST = [
    {"role": "user", "content": "What is the time?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "12"},
]


def test_the_engine_takes_what_every_dialect_reads() -> None:
    tool_use = {"type": "tool_use", "id": "c1", "name": "get_time", "input": {}}
    blocks = [PAST[0], {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, tool_use]}]
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "12"}
    items = [
        PAST[0],
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
    ]
    read = [
        chat.read({"messages": PAST}),
        messages.read({"messages": [*blocks, {"role": "user", "content": [result]}], "max_tokens": 9}),
        responses.read({"input": items}),
    ]
    taken = [normalize(asked.job.messages) for asked in read]
    assert taken[0] == taken[1] == taken[2]
    for asked in read:
        SamplingParams.from_generation_config({}, **asked.job.sampling)


def test_one_catalog_serves_both_libraries() -> None:
    from anthropic.types import ModelInfo
    from openai.types import Model

    found: Any = catalog([Listed("gemma-3-270m", 1_790_000_000, context=32768, chat=False), Listed("e2b", 0)])
    for one in found["data"]:
        assert Model.model_validate(one).id == ModelInfo.model_validate(one).id == one["id"]
    assert (found["object"], found["first_id"], found["last_id"], found["has_more"]) == (
        "list",
        "gemma-3-270m",
        "e2b",
        False,
    )
    assert catalog([])["data"] == []
