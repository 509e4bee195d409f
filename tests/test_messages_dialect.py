"""Anthropic's messages: read with care, and folded by Anthropic's own client to what the whole answer says."""

from __future__ import annotations

import json
import math
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pocketgem.errors import InputError, RunError
from pocketgem.serve import messages
from pocketgem.serve.dialect import Sent
from pocketgem.serve.fields import FieldError
from pocketgem.serve.job import Update
from pocketgem.text.events import Content, ToolCall
from pocketgem.text.shape import JsonSchema, Regex, ToolChoice

from .dialects import ABORT, BROKEN, DONE, READING, SCRIPTS, STAMP, WEATHER, handler, streamed, wire

USER = {"role": "user", "content": "Hi"}
TOOLS = [{"name": name, "description": "d", "input_schema": {"type": "object"}} for name in ("get_weather", "get_time")]
EXTENSIONS = {"cache_reason", "prefill_seconds", "decode_seconds"}  # of usage, which the client does not fold


def body(**fields: object) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 64, "messages": [USER], **fields}


def client(updates: list[Update], sent: bytes | None = None) -> anthropic.Anthropic:
    def stream(asked: dict[str, Any]) -> bytes:
        return wire(streamed(messages.Stream(messages.read(asked), STAMP), updates)) if sent is None else sent

    def whole(asked: dict[str, Any]) -> dict[str, object]:
        return messages.whole(messages.read(asked), STAMP, updates)

    http = httpx2.Client(transport=httpx2.MockTransport(handler(httpx2, stream, whole)))
    return anthropic.Anthropic(api_key="k", base_url="http://server", http_client=http, max_retries=0)


def shown(message: Any) -> dict[str, Any]:
    """A message without fields that are null, and without what the client adds of its own."""
    return _shown(message.to_dict())


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        own = {"parsed_output", *EXTENSIONS}
        return {key: _shown(item) for key, item in value.items() if item is not None and key not in own}
    return [_shown(item) for item in value] if isinstance(value, list) else value


# ---- the stream folded is the whole (law 9) --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_stream_folded_is_the_whole_answer(name: str) -> None:
    whole = client(SCRIPTS[name]).messages.create(**body(), extra_body={"odd": 1})
    Message.model_validate(whole.to_dict())
    with client(SCRIPTS[name]).messages.stream(**body(), extra_body={"odd": 1}) as stream:
        folded = stream.get_final_message()
    assert shown(folded) == shown(whole)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_event_is_of_an_official_type(name: str) -> None:
    event: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for one in streamed(messages.Stream(messages.read(body(stream=True)), STAMP), SCRIPTS[name]):
        assert isinstance(one, Sent)
        assert isinstance(one.data, dict)
        assert one.event == one.data["type"]
        if one.event != "ping":
            event.validate_python(one.data)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_answer_is_empty_without_a_reason(name: str) -> None:
    content: Any = client(SCRIPTS[name]).messages.create(**body()).content
    said = [one for one in content if one.type == "tool_use" or (one.type == "text" and one.text.strip())]
    assert said or content[-1].empty_reason


def test_blocks_open_and_close_in_order() -> None:
    out = streamed(messages.Stream(messages.read(body(stream=True)), STAMP), SCRIPTS["parallel calls"])
    kinds = [(one.event, one.data.get("index")) for one in out if isinstance(one, Sent) and isinstance(one.data, dict)]
    blocks = [kind for kind in kinds if kind[0] in ("content_block_start", "content_block_stop")]
    assert blocks == [(f"content_block_{what}", index) for index in range(5) for what in ("start", "stop")]
    assert kinds[0][0] == "message_start"
    assert [kind for kind, _ in kinds[-2:]] == ["message_delta", "message_stop"]


def test_the_client_sees_text_thoughts_and_calls_as_they_come() -> None:
    with client(SCRIPTS["parallel calls"]).messages.stream(**body()) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert "".join(event.thinking for event in events if event.type == "thinking") == "Two things."
    assert "".join(event.text for event in events if event.type == "text") == "One moment. "
    calls = [block for block in final.content if block.type == "tool_use"]
    assert [block.input for block in calls] == [WEATHER.arguments, {}, WEATHER.arguments]
    assert len({block.id for block in calls}) == 3
    assert final.stop_reason == "tool_use"


def test_a_failed_call_leaves_its_text_and_a_typed_error() -> None:
    content: Any = client(SCRIPTS["failed"]).messages.create(**body()).content
    assert content[-1].text == BROKEN.raw
    assert content[-1].tool_call_error["type"] == "tool_call_parse_error"
    assert content[-1].tool_call_error["reason"] == BROKEN.reason


