"""OpenAI's Agents SDK: tools in several steps over chat completions and over responses, streamed and not."""

import asyncio
import sys
from importlib.metadata import version

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
seen: list[str] = []


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    seen.append(city)
    return {"Rome": "20 degrees", "Oslo": "2 degrees"}[city]


@function_tool
def add(a: int, b: int) -> int:
    """A sum."""
    seen.append(f"{a}+{b}")
    return a + b


class Person(BaseModel):
    name: str
    age: int


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind(model="m", openai_client=client)
        agent = Agent(name="helper", instructions="Be short.", model=model, tools=[weather, add],
                      model_settings=ModelSettings(temperature=0))  # fmt: skip
        seen.clear()
        done = await Runner.run(agent, "Go step by step")
        assert done.final_output == "It makes 22.", done.final_output
        assert seen == ["Rome", "Oslo", "20+2"], seen
        seen.clear()
        stream = Runner.run_streamed(agent, "Look at both cities")
        events = [event.type async for event in stream.stream_events()]
        assert stream.final_output == "Rome is warm and Oslo is not.", stream.final_output
        assert sorted(seen) == ["Oslo", "Rome"], seen
        assert "raw_response_event" in events
        typed = Agent(name="typed", model=model, output_type=Person)
        assert (await Runner.run(typed, "Who was it?")).final_output == Person(name="Ada", age=36)


asyncio.run(main())
print(f"openai-agents {version('openai-agents')}: both APIs, 3 tool steps, 2 calls streamed, a type")
