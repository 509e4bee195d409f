"""A package for phones: converted by litert-torch, run once by litert-lm before it gets its name.

Both are Google's, and large (they need TensorFlow), so they are an extra and never imported: litert-torch is a
program, and litert-lm runs in a Python of its own. They see a safetensors folder that is exported for them first.

https://github.com/google-ai-edge/litert-torch and https://github.com/google-ai-edge/LiteRT-LM
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketgem.checkpoint.durable import Temporary, check_replaceable, refusal
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.manifest import sidecar, write_sidecar
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import Progress
from pocketgem.convert.export import Exported, check_apart, export_to_safetensors
from pocketgem.errors import CheckpointError, RunError
from pocketgem.text.source import vocabulary_from
from pocketgem.text.tokenizer import Tokenizer

CONTEXT = 2048  # tokens a conversation may have; its keys and values are reserved for all of them
PREFILL = 128  # prompt tokens computed at a time
PROGRAM = "litert-torch"
PROMPT = "The capital of France is"
LINES = (PROMPT, "def main():\n\n    return  42\n", "größer, 日本語, 👩‍🚀 <table>")
# Runs in the extra's own Python: token ids of lines, and a greedy continuation of the first.
_CHECK = """
import json, sys
import litert_lm
path, lines = sys.argv[1], json.loads(sys.argv[2])
engine = litert_lm.Engine(path, cache_dir=":nocache")
greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0)
session = engine.create_session(apply_prompt_template=False, sampler_config=greedy, max_output_tokens=24)
session.run_prefill([lines[0]])
answer = session.run_decode().texts[0]
print("FOUND " + json.dumps({"ids": [engine.tokenize(line) for line in lines], "answer": answer}))
"""


def export_to_litertlm(
    source: str | Path,
    target: Path,
    *,
    context: int = CONTEXT,
    offline: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Exported:
    """Write the package ``target`` for conversations of ``context`` tokens; weights become 8-bit integers.

    ``say`` hears what is being done: converting takes minutes, and about 24 bytes of memory a weight. Raises
    CheckpointError without the extra or for a bad place, RunError when a tool fails or its result does not run.
    """
    program = _program()
    checkpoint = open_checkpoint(resolve(source, offline=offline))
    check_apart(checkpoint, target)
    tokenizer = Tokenizer(vocabulary_from(checkpoint.metadata, checkpoint.location.folder, checkpoint.where))
    try:
        check_replaceable(target)
        work = Temporary(target, folder=True)
    except OSError as error:
        raise refusal(target, error) from error
    try:
        model, out = work.path / "model", work.path / "out"
        export_to_safetensors(source, model, dtype="float32", offline=offline, progress=progress)
        say(f"{PROGRAM} converts the model; this takes minutes")
        _convert(program, model, out, context)
        say("litert-lm runs it once")
        answer = _check(program, out / "model.litertlm", tokenizer)
        size = (out / "model.litertlm").stat().st_size
        sidecar(target).unlink(missing_ok=True)
        _publish(out / "model.litertlm", target)
    finally:
        work.close()
    sums = write_sidecar(target, progress)
    notes = (
        f"litert-lm continues {PROMPT!r} with {answer!r}",
        "weights were rounded to 8-bit integers by litert-torch",
    )
    return Exported(str(target), "litertlm", (target.name, sums.name), size, "int8", False, notes)


def _program() -> Path:
    """The converter beside this Python, or wherever programs are found."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(PROGRAM, path=places)
    if found is None:
        raise CheckpointError(
            f'--format litertlm needs {PROGRAM}, which is not installed; run: pip install "pocketgem[litertlm]"'
        )
    return Path(found)


def _convert(program: Path, model: Path, out: Path, context: int) -> None:
    sizes = (f"--cache_length={context}", f"--prefill_lengths=[{PREFILL}]")
    _run([str(program), "export_hf", str(model), str(out), *sizes], PROGRAM)
    if not (out / "model.litertlm").is_file():
        raise RunError(f"{PROGRAM} ended without an error and without a model.litertlm")


def _check(program: Path, package: Path, tokenizer: Tokenizer) -> str:
    """What the package answers; raises RunError if it does not, or reads text as other tokens than we do."""
    python = program.parent / Path(sys.executable).name
    interpreter = python if python.is_file() else Path(sys.executable)
    printed = _run([str(interpreter), "-c", _CHECK, str(package), json.dumps(LINES)], "litert-lm")
    line = next((line for line in printed.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        raise RunError(f"litert-lm printed no result: {_last(printed)}")
    found = json.loads(line.removeprefix("FOUND "))
    expected = [tokenizer.encode(line, add_bos=False) for line in LINES]
    if found["ids"] != expected:
        at = next(at for at, ids in enumerate(expected) if ids != found["ids"][at])
        raise RunError(f"litert-lm reads {LINES[at]!r} as other tokens than the model does; nothing was written")
    if not found["answer"].strip():
        raise RunError("litert-lm runs the package, but it answers nothing; nothing was written")
    return str(found["answer"])


def _run(command: Sequence[str], name: str) -> str:
    """What a tool printed. Nothing leaves the machine: the hub's library is told to stay offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise RunError(f"{name} failed with code {done.returncode}: {_last(done.stderr or done.stdout)}")
    return done.stdout


def _last(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def _publish(made: Path, target: Path) -> None:
    """Bring the tool's file to the disk, then give it its name."""
    try:
        descriptor = os.open(made, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(made, target)
    except OSError as error:
        raise refusal(target, error) from error
