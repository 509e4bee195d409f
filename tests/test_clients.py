"""The official clients of OpenAI and Anthropic, unmodified, over a real socket: against a model that follows a script,
and against the real Gemma 3 270M.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from pocketgem import LLM
from pocketgem.serve.keys import Keys
from pocketgem.serve.settings import Settings
from tests.scripted import Script, scripted_llm
from tests.serving import PATIENCE, Running, running, wait_for

KEY = "a-key-of-enough-letters"
ROME = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
OSLO = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
SCRIPT = Script(
    {
        "weather in Rome": [ROME, "It is sunny in Rome."],
        "both": [f"One moment. {ROME}{OSLO}", "", "Rome is sunny and Oslo is not."],
        "step by step": [ROME, OSLO, "<|tool_call>call:add{a:20,b:2}<tool_call|>", "It makes 22."],
        "who": ['{"name":"Ada","age":36}'],
        "ponder": ["<|channel>thought\nHmm, let me see.\n<channel|>It is 42."],
        "colour": ["The sky is blue 日本語."],
        "of it": ["Because of the air."],
    },
    usual=None,  # letters without end
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "add", "description": "A sum.", "parameters": SUM}},
]
FLAT_TOOLS: Any = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]
ANTHROPIC_TOOLS: Any = [
    {"name": "weather", "description": "The weather.", "input_schema": CITY},
    {"name": "add", "description": "A sum.", "input_schema": SUM},
]


class Person(pydantic.BaseModel):
    name: str
    age: int


def do(name: str, arguments: Any) -> str:
    """What the tools answer."""
    if name == "add":
        return str(arguments["a"] + arguments["b"])
    return {"Rome": "sunny, 20 degrees", "Oslo": "rain, 2 degrees"}[arguments["city"]]


def openai_at(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def claude_at(server: Running, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    llm = scripted_llm(tmp_path_factory.mktemp("clients") / "model", SCRIPT)
    with running({"m": llm}) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: Running) -> Iterator[openai.OpenAI]:
    with openai_at(server) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with claude_at(server) as client:
        yield client


@pytest.fixture(autouse=True)
def idle_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves anything running, nor a fault in the log."""
    yield
    if "server" in request.fixturenames:
        server: Running = request.getfixturevalue("server")
        wait_for(server.idle)
        assert not any(line["event"] == "fault" for line in server.lines), server.lines[-3:]


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def without(value: Any, *names: str) -> Any:
    """Without what differs from answer to answer, and without what is empty: the clients fill in some of it."""
    if isinstance(value, dict):
        kept = {name: without(item, *names) for name, item in value.items() if name not in names}
        return {name: item for name, item in kept.items() if item not in (None, [], {})}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


SECONDS = ("prefill_seconds", "decode_seconds")
CACHED = ("cached_tokens", "cache_reason", "cache_read_input_tokens", "input_tokens")  # the second time it is kept


# ---- chat completions -----------------------------------------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    {"messages": said("What colour?")},
    {"messages": said("Ask both"), "tools": TOOLS},
    {"messages": said("ponder"), "reasoning_effort": "high"},
    {"messages": said("What colour?"), "stop": ["blue"]},
    {"messages": said("endless"), "max_tokens": 12},
    {"messages": said("endless"), "max_tokens": 5, "logprobs": True, "top_logprobs": 2},
]


@pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
def test_a_chat_streamed_is_the_chat_at_once(api: openai.OpenAI, asked: dict[str, Any]) -> None:
    whole = api.chat.completions.create(model="m", temperature=0, **asked)
    with api.chat.completions.stream(
        model="m", temperature=0, stream_options={"include_usage": True}, **asked
    ) as stream:
        for _ in stream:
            pass
        joined = final(stream)
    differs = ("id", "created", "object", "index", "parsed", "parsed_arguments", "service_tier", *SECONDS, *CACHED)
    assert without(joined.to_dict(), *differs) == without(whole.to_dict(), *differs)


