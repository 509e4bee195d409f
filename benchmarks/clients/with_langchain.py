"""LangChain and LangGraph: an agent with tools, a structured answer, streams; also over responses."""

import sys
from importlib.metadata import version

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return {"Rome": "20 degrees", "Oslo": "2 degrees"}[city]


@tool
def add(a: int, b: int) -> int:
    """A sum."""
    return a + b


class Person(BaseModel):
    """A person."""

    name: str
    age: int


for responses in (False, True):
    model = ChatOpenAI(model="m", base_url=f"{sys.argv[1]}/v1", api_key="none", use_responses_api=responses)
    assert model.invoke("What colour is it?").text == "The sky is blue."
    assert "".join(chunk.text for chunk in model.stream("What colour is it?")) == "The sky is blue."
    assert model.with_structured_output(Person, method="json_schema").invoke("Who was it?") == Person(
        name="Ada", age=36
    )
    agent = create_react_agent(model, [weather, add])
    for asked, answer, calls in (
        ("Go step by step", "It makes 22.", 3),
        ("Look at both cities", "Rome is warm and Oslo is not.", 2),
    ):
        messages = agent.invoke({"messages": [("user", asked)]})["messages"]
        assert messages[-1].text == answer, messages
        assert sum(message.type == "tool" for message in messages) == calls
print(f"langchain-openai {version('langchain-openai')}, langgraph {version('langgraph')}: both APIs, 3 steps")