def test_progress_is_a_ping() -> None:
    pings = [messages.Stream(messages.read(body(stream=True)), STAMP).push(reading)[0] for reading in READING]
    assert [ping.event for ping in pings if isinstance(ping, Sent)] == ["ping"] * 3
    assert [ping.data["progress"]["prompt_tokens_read"] for ping in pings if isinstance(ping, Sent)] == [0, 60, 120]  # type: ignore[index]


def test_usage_counts_what_was_read_anew_and_says_why() -> None:
    usage: Any = client(SCRIPTS["content"]).messages.create(**body()).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (20, 100, 30)
    assert usage.cache_reason == "the last turn was edited"
    out = streamed(messages.Stream(messages.read(body(stream=True)), STAMP), SCRIPTS["content"])
    assert out[-2].data["usage"]["cache_reason"] == "the last turn was edited"  # type: ignore[union-attr, index]


def test_a_stop_string_is_named() -> None:
    message = client(SCRIPTS["stop string"]).messages.create(**body(stop_sequences=["END"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_a_run_that_fails_in_the_middle_is_an_error_for_the_client() -> None:
    stream = messages.Stream(messages.read(body(stream=True)), STAMP)
    sent = wire([*streamed(stream, [Content("so far")]), *stream.fail(500, "the run failed")])
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(client([], sent).messages.create(**body(), stream=True))
    assert "the run failed" in str(caught.value)
    assert caught.value.type == "api_error"


def test_an_aborted_run_is_an_error_in_both_forms() -> None:
    out = streamed(messages.Stream(messages.read(body(stream=True)), STAMP), [Content("x"), ABORT])
    assert isinstance(out[-1], Sent)
    assert out[-1].event == "error"
    with pytest.raises(RunError):
        messages.whole(messages.read(body()), STAMP, [Content("x"), ABORT])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
def test_error_bodies_are_what_the_client_reads(status: int) -> None:
    content = messages.error(status, "what went wrong", field="messages[0].role")
    transport = httpx2.MockTransport(lambda request: httpx2.Response(status, json=content))
    http = httpx2.Client(transport=transport)
    api = anthropic.Anthropic(api_key="k", base_url="http://s", http_client=http, max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as caught:
        api.messages.create(**body())
    assert caught.value.status_code == status
    assert "what went wrong" in str(caught.value)
    assert caught.value.type == content["error"]["type"]  # type: ignore[index]
    if status != 413:  # its type is in the API's documentation, and not in the client's list
        anthropic.types.ErrorResponse.model_validate(content)


# ---- reading ---------------------------------------------------------------------------------------------------------


def refused(asked: object) -> FieldError:
    with pytest.raises(FieldError) as caught:
        messages.read(asked)
    return caught.value


def test_a_request_of_every_field_becomes_a_job() -> None:
    asked = messages.read(
        body(
            system=[
                {"type": "text", "text": "be ", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "kind"},
            ],
            tools=[*TOOLS, {"type": "web_search_20250305", "name": "web_search"}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            thinking={"type": "enabled", "budget_tokens": 2000},
            stop_sequences=["a"],
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            metadata={"user_id": "u"},
            stream=True,
            odd=1,
        )
    )
    job = asked.job
    assert job.messages[0] == {"role": "system", "content": "be kind"}
    assert job.sampling == {"max_tokens": 64, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop": ("a",)}
    assert job.shape.choice is ToolChoice.REQUIRED
    assert not job.shape.parallel
    assert (job.thinking, job.shape.thinking_budget) == (True, 2000)
    assert [tool["function"]["name"] for tool in job.shape.tools] == ["get_weather", "get_time"]  # type: ignore[index]
    assert asked.ignored == ("tools[2] ('web_search_20250305')", "odd")


def test_blocks_of_the_past_become_messages() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "let me"},
                {"type": "tool_use", "id": "t1", "name": "get_time", "input": {"zone": "CET"}},
                {"type": "tool_use", "id": "t2", "name": "get_time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "12:00"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no such zone", "is_error": True},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    assert messages.read(body(messages=turns)).job.messages == (
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "let me",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET"}}},
                {"id": "t2", "type": "function", "function": {"name": "get_time", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "12:00"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no such zone"},
        {"role": "user", "content": "and?"},
    )


def test_an_answer_sent_back_is_the_message_it_was() -> None:
    """Agents send the blocks they got as they are."""
    answer = client(SCRIPTS["parallel calls"]).messages.create(**body())
    ids = [block.id for block in answer.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": id, "content": "ok"} for id in ids]
    turns = [USER, {"role": "assistant", "content": answer.to_dict()["content"]}, {"role": "user", "content": results}]
    _, said, *results_read = messages.read(body(messages=turns)).job.messages
    assert said["content"] == "One moment. "
    assert said["reasoning_content"] == "Two things."
    assert [message["tool_call_id"] for message in results_read] == ids


@pytest.mark.parametrize(
    ("asked", "on", "budget"),
    [
        ({}, None, None),
        ({"thinking": {"type": "disabled"}}, False, 0),
        ({"thinking": {"type": "adaptive"}}, True, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 1024),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, True, 5),
        ({"thinking": {"type": "between_tools"}}, False, 0),
        ({"output_config": {"effort": "medium"}}, None, 4096),
    ],
)
def test_thinking_off_on_and_by_budget(asked: dict[str, Any], on: bool | None, budget: int | None) -> None:
    job = messages.read(body(**asked)).job
    assert (job.thinking, job.shape.thinking_budget) == (on, budget)


def test_formats() -> None:
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert messages.read(body(output_config=config)).job.shape.format == JsonSchema({"type": "object"})
    assert messages.read(body(regex="a+")).job.shape.format == Regex("a+")


def test_tokens_are_counted_without_a_limit() -> None:
    asked = {"model": "m", "messages": [USER], "system": "s", "tools": TOOLS}
    assert len(messages.read(asked, counting=True).job.shape.tools) == 2
    assert messages.count(7, {"image": 0}) == {"input_tokens": 7}
    assert messages.count(7, {"image": 5})["input_tokens_details"] == {"image_tokens": 5}


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ([], "body", "object"),
        ({"messages": [USER]}, "max_tokens", "missing"),
        (body(max_tokens=0), "max_tokens", "1 to"),
        (body(max_tokens=math.nan), "max_tokens", "integer"),
        (body(messages=[]), "messages", "at least one"),
        (body(messages=[{"role": "tool", "content": ""}]), "messages[0].role", "one of"),
        (body(messages=[USER, {"role": "assistant", "content": "The"}]), "messages[1].role", "not supported"),
        (body(messages=[{"role": "user"}]), "messages[0].content", "missing"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content", "list"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}]),
            "messages[0].content[0].source.type",
            "is missing",
        ),
        (
            body(messages=[{"role": "assistant", "content": [{"type": "tool_result"}]}, USER]),
            "messages[0].content[0].type",
            "taken here",
        ),
        (
            body(messages=[{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": [1]}]}, USER]),
            "messages[0].content[0].input",
            "object",
        ),
        (
            body(messages=[{"role": "user", "content": [{"type": "tool_result"}]}]),
            "messages[0].content[0].tool_use_id",
            "",
        ),
        (body(system=5), "system", "text or a list"),
        (body(tools=[{"input_schema": {}}]), "tools[0].name", "missing"),
        (body(tools=TOOLS, tool_choice={"type": "tool", "name": "rm"}), "tool_choice", "none of the tools"),
        (body(tool_choice={"type": "any"}), "tool_choice", "no tools"),
        (body(thinking={"type": "enabled"}), "thinking.budget_tokens", "missing"),
        (body(thinking={"type": "maybe"}), "thinking.type", "one of"),
        (body(output_config={"effort": "huge"}), "output_config.effort", "one of"),
        (body(container="c"), "container", "containers"),
        (body(stop_sequences=["a"] * 65), "stop_sequences", "64"),
        (body(temperature=10**400), "temperature", "0 to 100"),
    ],
)
def test_what_is_wrong_is_named(asked: object, field: str, says: str) -> None:
    error = refused(asked)
    assert error.field == field
    assert says in str(error)


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KINDS = st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image", "any", "tool", "enabled"])
JSON = st.recursive(
    LEAF | KINDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "name", "input", "content"]) | st.text(max_size=6), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(messages.KNOWN)), JSON, max_size=5), st.booleans())
def test_random_json_raises_nothing_but_input_errors(asked: dict[str, Any], chatting: bool) -> None:
    assert len(problem({**asked, **(body() if chatting else {})})) < 1000


@settings(max_examples=150, deadline=None)
@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": JSON}), max_size=3))
def test_random_messages_raise_nothing_but_input_errors(turns: list[Any]) -> None:
    assert len(problem(body(messages=[*turns, USER]))) < 1000


def problem(asked: object) -> str:
    """What an InputError says, and nothing where the request is taken. Any other error is the test's."""
    try:
        messages.read(asked)
    except InputError as error:
        return str(error)
    return ""


def test_what_is_sent_is_json_whatever_the_model_writes() -> None:
    call = ToolCall("f", {"x": math.inf, "y": [math.nan], "z": "\u2028"}, "")
    for one in streamed(messages.Stream(messages.read(body(stream=True)), STAMP), [call, DONE]):
        assert isinstance(one, Sent)
        json.loads(one.body, parse_constant=pytest.fail)
    json.dumps(messages.whole(messages.read(body()), STAMP, [call, DONE]), allow_nan=False)
