"""OpenAI's chat completions: read with care, and folded by OpenAI's own client to what the whole answer says."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from pocketgem.errors import InputError, RunError
from pocketgem.serve import chat
from pocketgem.serve.dialect import Comment, Sent
from pocketgem.serve.fields import FieldError
from pocketgem.serve.job import Update
from pocketgem.text.events import Content
from pocketgem.text.shape import JsonObject, JsonSchema, Regex, ToolChoice

from .dialects import ABORT, DONE, READING, SCRIPTS, STAMP, WEATHER, handler, streamed, wire

USER = {"role": "user", "content": "Hi"}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for name in ("get_weather", "get_time")
]


def body(**fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


def client(updates: list[Update]) -> openai.OpenAI:
    def stream(asked: dict[str, Any]) -> bytes:
        return wire(streamed(chat.Stream(chat.read(asked), STAMP), updates))

    def whole(asked: dict[str, Any]) -> dict[str, object]:
        return chat.whole(chat.read(asked), STAMP, updates)

    transport = httpx2.MockTransport(handler(httpx2, stream, whole))
    return openai.OpenAI(
        api_key="k", base_url="http://server/v1", http_client=httpx2.Client(transport=transport), max_retries=0
    )


# ---- the stream folded is the whole (law 9) --------------------------------------------------------------------------


def folded(updates: list[Update], **asked: Any) -> dict[str, Any]:
    """The chunks joined by the client's own accumulator."""
    stream = client(updates).chat.completions.create(
        **body(**asked), stream=True, stream_options={"include_usage": True}
    )
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in stream:
        ChatCompletionChunk.model_validate(chunk.to_dict())  # the client itself checks nothing
        state.handle_chunk(chunk)
    return without_empties(state.current_completion_snapshot.to_dict())


def without_empties(value: Any) -> Any:
    """Fields without those that are null, and without what the client keeps or adds of its own while it joins."""
    if isinstance(value, dict):
        own = {"index"} if "function" in value else set()
        kept = {key: without_empties(item) for key, item in value.items() if item is not None and key not in own}
        return {key: item for key, item in kept.items() if not key.startswith("parsed")}
    return [without_empties(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("logprobs", [False, True])
def test_the_stream_folded_is_the_whole_answer(name: str, logprobs: bool) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if logprobs else {}
    whole = client(SCRIPTS[name]).chat.completions.create(**body(**asked))
    ChatCompletion.model_validate(whole.to_dict())
    assert folded(SCRIPTS[name], **asked) == without_empties(whole.to_dict())
    assert (whole.choices[0].logprobs is not None) == logprobs


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_answer_is_empty_without_a_reason(name: str) -> None:
    choice = client(SCRIPTS[name]).chat.completions.create(**body()).choices[0]
    message: Any = choice.message
    assert (message.content or "").strip() or message.tool_calls or message.empty_reason


def test_the_clients_stream_helper_tells_of_every_call() -> None:
    with client(SCRIPTS["parallel calls"]).chat.completions.stream(model="m", messages=[USER], tools=TOOLS) as stream:  # type: ignore[arg-type, list-item]
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.name for event in done] == ["get_weather", "get_time", "get_weather"]
    assert json.loads(done[0].arguments) == WEATHER.arguments
    calls = final.choices[0].message.tool_calls or []
    assert final.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == 3


def test_a_failed_call_leaves_its_text_and_a_typed_error() -> None:
    message: Any = client(SCRIPTS["failed"]).chat.completions.create(**body()).choices[0].message
    assert message.content == 'I will look. <|tool_call>call:get_weather{city:"Zür'
    [error] = message.tool_call_errors
    assert error["type"] == "tool_call_parse_error"
    assert error["reason"] == "the call was cut off"
    assert error["raw"] in message.content


def test_the_role_comes_first_and_each_call_begins_with_its_name() -> None:
    out = streamed(chat.Stream(chat.read(body(stream=True)), STAMP), [Content("a"), WEATHER, DONE])
    deltas = [
        one.data["choices"][0]["delta"] for one in out[:-1] if isinstance(one, Sent) and isinstance(one.data, dict)
    ]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    first, rest = (delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    assert first["index"] == 0
    assert first["id"]
    assert first["type"] == "function"
    assert first["function"]["name"]
    assert json.loads(rest["function"]["arguments"]) == WEATHER.arguments
    assert rest.keys() == {"index", "function"}
    assert out[-1] == Sent(None, "[DONE]")


def test_progress_is_a_comment_or_a_chunk_that_folds_to_nothing() -> None:
    comments = streamed(chat.Stream(chat.read(body(stream=True)), STAMP), READING)[1:]
    assert all(isinstance(one, Comment) for one in comments)
    asked = body(stream=True, stream_options={"include_usage": True, "include_progress": True})
    chunks = streamed(chat.Stream(chat.read(asked), STAMP), READING)[1:]
    assert [one.data["progress"]["prompt_tokens_read"] for one in chunks if isinstance(one, Sent)] == [0, 60, 120]  # type: ignore[index]
    stream = client(SCRIPTS["progress"]).chat.completions.create(**asked)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in stream:
        state.handle_chunk(chunk)
    assert without_empties(state.current_completion_snapshot.to_dict()) == folded(SCRIPTS["progress"])


def test_usage_says_what_was_reused_and_why_no_more() -> None:
    usage: Any = client(SCRIPTS["content"]).chat.completions.create(**body()).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (120, 30, 150)
    assert usage.prompt_tokens_details.cached_tokens == 100
    assert usage.cache_reason == "the last turn was edited"


def test_usage_comes_only_when_asked_for() -> None:
    out = streamed(chat.Stream(chat.read(body(stream=True)), STAMP), SCRIPTS["content"])
    assert not any("usage" in one.data for one in out if isinstance(one, Sent))


def test_a_run_that_fails_in_the_middle_is_an_error_for_the_client() -> None:
    stream = chat.Stream(chat.read(body(stream=True)), STAMP)
    sent = wire([*streamed(stream, [Content("so far")]), *stream.fail(500, "the run failed")])
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=sent))
    api = openai.OpenAI(api_key="k", base_url="http://s/v1", http_client=httpx2.Client(transport=transport))
    seen: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as caught:
        seen.extend(api.chat.completions.create(**body(), stream=True))
    assert seen[-1].choices[0].delta.content == "so far"
    assert caught.value.message == "the run failed"
    assert caught.value.type == "server_error"


