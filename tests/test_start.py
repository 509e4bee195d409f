"""What answers without torch, whose import takes a second: help, wrong command lines, and what headers tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from tests.cli_models import TEMPLATE, save_model, vocabulary

SLOW = {
    "torch",
    "numpy",
    "tokenizers",
    "transformers",
    "huggingface_hub",
}  # none of them is needed for what is asked here
PROGRAM = f"""
import json, sys
from pocketgem.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({SLOW | {"jinja2", "safetensors"}!r} & sys.modules.keys())]), file=sys.stderr)
"""


@dataclass(frozen=True)
class Ran:
    code: int
    imported: set[str]
    out: str
    err: str


def run(*arguments: str, **environment: str) -> Ran:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    *said, last = done.stderr.splitlines()
    code, imported = json.loads(last)
    return Ran(code, set(imported), done.stdout, "\n".join(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("start") / "folder", template=TEMPLATE)


def exported(folder: Path, path: Path, **more: object) -> Path:
    export_gguf(open_checkpoint(resolve(folder)), path, vocabulary={**vocabulary(), **more})
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return exported(folder, folder.parent / "base.gguf")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Path:
    return exported(folder, folder.parent / "chat.gguf", **{"tokenizer.chat_template": TEMPLATE})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["info", "-h"],
        ["synth", "--help"],
        ["adapters", "merge", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.imported) == (0, set())
    assert ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-such-option"],
        ["run", "model", "hello", "--threads", "0"],
        ["run", "model", "hello", "--threads", "1025"],
        ["run", "model", "hello", "--threads", "two"],
        ["run", "model", "hello", "--top-p", "2"],
        ["run", "model", "hello", "--logprobs", "2"],
        ["info"],
        ["no-such-verb"],
    ],
)
def test_a_wrong_command_line_is_told_at_once(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.imported) == (2, set())
    assert ran.err.startswith("error: ")


@pytest.mark.parametrize("verb", [["info"], ["run"]])
def test_a_missing_or_damaged_file_is_told_at_once(verb: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3\0\0\0 and then nothing that makes sense")
    for name, told in (("missing.gguf", "no such file or folder"), ("bad.gguf", "bad.gguf: ")):
        ran = run(*verb, str(tmp_path / name), *(["hello"] if verb == ["run"] else []))
        assert ran.code == 2
        assert told in ran.err
        assert ran.imported <= {"safetensors"}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_reads_headers_without_torch(base: Path, chat: Path, options: list[str]) -> None:
    plain = run("info", str(base), *options)
    assert (plain.code, plain.imported & (SLOW | {"jinja2"})) == (0, set())
    assert "320" in plain.out
    templated = run("info", str(chat), *options)
    assert (templated.code, templated.imported & SLOW) == (0, set())
    assert "thinking" in templated.out


def test_info_of_a_folder_and_of_a_layout(folder: Path) -> None:
    for model in (str(folder), "gemma-4-E2B"):
        ran = run("info", model)
        assert (ran.code, "torch" in ran.imported) == (0, False)


@pytest.mark.parametrize("model", ["file", "gemma-4-31B"])
def test_a_plan_is_made_without_torch(base: Path, model: str) -> None:
    ran = run("plan", str(base) if model == "file" else model, "--context", "64")
    assert (ran.code, ran.imported & SLOW) == (0, set())
    assert "predicted peak" in ran.out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_of_the_computer(options: list[str]) -> None:
    ran = run("info", "--cpu", *options)
    assert (ran.code, ran.imported) == (0, set())
    assert "portable" in ran.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--context", "99999999"], "context is 99999999"),
        (["--system", "be kind"], "no chat template"),
        (["--think"], "no chat template"),
    ],
)
def test_options_that_do_not_fit_the_model_are_told_before_it_is_loaded(
    base: Path, options: list[str], told: str
) -> None:
    ran = run("run", str(base), "hello", *options)
    assert (ran.code, ran.imported & SLOW) == (2, set())
    assert told in ran.err


def test_kernels_that_cannot_run_here_are_refused_by_name(base: Path) -> None:
    for arguments in (["info", "--cpu"], ["info", str(base)], ["run", str(base), "hello"]):
        ran = run(*arguments, POCKETGEM_KERNELS="abacus")
        assert (ran.code, "torch" in ran.imported) == (2, False)
        assert "POCKETGEM_KERNELS='abacus' is not possible here: there is no such set; it can be " in ran.err
    assert run("--help", POCKETGEM_KERNELS="abacus").code == 0


def test_a_number_of_threads_is_passed_on(base: Path) -> None:
    ran = run("run", str(base), "hello", "--max-tokens", "2", "--threads", "1", "-q")
    assert ran.code == 0
    assert "torch" in ran.imported  # which shows that this file would notice it
