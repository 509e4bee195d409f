"""inspect-ai's evaluation over an OpenAI-compatible API: a task that is generated and matched, and one with tools."""

import os
import sys
from importlib.metadata import version

os.environ |= {"POCKETGEM_BASE_URL": f"{sys.argv[1]}/v1", "POCKETGEM_API_KEY": "none", "INSPECT_DISPLAY": "none"}

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def weather():
    async def execute(city: str) -> str:
        """The weather in a city.

        Args:
            city: its name
        """
        return {"Rome": "20 degrees", "Oslo": "2 degrees"}[city]

    return execute


@tool
def add():
    async def execute(a: int, b: int) -> int:
        """A sum.

        Args:
            a: one number
            b: the other
        """
        return a + b

    return execute


plain = Task(
    dataset=[Sample("What colour is it?", target="blue"), Sample("Go on: 1, 2, 3, 4,", target="5")],
    solver=generate(),
    scorer=includes(),
)
tools = Task(
    dataset=[Sample("Go step by step", target="22"), Sample("Look at both cities", target="Oslo is not")],
    solver=[use_tools(weather(), add()), generate()],
    scorer=includes(),
)
for log in eval([plain, tools], model="openai-api/pocketgem/m", log_dir="logs"):
    assert log.status == "success", log.error
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1.0, log.results.scores
print(f"inspect-ai {version('inspect-ai')}: two tasks, accuracy 1.0, one of them through 3 steps of tools")