def test_an_aborted_run_is_an_error_in_both_forms() -> None:
    out = streamed(chat.Stream(chat.read(body(stream=True)), STAMP), [Content("x"), ABORT])
    assert "error" in json.loads(out[-2].body)  # type: ignore[union-attr]
    for updates in ([Content("x"), ABORT], [Content("x")]):
        with pytest.raises(RunError):
            chat.whole(chat.read(body()), STAMP, updates)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503])
def test_error_bodies_are_what_the_client_reads(status: int) -> None:
    content = chat.error(status, "what went wrong", field="messages[0].role")
    transport = httpx2.MockTransport(lambda request: httpx2.Response(status, json=content))
    http = httpx2.Client(transport=transport)
    api = openai.OpenAI(api_key="k", base_url="http://s/v1", http_client=http, max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(**body())
    assert caught.value.status_code == status
    assert "what went wrong" in str(caught.value)
    assert caught.value.param == "messages[0].role"
    assert caught.value.type


# ---- reading ---------------------------------------------------------------------------------------------------------


def refused(asked: object) -> FieldError:
    with pytest.raises(FieldError) as caught:
        chat.read(asked)
    return caught.value


def test_a_request_of_every_field_becomes_a_job() -> None:
    asked = chat.read(
        body(
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "get_time"}},
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            stop=["a", "b"],
            logprobs=True,
            top_logprobs=3,
            seed=7,
            max_completion_tokens=50,
            max_tokens=60,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=-0.2,
            logit_bias={"12": -100, "13": 1.5},
            reasoning_effort="low",
            stream=True,
            user="u",
            metadata={"a": "b"},
            temprature=1,
        )
    )
    job = asked.job
    assert job.sampling == {
        "stop": ("a", "b"),
        "logprobs": 3,
        "seed": 7,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "logit_bias": {12: -math.inf, 13: 1.5},
    }
    assert job.shape.tool == "get_time"
    assert not job.shape.parallel  # a named tool is called once
    assert job.shape.choice is ToolChoice.REQUIRED
    assert job.shape.format == JsonSchema({"type": "object"})
    assert job.shape.thinking_budget == 1024
    assert job.thinking is True
    assert job.stream
    assert job.progress
    assert asked.ignored == ("temprature",)  # a slip of the pen is not refused, and not silent either


