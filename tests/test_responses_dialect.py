"""OpenAI's responses: read with care, and what the events come to is what the whole answer says."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from pocketgem.errors import InputError, RunError
from pocketgem.serve import responses
from pocketgem.serve.dialect import Comment, Out, Sent
from pocketgem.serve.fields import FieldError
from pocketgem.serve.job import Update
from pocketgem.serve.store import Conversations
from pocketgem.text.events import Content
from pocketgem.text.shape import JsonObject, JsonSchema, Regex, ToolChoice

from .dialects import ABORT, BROKEN, DONE, READING, SCRIPTS, STAMP, WEATHER, handler, streamed, wire

TOOLS = [
    {"type": "function", "name": name, "description": "d", "parameters": {"type": "object"}, "strict": True}
    for name in ("get_weather", "get_time")
]
Json = dict[str, Any]


def body(**fields: object) -> Json:
    return {"model": "m", "input": "Hi", **fields}


def client(updates: list[Update]) -> openai.OpenAI:
    def stream(asked: Json) -> bytes:
        return wire(streamed(responses.Stream(responses.read(asked), STAMP), updates))

    def whole(asked: Json) -> Json:
        return responses.whole(responses.read(asked), STAMP, updates)

    http = httpx2.Client(transport=httpx2.MockTransport(handler(httpx2, stream, whole)))
    return openai.OpenAI(api_key="k", base_url="http://server/v1", http_client=http, max_retries=0)


def events(updates: list[Update], **asked: object) -> list[Json]:
    out = streamed(responses.Stream(responses.read(body(stream=True, **asked)), STAMP), updates)
    return [dict(one.data) for one in out if isinstance(one, Sent) and not isinstance(one.data, str)]


# ---- the stream folded is the whole (law 9) --------------------------------------------------------------------------

ASKED: list[Json] = [{}, {"reasoning": {"summary": "auto"}}, {"top_logprobs": 2}]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("asked", ASKED, ids=["plain", "summary", "logprobs"])
def test_the_last_event_holds_the_whole_answer(name: str, asked: Json) -> None:
    whole = responses.whole(responses.read(body(**asked)), STAMP, SCRIPTS[name])
    Response.model_validate(whole)
    [*_, last] = events(SCRIPTS[name], **asked)
    assert last["response"] == whole
    assert last["type"] == f"response.{whole['status']}"


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("asked", ASKED, ids=["plain", "summary", "logprobs"])
def test_the_deltas_come_to_the_whole_answer(name: str, asked: Json) -> None:
    whole = responses.whole(responses.read(body(**asked)), STAMP, SCRIPTS[name])
    assert joined(events(SCRIPTS[name], **asked)) == without_ends(whole["output"])


def joined(told: list[Json]) -> list[Json]:
    """Items as ``added`` events begin them and deltas fill them."""
    items: list[Json] = []
    for event in told:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append(json.loads(json.dumps(event["item"])))
        elif kind.endswith("part.added"):
            parts(items, event).append(dict(event["part"]))
        elif kind == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif kind.endswith(".delta"):
            parts(items, event)[event.get("content_index", event.get("summary_index"))]["text"] += event["delta"]
    return without_ends(items)


def parts(items: list[Json], event: Json) -> list[Json]:
    item = items[event["output_index"]]
    assert item["id"] == event["item_id"]
    found: list[Json] = item["summary" if "summary_index" in event else "content"]
    return found


def without_ends(items: Any) -> list[Json]:
    """Without what only ``done`` events tell: the state, and log-probabilities."""
    copies: list[Json] = json.loads(json.dumps(items))
    for item in copies:
        item.pop("status")
        for part in item.get("content", []):
            part.pop("logprobs", None)
    return copies


@pytest.mark.parametrize("name", SCRIPTS)
def test_done_events_repeat_what_the_deltas_told(name: str) -> None:
    told = events(SCRIPTS[name])
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]
    texts = [event["text"] for event in told if event["type"] == "response.output_text.done"]
    said = [part["text"] for item in done if item["type"] == "message" for part in item["content"]]
    assert texts == said


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_event_is_of_an_official_type_and_numbered(name: str) -> None:
    official: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    told = events(SCRIPTS[name], stream_options={"include_progress": True})
    for event in told:
        official.validate_python(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]


@pytest.mark.parametrize(
    "name", [name for name in SCRIPTS if "length" not in name and name not in ("failed alone", "thought without end")]
)
def test_the_clients_stream_helper_comes_to_the_same(name: str) -> None:
    whole = client(SCRIPTS[name]).responses.create(**body(tools=TOOLS))
    with client(SCRIPTS[name]).responses.stream(**body(tools=TOOLS)) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == whole.output_text == deltas
    assert [item.to_dict() | {"parsed_arguments": None} for item in whole.output if item.type == "function_call"] == [
        {**item.to_dict(), "parsed_arguments": None} for item in final.output if item.type == "function_call"
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_answer_is_empty_without_a_reason(name: str) -> None:
    whole: Any = client(SCRIPTS[name]).responses.create(**body())
    calls = [item for item in whole.output if item.type == "function_call"]
    assert whole.output_text.strip() or calls or whole.empty_reason


def test_thoughts_calls_and_text_are_items_in_the_models_order() -> None:
    whole = client(SCRIPTS["parallel calls"]).responses.create(**body())
    assert [item.type for item in whole.output] == ["reasoning", "message", *["function_call"] * 3]
    call: Any = whole.output[2]
    assert json.loads(call.arguments) == WEATHER.arguments
    assert len({item.id for item in whole.output}) == 5


def test_a_summary_is_given_when_asked_for() -> None:
    [thought, _] = client(SCRIPTS["thought"]).responses.create(**body(reasoning={"summary": "auto"})).output
    assert thought.to_dict()["summary"] == [{"type": "summary_text", "text": "Let me see."}]
    kinds = [event["type"] for event in events(SCRIPTS["thought"], reasoning={"summary": "auto"})]
    assert "response.reasoning_summary_text.delta" in kinds
    assert "response.reasoning_text.delta" not in kinds


def test_a_failed_call_leaves_its_text_and_a_typed_error() -> None:
    whole: Any = client(SCRIPTS["failed"]).responses.create(**body())
    assert whole.output_text == "I will look. " + BROKEN.raw
    assert whole.output[0].content[1].tool_call_error["reason"] == BROKEN.reason


def test_the_limit_makes_it_incomplete() -> None:
    whole = client(SCRIPTS["length"]).responses.create(**body())
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"


def test_progress_is_a_comment_or_an_event_that_folds_to_nothing() -> None:
    out: list[Out] = streamed(responses.Stream(responses.read(body(stream=True)), STAMP), READING)[2:]
    assert all(isinstance(one, Comment) for one in out)
    told = events(SCRIPTS["progress"], stream_options={"include_progress": True})
    assert [event["progress"]["prompt_tokens_read"] for event in told if "progress" in event] == [0, 60, 120]
    options: Any = {"include_progress": True}
    with client(SCRIPTS["progress"]).responses.stream(**body(), stream_options=options) as stream:
        assert stream.get_final_response().output_text == "Hello"


def test_usage_says_what_was_reused_and_why_no_more() -> None:
    usage: Any = client(SCRIPTS["content"]).responses.create(**body()).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (120, 30, 150)
    assert usage.input_tokens_details.cached_tokens == 100
    assert usage.cache_reason == "the last turn was edited"


def test_a_run_that_fails_in_the_middle_is_told() -> None:
    stream = responses.Stream(responses.read(body(stream=True)), STAMP)
    streamed(stream, [Content("so far")])
    [last] = stream.fail(500, "the run failed")
    assert isinstance(last, Sent)
    TypeAdapter(ResponseStreamEvent).validate_json(last.body)
    response = json.loads(last.body)["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "the run failed"}


def test_an_aborted_run_is_an_error_in_both_forms() -> None:
    assert events([Content("x"), ABORT])[-1]["type"] == "response.failed"
    with pytest.raises(RunError):
        responses.whole(responses.read(body()), STAMP, [Content("x"), ABORT])


# ---- going on from an earlier response -------------------------------------------------------------------------------


def answered(kept_in: Conversations, owner: str, id: str, updates: list[Update], **asked: object) -> Json:
    """One turn, as the server does it."""
    read = responses.read(body(**asked), lambda past: kept_in.recall(owner, past))
    whole = responses.whole(read, STAMP, updates)
    if (kept := responses.remembered(read, whole)) is not None:
        kept_in.keep(owner, id, kept, whole)
    return whole


def test_a_conversation_goes_on_by_its_id() -> None:
    store = Conversations()
    whole = answered(store, "a", "r1", SCRIPTS["parallel calls"], instructions="be brief", tools=TOOLS)
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}
        for item in whole["output"]
        if item["type"] == "function_call"
    ]
    recall = lambda past: store.recall("a", past)  # noqa: E731
    job = responses.read(body(previous_response_id="r1", input=outputs, instructions="be long"), recall).job
    assert [message["role"] for message in job.messages] == ["system", "user", "assistant", "tool", "tool", "tool"]
    assert job.messages[0]["content"] == "be long"  # the instructions of the past are not carried over
    said: Any = job.messages[2]
    assert (said["content"], said["reasoning_content"]) == ("One moment. ", "Two things.")
    assert [call["function"]["arguments"] for call in said["tool_calls"]] == [WEATHER.arguments, {}, WEATHER.arguments]


def test_items_sent_back_are_the_conversation_that_is_remembered() -> None:
    store = Conversations()
    whole = answered(store, "a", "r1", SCRIPTS["parallel calls"])
    again = [{"role": "user", "content": "Hi"}, *whole["output"], {"role": "user", "content": "and?"}]
    past = responses.read(body(previous_response_id="r1", input="and?"), lambda past: store.recall("a", past))
    assert responses.read(body(input=again)).job.messages == past.job.messages


def test_nobody_goes_on_from_what_is_not_theirs_or_was_not_stored() -> None:
    store = Conversations()
    answered(store, "a", "r1", SCRIPTS["content"])
    answered(store, "a", "r2", SCRIPTS["content"], store=False)
    for owner, id in [("b", "r1"), ("a", "r2"), ("a", "r3")]:
        with pytest.raises(FieldError, match="send the whole conversation") as caught:
            answered(store, owner, "x", SCRIPTS["content"], previous_response_id=id)
        assert caught.value.field == "previous_response_id"


def test_the_store_forgets_what_was_used_longest_ago() -> None:
    store = Conversations(max_entries=2)
    for id in ("r1", "r2"):
        store.keep("a", id, (), {})
    assert store.find("a", "r1")
    store.keep("a", "r3", (), {})
    assert [store.find("a", id) is not None for id in ("r1", "r2", "r3")] == [True, False, True]
    assert store.forget("a", "r1")
    assert not store.forget("a", "r1")
    assert len(store) == 1


def test_what_is_forgotten_takes_no_room() -> None:
    store = Conversations()
    for id in ("r1", "r2"):
        store.keep("a", id, ({"role": "user", "content": id * 100},), {"id": id})
    store.forget("a", "r1")
    left = store.find("a", "r2")
    assert left is not None
    assert store.size == left.size
    store.keep("a", "r2", left.messages, left.response)  # the same again is not counted twice
    assert store.size == left.size


def test_a_flood_costs_its_maker() -> None:
    store = Conversations(max_bytes=10_000)
    store.keep("quiet", "r", ({"role": "user", "content": "x" * 2000},), {})
    for n in range(100):
        store.keep("loud", f"r{n}", ({"role": "user", "content": "x" * 3000},), {})
    store.keep("loud", "huge", ({"role": "user", "content": "x" * 20_000},), {})
    assert store.find("quiet", "r")
    assert store.find("loud", "r99")
    assert store.find("loud", "r98")
    assert store.find("loud", "huge") is None
    assert store.size <= 10_000


# ---- reading ---------------------------------------------------------------------------------------------------------


def refused(asked: object) -> FieldError:
    with pytest.raises(FieldError) as caught:
        responses.read(asked)
    return caught.value


def test_a_request_of_every_field_becomes_a_job() -> None:
    asked = responses.read(
        body(
            instructions="be kind",
            tools=[*TOOLS, {"type": "web_search"}],
            tool_choice={"type": "function", "name": "get_time"},
            text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
            reasoning={"effort": "low", "summary": "auto"},
            max_output_tokens=50,
            temperature=0.5,
            top_p=0.9,
            include=["reasoning.encrypted_content"],
            metadata={"a": "b"},
            stream=True,
            store=False,
            odd=1,
        )
    )
    job = asked.job
    assert job.messages == ({"role": "system", "content": "be kind"}, {"role": "user", "content": "Hi"})
    assert job.sampling == {"max_tokens": 50, "temperature": 0.5, "top_p": 0.9}
    assert (job.shape.tool, job.shape.choice) == ("get_time", ToolChoice.REQUIRED)
    assert job.shape.format == JsonSchema({"type": "object"})
    assert (job.thinking, job.shape.thinking_budget) == (True, 1024)
    assert asked.ignored == ("tools[2] ('web_search')", "text.verbosity", "odd")
    assert asked.keep is None
    whole = responses.whole(asked, STAMP, [DONE])
    Response.model_validate(whole)
    assert whole["tool_choice"] == {"type": "function", "name": "get_time"}
    assert [tool["name"] for tool in whole["tools"]] == ["get_weather", "get_time"]  # type: ignore[attr-defined]


def test_items_of_every_kind_are_taken() -> None:
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "x",
        },
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_time",
            "arguments": "{}",
            "id": "fc",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "get_time", "arguments": '{"zone": "CET"}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "12"}]},
        {"type": "function_call_output", "call_id": "c2", "output": "13"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
    ]
    messages = responses.read(body(input=items)).job.messages
    assert [message["role"] for message in messages] == ["developer", "user", "assistant", "tool", "tool", "assistant"]
    assert [message["content"] for message in messages] == ["d", "a", "", "12", "13", "b"]
    assert messages[2]["reasoning_content"] == "hm"
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["c1", "c2"]  # type: ignore[attr-defined]


def test_formats_and_choices() -> None:
    def format(**asked: object) -> object:
        return responses.read(body(**asked)).job.shape.format

    assert format(text={"format": {"type": "text"}}) is None
    assert format(text={"format": {"type": "json_object"}}) == JsonObject()
    assert format(regex="a+") == Regex("a+")
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    shape = responses.read(body(tools=TOOLS, tool_choice=allowed)).job.shape
    assert [tool["function"]["name"] for tool in shape.tools] == ["get_time"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ([], "body", "object"),
        ({"model": "m"}, "input", "missing"),
        (body(input=[]), "input", "empty"),
        (body(input=5), "input", "list"),
        (body(input=[{"type": "computer_call"}]), "input[0].type", "taken here"),
        (body(input=[{"type": "item_reference", "id": "x"}]), "input[0].type", "taken here"),
        (body(input=[{"role": "tool", "content": "x"}]), "input[0].role", "one of"),
        (
            body(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://169.254.169.254/"}]}]),
            "input[0].content[0].image_url",
            "must be a data url",
        ),
        (body(input=[{"type": "function_call", "name": "f"}]), "input[0].call_id", "missing"),
        (body(input=[{"type": "function_call_output", "call_id": "c"}]), "input[0].output", "missing"),
        (body(background=True), "background", "waits"),
        (body(conversation="c"), "conversation", "previous_response_id"),
        (body(prompt={"id": "p"}), "prompt", "send the text"),
        (body(previous_response_id="r"), "previous_response_id", "send the whole conversation"),
        (body(tools=[{"type": "function"}]), "tools[0].name", "missing"),
        (body(tool_choice="required"), "tool_choice", "no tools"),
        (body(tools=TOOLS, tool_choice={"type": "web_search"}), "tool_choice.type", "one of"),
        (body(reasoning={"effort": "huge"}), "reasoning.effort", "one of"),
        (body(reasoning={"summary": "long"}), "reasoning.summary", "one of"),
        (body(max_output_tokens=math.inf), "max_output_tokens", "integer"),
        (body(top_logprobs=10**9), "top_logprobs", "0 to 20"),
        (body(metadata={"a": math.nan}), "metadata", "not a JSON number"),
        (body(text={"format": {"type": "xml"}}), "text.format.type", "one of"),
        (body(instructions=["a"]), "instructions", "text"),
    ],
)
def test_what_is_wrong_is_named(asked: object, field: str, says: str) -> None:
    error = refused(asked)
    assert error.field == field
    assert says in str(error)


NAMES = ["type", "text", "role", "content", "name", "arguments", "call_id", "output", "summary", "format", "effort"]
KINDS = ["message", "user", "assistant", "function", "function_call", "function_call_output", "reasoning", "input_text"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(KINDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(responses.KNOWN)), JSON, max_size=5), JSON)
def test_random_json_raises_nothing_but_input_errors(asked: Json, input: Any) -> None:
    assert len(problem({"input": input, **asked})) < 1000


def problem(asked: object) -> str:
    """What an InputError says, and nothing where the request is taken. Any other error is the test's."""
    try:
        responses.whole(responses.read(asked), STAMP, [DONE])
    except InputError as error:
        return str(error)
    return ""
