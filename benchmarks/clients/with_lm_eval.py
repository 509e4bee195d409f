"""lm-evaluation-harness over chat completions: our task of number rows. The script knows two of its twenty answers."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

root = Path(__file__).parents[2]
out = Path("out").absolute()
command = [
    sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args",
    f"model=m,base_url={sys.argv[1]}/v1/chat/completions,num_concurrent=4", "--tasks", "pocketgem_series",
    "--include_path", str(root / "benchmarks/evals"), "--apply_chat_template", "--output_path", str(out),
]  # fmt: skip
subprocess.run(command, check=True, cwd=root)
results = json.loads(max(out.rglob("results_*.json")).read_text())["results"]["pocketgem_series"]
assert abs(results["exact_match,number"] - 0.1) < 1e-9, results
print(f"lm-eval {version('lm-eval')}: local-chat-completions, 20 items, 0.1 as scripted")