def test_what_was_ignored_stands_in_the_answer() -> None:
    assert chat.whole(chat.read(body(temprature=1, user="u")), STAMP, [DONE])["ignored"] == ["temprature"]


def test_messages_of_every_role_are_taken() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    echoed: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "refusal": None,
        "annotations": [],
    }
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "CET"}'}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": parts},
        {"role": "user", "content": parts, "name": "Ada"},
        {**echoed, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": parts},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "refusal": "no"},
    ]
    job = chat.read({"messages": messages}).job
    assert [message["content"] for message in job.messages if message["role"] != "assistant"] == ["s", "ab", "ab", "ab"]
    assert job.messages[3]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET"}}}
    ]
    assert job.messages[3]["reasoning_content"] == "hm"
    assert job.messages[3]["content"] == ""
    assert [message["content"] for message in job.messages[5:]] == ["no", "no"]


@pytest.mark.parametrize(
    ("asked", "on", "budget"),
    [
        ({}, None, None),
        ({"reasoning_effort": "none"}, False, 0),
        ({"reasoning_effort": "minimal"}, True, 256),
        ({"reasoning_effort": "high"}, True, None),
        ({"thinking_budget": 50}, True, 50),
        ({"thinking_budget": 0}, False, 0),
        ({"reasoning_effort": "high", "thinking_budget": 9}, True, 9),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False, 0),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}, True, 1024),
    ],
)
def test_thinking_off_on_and_by_budget(asked: dict[str, Any], on: bool | None, budget: int | None) -> None:
    job = chat.read(body(**asked)).job
    assert (job.thinking, job.shape.thinking_budget) == (on, budget)


def test_formats() -> None:
    def format(**asked: object) -> object:
        return chat.read(body(**asked)).job.shape.format

    assert format() is None
    assert format(response_format={"type": "text"}) is None
    assert format(response_format={"type": "json_object"}) == JsonObject()
    assert format(response_format={"type": "json_object", "schema": {"a": 1}}) == JsonSchema({"a": 1})
    assert format(response_format={"type": "json_schema", "json_schema": {"name": "n"}}) == JsonObject()
    assert format(regex="[0-9]+") == Regex("[0-9]+")


def test_allowed_tools_are_the_only_ones() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    job = chat.read(body(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})).job
    assert [tool["function"]["name"] for tool in job.shape.tools] == ["get_time"]  # type: ignore[index]
    assert job.shape.choice is ToolChoice.REQUIRED
    assert job.shape.tool is None


def test_keep_all_is_spelt_in_several_ways() -> None:
    assert [chat.read(body(top_k=k)).job.sampling["top_k"] for k in (0, -1)] == [None, None]


def test_half_an_emoji_is_no_reason_to_refuse_a_text() -> None:
    assert chat.read(body(messages=[{"role": "user", "content": "a\ud83d"}])).job.messages[0]["content"] == "a\ufffd"


