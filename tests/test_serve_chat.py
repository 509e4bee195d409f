"""The chat APIs over a real socket, by the official clients: streams, tools, thoughts, structured answers, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from pocketgem import LLM
from tests.cli_models import save_model
from tests.scripted import Script, scripted_llm
from tests.serving import Running, events_of, post_head, running, wait_for

CALL = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
ANSWERS = {
    "weather": [CALL, "Sun in Oslo."],
    "both": [CALL + CALL.replace("Oslo", "Rome"), "Sun in both."],
    "puzzle": ["<|channel>thought\nLet me see.\n<channel|>It is 42."],
    "colour": ["blue"],
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "Weather now.", "parameters": WEATHER}}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("chat")
    models = {"m": scripted_llm(folder / "scripted", Script(ANSWERS)), "base": LLM.load(save_model(folder / "base"))}
    with running(models) as server:
        yield server


@pytest.fixture(scope="module")
def ask(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_a_loop_of_tools_with_openais_client(ask: openai.OpenAI) -> None:
    messages: list[Any] = [user("the weather, please")]
    first = ask.chat.completions.create(model="m", messages=messages, tools=[TOOL]).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Oslo"}  # type: ignore[union-attr]
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    second = ask.chat.completions.create(model="m", messages=messages, tools=[TOOL]).choices[0]
    assert (second.message.content, second.finish_reason) == ("Sun in Oslo.", "stop")


def test_calls_side_by_side_in_a_stream(ask: openai.OpenAI) -> None:
    with ask.chat.completions.stream(model="m", messages=[user("both")], tools=[TOOL]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rome"]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize("effort", ["none", "high"])
def test_thoughts_are_apart_and_can_be_switched_off(ask: openai.OpenAI, effort: Any) -> None:
    said = ask.chat.completions.create(model="m", messages=[user("a puzzle")], reasoning_effort=effort)
    message = said.choices[0].message.model_dump()
    assert (message["content"] or "").endswith("It is 42.")
    assert message.get("reasoning_content") == ("Let me see." if effort == "high" else None)


def test_an_answer_keeps_to_its_schema(ask: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    said = ask.chat.completions.create(model="m", messages=[user("colour")], response_format=form, max_tokens=400)
    assert isinstance(json.loads(said.choices[0].message.content or "")["name"], str)


def test_responses_go_on_from_one_another(ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="m", input="which colour?")
    assert first.output_text == "blue"
    with ask.responses.stream(
        model="m", input="a puzzle", previous_response_id=first.id, reasoning={"effort": "high"}
    ) as stream:
        last = stream.get_final_response()
    assert last.output_text == "It is 42."
    assert ask.responses.retrieve(last.id).output_text == "It is 42."
    ask.responses.delete(last.id)
    with pytest.raises(openai.NotFoundError):
        ask.responses.retrieve(last.id)


def test_a_loop_of_tools_with_anthropics_client(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "weather", "description": "Weather now.", "input_schema": WEATHER}
    messages: list[Any] = [user("the weather, please")]
    first = claude.messages.create(model="m", max_tokens=200, messages=messages, tools=[tool])
    (call,) = (block for block in first.content if block.type == "tool_use")
    assert (first.stop_reason, call.input) == ("tool_use", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    with claude.messages.stream(model="m", max_tokens=200, messages=messages, tools=[tool]) as stream:
        assert stream.get_final_text() == "Sun in Oslo."
    assert claude.messages.count_tokens(model="m", messages=[user("hello")]).input_tokens > 5
    assert [model.id for model in claude.models.list()] == ["m", "base"]


def test_a_model_without_a_template_says_so_in_every_dialect(
    server: Running, ask: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template; use plain completion"):
        ask.chat.completions.create(model="base", messages=[user("hello")])
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        ask.responses.create(model="base", input="hello", stream=True)
    with pytest.raises(anthropic.BadRequestError, match="no chat template"):
        claude.messages.create(model="base", max_tokens=5, messages=[user("hello")])
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="none", max_tokens=5, messages=[user("hello")])
    assert server.http.post("/v1/chat/completions", json={"messages": [user("colour")]}).json()["model"] == "m"


def test_what_is_wrong_with_a_schema_is_told_before_the_stream(ask: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError):
        ask.chat.completions.create(model="m", messages=[user("colour")], response_format=form, stream=True)


def test_progress_of_a_long_prompt(server: Running) -> None:
    body = {"model": "m", "messages": [user("colour? " + "abc " * 2000)], "stream": True, "max_tokens": 2}
    text = server.http.post("/v1/chat/completions", json=body).text
    told = [
        json.loads(line.removeprefix(": progress ")) for line in text.splitlines() if line.startswith(": progress ")
    ]
    assert [one["prompt_tokens_read"] for one in told] == sorted({one["prompt_tokens_read"] for one in told})
    assert all(one["prompt_tokens_read"] < one["prompt_tokens"] for one in told)
    assert len(told) > 3
    assert told[-1]["seconds_left"] is not None
    assert events_of(text)[-1] == (None, "[DONE]")


def test_the_second_turn_reads_little_again(server: Running) -> None:
    messages = [user("which colour? " + "abc " * 500)]
    first = server.http.post("/v1/chat/completions", json={"model": "m", "messages": messages}).json()
    messages += [first["choices"][0]["message"], user("and the colour now?")]
    second = server.http.post("/v1/chat/completions", json={"model": "m", "messages": messages}).json()
    usage = second["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.9 * usage["prompt_tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_the_prompt_is_read_frees_the_place(server: Running, path: str, stream: bool) -> None:
    text = "a long one: " + "xyz " * 6000
    body: dict[str, Any] = {"model": "m", "stream": stream}
    body |= {"input": text} if path == "/v1/responses" else {"messages": [user(text)], "max_tokens": 9}
    data = json.dumps(body).encode()
    with server.connect() as sock:
        sock.sendall(post_head(path, len(data)) + data)
        wait_for(lambda: server.service("m").running)
    wait_for(server.idle)
    assert server.service("m").held.tokens == 0