def final(stream: Any) -> Any:
    """What a stream came to. The client refuses one that was cut by its limit, but has it all the same."""
    try:
        return stream.get_final_completion()
    except openai.LengthFinishReasonError as error:
        return error.completion


def chat_loop(api: openai.OpenAI, asked: str, **options: Any) -> tuple[str, list[int]]:
    """The answer after as many calls of tools as the model wants, and how many it made in each turn."""
    messages, calls = said(asked), []
    for _ in range(6):
        message = api.chat.completions.create(model="m", messages=messages, tools=TOOLS, **options).choices[0].message
        if not message.tool_calls:
            return message.content or "", calls
        calls.append(len(message.tool_calls))
        messages.append(message)
        for call in message.tool_calls:
            assert call.type == "function"
            result = do(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise AssertionError("the model does not end")


@pytest.mark.parametrize("choice", ["auto", None])
def test_tools_in_several_steps(api: openai.OpenAI, choice: str | None) -> None:
    options = {} if choice is None else {"tool_choice": choice}
    assert chat_loop(api, "Go step by step", **options) == ("It makes 22.", [1, 1, 1])
    assert chat_loop(api, "Ask both", **options) == ("Rome is sunny and Oslo is not.", [2])
    assert chat_loop(api, "The weather in Rome", **options) == ("It is sunny in Rome.", [1])


def test_a_pydantic_model_comes_back_parsed(api: openai.OpenAI) -> None:
    done = api.chat.completions.parse(model="m", messages=said("who"), response_format=Person, temperature=0)
    assert done.choices[0].message.parsed == Person(name="Ada", age=36)
    with api.chat.completions.stream(model="m", messages=said("who"), response_format=Person, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ada", age=36)


def test_a_schema_holds_whatever_the_model_wants_to_say(api: openai.OpenAI) -> None:
    done = api.chat.completions.parse(model="m", messages=said("endless"), response_format=Flag, temperature=0)
    assert isinstance(done.choices[0].message.parsed, Flag)


class Flag(pydantic.BaseModel):
    on: bool


def test_a_client_with_strict_tools_gets_parsed_arguments(api: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(City, name="weather")
    done = api.chat.completions.parse(model="m", messages=said("The weather in Rome"), tools=[tool])
    calls = done.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == City(city="Rome")


class City(pydantic.BaseModel):
    city: str


def test_the_second_turn_reads_only_what_is_new(api: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Answer in a word. " * 20}, *said("What colour?")]
    first = api.chat.completions.create(model="m", messages=messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *said("And the cause of it?")]
    second = api.chat.completions.create(model="m", messages=messages)
    assert second.choices[0].message.content == "Because of the air."
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1


# ---- responses ------------------------------------------------------------------------------------------------------


def test_a_response_streamed_is_the_response_at_once(api: openai.OpenAI) -> None:
    for asked in (
        {"input": "What colour?"},
        {"input": "Ask both", "tools": FLAT_TOOLS},
        {"input": "ponder", "reasoning": {"effort": "high", "summary": "auto"}},
        {"input": "endless", "max_output_tokens": 12},
    ):
        options: dict[str, Any] = {"model": "m", "temperature": 0, **asked}
        whole = api.responses.create(**options)
        with api.responses.stream(**options) as stream:
            events = list(stream)
        assert events[0].type == "response.created"
        assert events[-1].type in ("response.completed", "response.incomplete")
        joined = events[-1].response
        differs = ("id", "created_at", "completed_at", "call_id", "parsed", "parsed_arguments", *SECONDS, *CACHED)
        assert without(joined.to_dict(), *differs) == without(whole.to_dict(), *differs)
        assert joined.output_text == whole.output_text


def test_responses_run_tools_by_their_ids(api: openai.OpenAI) -> None:
    """Each turn sends only what is new."""
    response = api.responses.create(model="m", input="Go step by step", tools=FLAT_TOOLS)
    for _ in range(3):
        results: Any = [
            {
                "type": "function_call_output",
                "call_id": item.call_id,
                "output": do(item.name, json.loads(item.arguments)),
            }
            for item in response.output
            if item.type == "function_call"
        ]
        assert len(results) == 1
        response = api.responses.create(model="m", previous_response_id=response.id, input=results, tools=FLAT_TOOLS)
    assert response.output_text == "It makes 22."
    assert api.responses.retrieve(response.id).output_text == "It makes 22."
    api.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as gone:
        api.responses.create(model="m", previous_response_id=response.id, input="And?")
    assert gone.value.param == "previous_response_id"


def test_responses_parse_a_pydantic_model(api: openai.OpenAI) -> None:
    assert api.responses.parse(model="m", input="who", text_format=Person).output_parsed == Person(name="Ada", age=36)


def test_a_second_response_reuses_the_first(api: openai.OpenAI) -> None:
    first = api.responses.create(model="m", input="What colour? " * 20)
    second = api.responses.create(model="m", previous_response_id=first.id, input="And the cause of it?")
    assert second.output_text == "Because of the air."
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": said("What colour?")},
        {"messages": said("Ask both"), "tools": ANTHROPIC_TOOLS},
        {"messages": said("ponder"), "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"messages": said("endless"), "max_tokens": 12},
        {"messages": said("What colour?"), "stop_sequences": ["blue"]},
    ],
    ids=str,
)
def test_a_message_streamed_is_the_message_at_once(claude: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    options: dict[str, Any] = {"model": "m", "max_tokens": 2000, "temperature": 0, **asked}
    options["extra_body"] = {"temperature": options.pop("temperature")}
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        joined = stream.get_final_message()
    differs = ("id", "usage", "parsed_output", "_request_id")
    assert without(joined.to_dict(), *differs) == without(whole.to_dict(), *differs)
    assert joined.usage.output_tokens == whole.usage.output_tokens


def test_anthropics_tools_in_several_steps(claude: anthropic.Anthropic) -> None:
    for asked, turns, answer in (
        ("Go step by step", 3, "It makes 22."),
        ("Ask both", 1, "Rome is sunny and Oslo is not."),
    ):
        messages = said(asked)
        for turn in range(turns + 1):
            message = claude.messages.create(model="m", max_tokens=200, messages=messages, tools=ANTHROPIC_TOOLS)
            calls = [block for block in message.content if block.type == "tool_use"]
            assert (message.stop_reason == "tool_use") == bool(calls) == (turn < turns)
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": do(call.name, call.input)} for call in calls
            ]
            messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        assert message.content[-1].type == "text"
        assert message.content[-1].text == answer


def test_thoughts_come_in_blocks_of_their_own_and_can_be_switched_off(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model="m", max_tokens=2000, messages=said("ponder"), thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].type == "thinking"
    assert "let me see" in message.content[0].thinking


def test_a_prompt_is_counted_as_it_is_read(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": said("What colour?"), "tools": ANTHROPIC_TOOLS}
    counted = claude.messages.count_tokens(**asked).input_tokens
    usage = claude.messages.create(max_tokens=50, **asked).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors_are_the_clients_own(api: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="nobody", messages=said("Hi"))
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody", max_tokens=9, messages=said("Hi"))
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(model="m", messages=[{"role": "nobody", "content": "Hi"}])  # type: ignore[list-item,misc]
    assert bad.value.param == "messages[0].role"
    with pytest.raises(openai.BadRequestError) as long:
        api.chat.completions.create(model="m", messages=said("a b " * 40_000))
    assert "context" in str(long.value)
    with pytest.raises(anthropic.BadRequestError) as named:
        claude.messages.create(model="m", max_tokens=-1, messages=said("Hi"))
    assert "max_tokens" in str(named.value)


def test_keys_and_limits_are_the_clients_own_errors(server: Running) -> None:
    llm = server.service().llm
    with running({"m": llm}, Settings(port=0, keys=Keys.of([("me", KEY)]), requests_per_minute=2)) as locked:
        with openai_at(locked, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with claude_at(locked, "wrong") as stranger, pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(model="m", max_tokens=9, messages=said("Hi"))
        with openai_at(locked, KEY) as client:
            assert [model.id for model in client.models.list()] == ["m"]
            client.models.list()
            with pytest.raises(openai.RateLimitError) as limited:
                client.models.list()
            assert int(limited.value.response.headers["retry-after"]) >= 1
        with claude_at(locked, KEY) as client, pytest.raises(anthropic.RateLimitError):
            client.messages.create(model="m", max_tokens=9, messages=said("Hi"))


# ---- clients that leave, and many at once ---------------------------------------------------------------------------


def test_closing_a_stream_frees_its_request(server: Running, api: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    chat = api.chat.completions.create(model="m", messages=said("endless"), stream=True)
    next(iter(chat))
    chat.close()
    response = api.responses.create(model="m", input="endless", stream=True)
    next(iter(response))
    response.close()
    with claude.messages.stream(model="m", max_tokens=30_000, messages=said("endless")) as message:
        next(iter(message))
    wait_for(server.idle, 10)
    assert server.service().held.bytes == 0


async def test_many_asynchronous_clients_get_their_own_answers(server: Running) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as claude,
    ):

        async def by_openai(text: str) -> str:
            stream = await api.chat.completions.create(model="m", messages=said(text), stream=True, temperature=0)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        async def by_anthropic(text: str) -> str:
            async with claude.messages.stream(model="m", max_tokens=60, messages=said(text)) as stream:
                return "".join([piece async for piece in stream.text_stream])

        leaver = asyncio.ensure_future(by_openai("endless"))
        answers = await asyncio.gather(
            by_openai("What colour?"), by_anthropic("And of it?"), by_openai("And of it?"), by_anthropic("What colour?")
        )
        leaver.cancel()
        with suppress(asyncio.CancelledError):
            await leaver
    sky, air = "The sky is blue 日本語.", "Because of the air."
    assert answers == [sky, air, air, sky]


# ---- the real model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_model_path: Path) -> Iterator[Running]:
    with running({"gemma-3-270m": LLM.load(real_model_path)}) as server:
        yield server


@pytest.mark.weights
def test_the_real_model_and_openais_client(real: Running) -> None:
    with openai_at(real) as api:
        asked: Any = {"model": "gemma-3-270m", "prompt": "1, 2, 3, 4,", "temperature": 0}
        whole = api.completions.create(max_tokens=12, logprobs=2, **asked)
        assert "5, 6" in whole.choices[0].text
        streamed = list(api.completions.create(max_tokens=12, stream=True, **asked))
        assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
        echoed = api.completions.create(max_tokens=0, echo=True, logprobs=1, **asked).choices[0]
        assert echoed.text == "1, 2, 3, 4,"
        with api.completions.create(max_tokens=20_000, stream=True, **asked) as leaving:
            next(iter(leaving))
        wait_for(real.idle, 10)
        assert real.service().held.bytes == 0


@pytest.mark.weights
def test_a_base_model_says_that_it_cannot_chat(real: Running) -> None:
    with openai_at(real) as api:
        with pytest.raises(openai.BadRequestError, match="template"):
            api.chat.completions.create(model="gemma-3-270m", messages=said("Hi"))
        with pytest.raises(openai.BadRequestError, match="template"):
            api.responses.create(model="gemma-3-270m", input="Hi")
    with claude_at(real) as claude, pytest.raises(anthropic.BadRequestError, match="template"):
        claude.messages.create(model="gemma-3-270m", max_tokens=9, messages=said("Hi"))