IN_RANGE = {("seed", -1), ("seed", 1 << 31), ("presence_penalty", -1), ("top_k", -1)}
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, 1 << 31, 1 << 63, 10**400, 1e308, "1", True, [1], {}]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, 10**5000], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "name",
    ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "max_tokens", "max_completion_tokens",
     "top_k", "seed", "top_logprobs", "n", "thinking_budget", "min_tokens"],
)  # fmt: skip
def test_a_hostile_number_is_refused_by_name_or_in_range(name: str, value: object) -> None:
    if type(value) is int and (name, value) in IN_RANGE:
        chat.read(body(**{name: value}))
        return
    error = refused(body(**{name: value}))
    assert error.field == name
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ([], "body", "object"),
        (None, "body", "null"),
        ({}, "messages", "missing"),
        (body(messages=[]), "messages", "at least one"),
        (body(messages="hi"), "messages", "list"),
        (body(messages=["hi"]), "messages[0]", "object"),
        (body(messages=[USER] * 8193), "messages", "8192"),
        (body(messages=[{"role": "robot", "content": ""}]), "messages[0].role", "one of"),
        (body(messages=[{"role": "function", "content": "", "name": "x"}]), "messages[0].role", "tool"),
        (body(messages=[USER, {"role": "user"}]), "messages[1].content", "missing"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content", "text or a list"),
        (body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text", "missing"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]),
            "messages[0].content[0].image_url.url",
            "must be a data url",
        ),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id", "missing"),
        (
            body(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
            "messages[0].tool_calls[0].function.arguments",
            "not JSON",
        ),
        (
            body(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]),
            "messages[0].tool_calls[0].function.arguments",
            "object",
        ),
        (body(min_tokens=5, max_completion_tokens=4), "min_tokens", "at most"),
        (body(n=2), "n", "one choice"),
        (body(n=0), "n", "1 to"),
        (body(stop=["a"] * 65), "stop", "at most 64"),
        (body(stop=["a" * 1025]), "stop", "1024"),
        (body(stop=["a", 5]), "stop", "string"),
        (body(top_logprobs=3), "top_logprobs", "logprobs"),
        (body(logprobs=True, top_logprobs=21), "top_logprobs", "0 to 20"),
        (body(logit_bias={"x": 1}), "logit_bias", "token ids"),
        (body(logit_bias={"1": 101}), "logit_bias", "-100 to 100"),
        (body(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias", "1024"),
        (body(logit_bias={"99999999999999999999": 1}), "logit_bias", "token ids"),
        (body(tools=TOOLS * 129), "tools", "256"),
        (body(tools=[*TOOLS, TOOLS[0]]), "tools[2]", "second tool"),
        (body(tools=[{"type": "custom", "custom": {}}]), "tools[0].type", "function"),
        (body(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name", "letters"),
        (body(tool_choice="required"), "tool_choice", "no tools"),
        (body(tools=TOOLS, tool_choice="any"), "tool_choice", "one of"),
        (
            body(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "rm"}}),
            "tool_choice",
            "none of the tools",
        ),
        (body(response_format={"type": "xml"}), "response_format.type", "one of"),
        (body(response_format={"type": "json_schema"}), "response_format.json_schema", "missing"),
        (body(response_format={"type": "json_object"}, regex="a"), "regex", "together"),
        (body(regex="a" * 16385), "regex", "16384"),
        (body(reasoning_effort="extreme"), "reasoning_effort", "one of"),
        (body(chat_template_kwargs={"tokenize": True}), "chat_template_kwargs.tokenize", "enable_thinking"),
        (body(chat_template="{{ 1 }}"), "chat_template", "not taken"),
        (body(modalities=["text", "audio"]), "modalities[1]", "only text"),
        (body(functions=[]), "functions", "tools"),
        (body(grammar="root ::= x"), "grammar", "response_format"),
        (body(stream="yes"), "stream", "true or false"),
        (body(model="m" * 257), "model", "256"),
    ],
)
def test_what_is_wrong_is_named(asked: object, field: str, says: str) -> None:
    error = refused(asked)
    assert error.field == field
    assert says in str(error)


@pytest.mark.parametrize("levels", [64, 1000, 50_000])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_deep_schemas_are_refused(levels: int, kind: str) -> None:
    schema: Any = {}
    for _ in range(levels):
        schema = [schema] if kind == "list" else {"properties": schema}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": schema}}}
    assert "levels" in str(refused(body(tools=[tool])))


def test_deep_arguments_in_text_are_refused() -> None:
    call = {"function": {"name": "f", "arguments": "[" * 100_000}}
    assert "not JSON" in str(refused(body(messages=[{"role": "assistant", "tool_calls": [call]}])))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["text", "function"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted(chat.KNOWN))


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"])},
    optional=dict.fromkeys(("content", "tool_calls", "tool_call_id", "name", "refusal", "reasoning"), JSON),
)


def problem(asked: object) -> str:
    """What an InputError says, and nothing where the request is taken. Any other error is the test's."""
    try:
        chat.read(asked)
    except InputError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=5), st.booleans())
def test_random_json_raises_nothing_but_input_errors(asked: dict[str, Any], chatting: bool) -> None:
    assert len(problem({**asked, **({"messages": [USER]} if chatting else {})})) < 1000


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGE, max_size=3))
def test_random_messages_raise_nothing_but_input_errors(messages: list[Any]) -> None:
    assert len(problem({"messages": messages})) < 1000
