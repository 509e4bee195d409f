"""mini-swe-agent, a coding agent: it reads a file, mends it by a command, and hands in."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= {"MSWEA_SILENT_STARTUP": "1", "MSWEA_COST_TRACKING": "ignore_errors"}

import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.config import builtin_config_dir
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

Path("sums.py").write_text("def add(a, b):\n    return a - b\n\n\nassert add(20, 2) == 22\n")
config = yaml.safe_load((builtin_config_dir / "mini.yaml").read_text())
model = LitellmModel(
    **{**config["model"], "model_name": "openai/m",
       "model_kwargs": {"api_base": f"{sys.argv[1]}/v1", "api_key": "none", "temperature": 0}}
)  # fmt: skip
keys = ("system_template", "instance_template", "step_limit")
agent = DefaultAgent(model, LocalEnvironment(), **{key: config["agent"][key] for key in keys if key in config["agent"]})
done = agent.run("The sum in sums.py is wrong; mend it.")
assert done["exit_status"] == "Submitted", done
assert "a + b" in Path("sums.py").read_text()
assert agent.n_calls == 3, agent.n_calls
print(f"mini-swe-agent {version('mini-swe-agent')} (litellm {version('litellm')}): mended a file in 3 steps")
