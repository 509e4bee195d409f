"""Simon Willison's ``llm`` on its command line: a prompt, a conversation, a schema, tools in several steps."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

url = sys.argv[1]
home = Path("llm").absolute()
home.mkdir()
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: pg\n  model_name: m\n  api_base: {url}/v1\n  api_key_name: pg\n"
    "  supports_tools: true\n  supports_schema: true\n"
)
(home / "keys.json").write_text('{"pg": "none"}')
TOOLS = """
def weather(city: str) -> str:
    "The weather in a city."
    return {"Rome": "20 degrees", "Oslo": "2 degrees"}[city]

def add(a: int, b: int) -> int:
    "A sum."
    return a + b
"""


def llm(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env={**os.environ, "LLM_USER_PATH": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


assert llm("-m", "pg", "What colour is the sky?") == "The sky is blue."
assert llm("-m", "pg", "--no-stream", "What colour is the sky?") == "The sky is blue."
assert llm("-c", "And why is it so?") == "Because of the air."
assert json.loads(llm("-m", "pg", "--schema", "name, age int", "Who was it?")) == {"name": "Ada", "age": 36}
assert llm("-m", "pg", "--functions", TOOLS, "Go step by step") == "It makes 22."
assert llm("-m", "pg", "--no-stream", "--functions", TOOLS, "Look at both cities") == "Rome is warm and Oslo is not."
print(f"llm {version('llm')}: prompts, a conversation, a schema, 3 tool steps streamed, 2 calls at once")
