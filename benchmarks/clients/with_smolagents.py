"""smolagents' agent that calls tools."""

import sys
from importlib.metadata import version

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name
    """
    return {"Rome": "20 degrees", "Oslo": "2 degrees"}[city]


@tool
def add(a: int, b: int) -> int:
    """A sum.

    Args:
        a: one number
        b: the other
    """
    return a + b


for streamed in (False, True):
    model = OpenAIModel(model_id="m", api_base=f"{sys.argv[1]}/v1", api_key="none")
    agent = ToolCallingAgent(tools=[weather, add], model=model, max_steps=6, stream_outputs=streamed, verbosity_level=0)
    answer = agent.run("Go step by step")
    assert answer == "It makes 22.", answer
    assert len(agent.memory.steps) == 5, agent.memory.steps
print(f"\nsmolagents {version('smolagents')}: 4 steps of tools, streamed and not")
