"""lm-evaluation-harness over ``pocketgem serve``, and beside it its backend ``hf`` on the same weights.

python -m benchmarks.evals MODEL --hf FOLDER [--dtype float32] [--remote] [--python PATH] [--tasks A,B]

``--python``: the interpreter that has lm-eval, torch and transformers. A last line of JSON compares the two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.served import Served, served

HERE = Path(__file__).parent
TASKS = "pocketgem_facts,pocketgem_series"


def over_server(args: argparse.Namespace, server: Served, out: Path) -> None:
    """Through the API. The harness's remote tokenizer never adds a begin token, whatever add_bos_token says."""
    tokenizer = "tokenizer_backend=remote" if args.remote else f"tokenizer_backend=huggingface,tokenizer={args.hf}"
    arguments = f"model=m,base_url={server.url}/v1/completions,{tokenizer},add_bos_token={not args.remote}"
    run(args.python, "local-completions", f"{arguments},num_concurrent=4,max_length=2048", args.tasks, out)


def over_transformers(args: argparse.Namespace, out: Path) -> None:
    arguments = f"pretrained={args.hf},dtype=float32,add_bos_token={not args.remote},max_length=2048"
    run(args.python, "hf", arguments, args.tasks, out, "--device", "cpu", "--batch_size", "8")


def run(python: str, model: str, arguments: str, tasks: str, out: Path, *more: str) -> None:
    command = [python, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(HERE), "--output_path", str(out), "--log_samples", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run(command, check=True, env={**os.environ, **offline}, cwd=HERE.parents[1], stdout=sys.stderr)


def samples(out: Path, task: str) -> dict[int, Any]:
    """The answers of a run by their items' numbers."""
    file = max(out.rglob(f"samples_{task}_*.jsonl"))
    return {item["doc_id"]: item for item in map(json.loads, file.read_text().splitlines())}


def scores(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(max(out.rglob("results_*.json")).read_text())["results"]
    return {
        task: {name: value for name, value in values.items() if "," in name and "stderr" not in name}
        for task, values in found.items()
    }


def choices(item: Any) -> list[tuple[float, bool]]:
    return [(float(logprob), str(greedy) == "True") for (logprob, greedy) in (one[0] for one in item["resps"])]


def compare(ours: Path, theirs: Path, task: str) -> dict[str, object]:
    """How far log-likelihoods differ, how often greedy flags agree; of generations how many are the same."""
    left, right = samples(ours, task), samples(theirs, task)
    pairs = [(left[number], right[number]) for number in sorted(right)]
    if isinstance(pairs[0][0]["resps"][0][0], str):
        return {"items": len(pairs), "same_texts": sum(one["resps"] == other["resps"] for one, other in pairs)}
    both = [pair for one, other in pairs for pair in zip(choices(one), choices(other), strict=True)]
    return {
        "items": len(pairs),
        "log_likelihoods": len(both),
        "largest_difference": max(abs(one[0] - other[0]) for one, other in both),
        "mean_difference": sum(abs(one[0] - other[0]) for one, other in both) / len(both),
        "same_greedy_flags": sum(one[1] == other[1] for one, other in both) / len(both),
        "same_choices": sum(one["acc"] == other["acc"] for one, other in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evals")
    parser.add_argument("model")
    parser.add_argument("--hf", type=Path, help="the same weights as a folder for transformers, float32")
    parser.add_argument("--dtype", default="auto", help="as for pocketgem serve")
    parser.add_argument("--remote", action="store_true", help="the tokenizer over the API; no begin token")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has lm-eval")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--out", type=Path, help="keep its files; a run of hf found there is used")
    args = parser.parse_args()
    if not args.hf and not args.remote:
        parser.error("give --hf FOLDER, for its tokenizer and to compare with, or --remote")
    out = args.out or Path(tempfile.mkdtemp(prefix="evals-"))
    ours, theirs = out / f"served-{args.dtype}", out / "hf"
    with served(f"m={args.model}", "--dtype", args.dtype, "--context", "2048") as server:
        over_server(args, server, ours)
    result: dict[str, object] = {"dtype": args.dtype, "served": scores(ours)}
    if args.hf:
        if not theirs.exists():
            over_transformers(args, theirs)
        result["hf"] = scores(theirs)
        result["compared"] = {task: compare(ours, theirs, task) for task in args.tasks.split(",")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
