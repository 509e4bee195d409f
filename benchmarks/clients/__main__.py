"""Other people's clients, as they come from the package index, against ``pocketgem``'s server.

python -m benchmarks.clients [NAME ...] [--python PATH] [--list]

``--python``: an interpreter that has them: llm, openai-agents, langchain-openai, langgraph, smolagents,
mini-swe-agent, inspect-ai, lm-eval. Each is a script beside this one that gets the server's address, runs its tools in
several steps and raises if the answer is not the one of the script. The model only says what the script below has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.scripted import Script, scripted_llm
from tests.serving import running

HERE = Path(__file__).parent
NAMES = sorted(file.stem.removeprefix("with_") for file in HERE.glob("with_*.py"))


def call(name: str, **arguments: str | int) -> str:
    """A call as Gemma 4 writes it."""
    written = ",".join(
        f"{key}:{value}" if isinstance(value, int) else f'{key}:<|"|>{value}<|"|>' for key, value in arguments.items()
    )
    return f"<|tool_call>call:{name}{{{written}}}<tool_call|>"


ROME, OSLO, SUM = call("weather", city="Rome"), call("weather", city="Oslo"), call("add", a=20, b=2)
FIX = "sed -i 's/a - b/a + b/' sums.py && python3 sums.py"
SCRIPT = Script(
    {
        # smolagents puts results of tools in a turn of the person: what came last decides
        "Observation:\n22": [call("final_answer", answer="It makes 22.")],
        "Observation:\n2 degrees": [SUM],
        "Observation:\n20 degrees": [OSLO],
        "step by step": [ROME, OSLO, SUM, "It makes 22."],
        "both cities": [ROME + OSLO, "", "Rome is warm and Oslo is not."],
        "Who was": ['{"name":"Ada","age":36}'],
        "sums.py": [
            f"Let me look. {call('bash', command='cat sums.py')}",
            call("bash", command=FIX),
            call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat sums.py"),
        ],
        "And why": ["Because of the air."],
        "colour": ["The sky is blue."],
        "1, 2, 3, 4,": ["5"],
        "2, 4, 6, 8,": ["10"],
    }
)


def tried(python: str, name: str, url: str) -> bool:
    """Whether a client did what it should; what it says goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HOME": folder, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1",
                       "HF_DATASETS_OFFLINE": "1"}  # fmt: skip
        command = [python, str(HERE / f"with_{name}.py"), url]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-6000:], file=sys.stderr)
    print(f"{name}: {last if not done.returncode else 'FAILED'}", flush=True)
    return not done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--wait", action="store_true", help="only serve, until interrupted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running({"m": scripted_llm(Path(folder) / "m", SCRIPT)}) as server:
        if args.wait:
            print(server.url, flush=True)
            time.sleep(1e9)
        results = [tried(args.python, name, server.url) for name in args.names]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
