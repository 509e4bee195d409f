"""The command line from outside: what stands on stdout and stderr, and the exit code. No terminal is needed here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pocketgem
import pocketgem.cli.run
from pocketgem import LLM, CheckpointError
from pocketgem.cli import main
from pocketgem.cli.common import harmless, one_line
from tests.cli_models import TEMPLATE, save_model

PYTHON = [sys.executable, "-m", "pocketgem"]


@dataclass(frozen=True)
class Ran:
    """One finished command line."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line in this process, with bytes on stdin."""

    def call(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "chat", template=TEMPLATE)


def assert_one_line(ran: Ran, code: int, *words: str) -> None:
    """The command failed as it should: an exit code, nothing on stdout, one line on stderr with ``words`` in it."""
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert len(ran.err) < 400
    for word in words:
        assert word in ran.err


# ---- help and version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_the_verbs(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "run " in ran.out
    assert "info " in ran.out


@pytest.mark.parametrize("verb", ["run", "info"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_verb_has_help_without_box_art(cli: Cli, verb: str, flag: str) -> None:
    ran = cli(verb, flag)
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: pocketgem {verb}" in ran.out
    assert ran.out.isascii()
    assert max(map(len, ran.out.splitlines())) <= 80


def test_version(cli: Cli) -> None:
    assert cli("--version") == Ran(0, f"pocketgem {pocketgem.__version__}\n", "")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from pocketgem.cli import main; main(['run', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0


# ---- one prompt ----------------------------------------------------------------------------------------------------


def test_text_goes_to_stdout_and_everything_else_to_stderr(cli: Cli, base: Path) -> None:
    ran = cli("run", base, "hello", "--max-tokens", 12)
    assert ran.code == 0
    assert ran.out == LLM.load(base).generate("hello", max_tokens=12).text + "\n"
    assert ran.err.startswith("12 tokens, ")
    assert "tokens/s decode" in ran.err
    assert ran.err.count("\n") == 1


def test_quiet_leaves_only_the_answer(cli: Cli, base: Path) -> None:
    ran = cli("run", base, "hello", "--max-tokens", 3, "-q")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.strip()


def test_plain_text_ends_by_default(cli: Cli, base: Path) -> None:
    """The tiny model would go on until its context of 32,768 is full."""
    assert json.loads(cli("run", base, "hello", "--json").out)["stats"]["completion_tokens"] == 256


def test_json_is_one_object_and_nothing_else(cli: Cli, base: Path) -> None:
    ran = cli("run", base, "hello", "--max-tokens", 4, "--json", "--logprobs", 2)
    said, expected = json.loads(ran.out), LLM.load(base).generate("hello", max_tokens=4, logprobs=2)
    assert (ran.code, ran.err) == (0, "")
    assert said["text"] == expected.text
    assert said["ids"] == list(expected.ids)
    assert said["finish"] == "length"
    assert [one["id"] for one in said["logprobs"]] == said["ids"]
    assert [len(one["top"]) for one in said["logprobs"]] == [2] * 4
    assert said["stats"]["prompt_tokens"] == len("hello") + 1
    assert said["stats"]["decode_tokens_per_second"] > 0


def test_sampling_options_reach_the_model(cli: Cli, base: Path) -> None:
    options = ["--temperature", "1.5", "--top-k", "50", "--seed", "3", "--max-tokens", "12"]
    one, two = (cli("run", base, "hello", "--json", *options) for _ in range(2))
    expected = LLM.load(base).generate("hello", temperature=1.5, top_k=50, seed=3, max_tokens=12)
    assert json.loads(one.out)["ids"] == json.loads(two.out)["ids"] == list(expected.ids)


def test_stop_may_be_given_more_than_once(cli: Cli, base: Path) -> None:
    whole = LLM.load(base).generate("hello", max_tokens=12).text
    ran = cli("run", base, "hello", "--json", "--max-tokens", 12, "--stop", "\x00\x00", "--stop", whole[3:6])
    said = json.loads(ran.out)
    assert said["finish"] == "stop"
    assert said["text"] == whole[: whole.index(whole[3:6])]


def test_context_threads_and_dtype_are_taken(cli: Cli, base: Path) -> None:
    threads = torch.get_num_threads()
    try:
        ran = cli("run", base, "hello", "--json", "--context", 10, "--threads", 1, "--dtype", "float32", "--offline")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert json.loads(ran.out)["stats"]["completion_tokens"] == 10 - len("hello") - 1


@pytest.mark.parametrize(("options", "kept"), [([], True), (["--keep-packed"], True), (["--no-keep-packed"], False)])
def test_keeping_packed_weights_can_be_refused(
    cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], kept: bool
) -> None:
    asked: list[object] = []

    def note(*arguments: object, **given: object) -> None:
        asked.append(given["keep_packed"])
        raise CheckpointError("enough")

    monkeypatch.setattr(LLM, "load", note)
    assert_one_line(cli("run", base, "hello", *options), 2, "enough")
    assert asked == [kept]


@pytest.mark.parametrize(("stdin", "prompt"), [(b"hi\n", "hi"), (b"hi", "hi"), (b"a\n\n", "a\n"), (b"a\r\n", "a")])
@pytest.mark.parametrize("dash", ["", "-"])
def test_prompt_from_stdin_loses_one_line_break(cli: Cli, base: Path, stdin: bytes, prompt: str, dash: str) -> None:
    ran = cli("run", base, *dash, "--max-tokens", 5, "--json", stdin=stdin)
    assert json.loads(ran.out)["ids"] == list(LLM.load(base).generate(prompt, max_tokens=5).ids)


def test_a_prompt_argument_leaves_stdin_alone(cli: Cli, base: Path) -> None:
    assert cli("run", base, "hello", "--max-tokens", 1, stdin=b"\xff\xff").code == 0


# ---- chat, by template ---------------------------------------------------------------------------------------------


def test_a_model_with_a_template_answers_a_turn(cli: Cli, chat: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    expected = LLM.load(chat).chat(messages, thinking=True, max_tokens=8)
    ran = cli("run", chat, "hello", "--system", "Be brief.", "--think", "--max-tokens", 8, "--json")
    said = json.loads(ran.out)
    assert (ran.code, said["content"], said["thought"]) == (0, expected.content, expected.thought)
    assert said["stats"]["prompt_tokens"] == expected.stats.prompt_tokens
    assert cli("run", chat, "hello", "--max-tokens", 8).out != ran.out


def test_raw_continues_plain_text_in_spite_of_a_template(cli: Cli, chat: Path) -> None:
    ran = cli("run", chat, "hello", "--raw", "--max-tokens", 8, "--json")
    assert json.loads(ran.out)["ids"] == list(LLM.load(chat).generate("hello", max_tokens=8).ids)


@pytest.mark.parametrize("options", [["--system", "x"], ["--think"]])
def test_a_base_model_has_no_turns(cli: Cli, base: Path, options: list[str]) -> None:
    assert_one_line(cli("run", base, "hello", *options), 2, "no chat template")


def test_thinking_needs_a_place_in_the_template(cli: Cli, tmp_path: Path) -> None:
    path = save_model(tmp_path / "plain", template="{{ messages[0]['content'] }}")
    assert_one_line(cli("run", path, "hello", "--think"), 2, "no place for thinking")


# ---- bad input: one line, exit code 2 ------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path, base: Path) -> Callable[[str], Path]:
    """Models with something wrong, by what it is."""
    makers: dict[str, Callable[[Path], Path]] = {
        "missing path": lambda path: path / "nothing.gguf",
        "directory without weights": _empty_folder,
        "only a config": lambda path: _unlink(save_model(path), "model.safetensors"),
        "unknown architecture": lambda path: _patched(save_model(path), '"gemma3_text"', '"llama"'),
        "missing tensors": lambda path: save_model(path, without={"layers.1.mlp.up_proj.weight"}),
        "no tokenizer": lambda path: _unlink(save_model(path), "tokenizer.json"),
        "truncated weights": lambda path: _truncated(save_model(path) / "model.safetensors").parent,
    }
    return lambda kind: makers[kind](tmp_path / "model")


def _empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def _unlink(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _patched(folder: Path, old: str, new: str) -> Path:
    config = folder / "config.json"
    config.write_text(config.read_text().replace(old, new))
    return folder


def _truncated(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:-100])
    return file


BROKEN = ["missing path", "directory without weights", "only a config", "unknown architecture", "missing tensors",
          "no tokenizer", "truncated weights"]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_model_ends_in_one_line(cli: Cli, broken: Callable[[str], Path], kind: str) -> None:
    path = broken(kind)
    assert_one_line(cli("run", path, "hello"), 2, str(path))


@pytest.fixture(scope="module")
def gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The base model as a GGUF file's bytes."""
    pytest.importorskip("gguf")
    from pocketgem.checkpoint.export import export_gguf
    from pocketgem.checkpoint.load import open_checkpoint
    from pocketgem.checkpoint.resolve import resolve
    from tests.cli_models import vocabulary

    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    export_gguf(open_checkpoint(resolve(base)), path, vocabulary=vocabulary())
    return path.read_bytes()


def test_a_gguf_file_runs_as_its_folder_does(cli: Cli, gguf: bytes, base: Path, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(gguf)
    ran = cli("run", tmp_path / "base.gguf", "hello", "--max-tokens", 6, "-q", "--dtype", "bfloat16")
    assert ran == cli("run", base, "hello", "--max-tokens", 6, "-q", "--dtype", "bfloat16")


@pytest.mark.parametrize("kept", [0, 3, 30, 5000, -1], ids=lambda kept: f"{kept} bytes")
def test_a_truncated_gguf_ends_in_one_line(cli: Cli, gguf: bytes, tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf[:kept])
    assert_one_line(cli("run", tmp_path / "cut.gguf", "hello"), 2, "cut.gguf")


@pytest.mark.parametrize("bit", [0, 33, 70, 130, 64 * 8 + 3])
def test_a_flipped_bit_in_the_header_ends_in_one_line(cli: Cli, gguf: bytes, tmp_path: Path, bit: int) -> None:
    damaged = bytearray(gguf)
    damaged[bit // 8] ^= 1 << bit % 8
    (tmp_path / "bit.gguf").write_bytes(damaged)
    assert_one_line(cli("run", tmp_path / "bit.gguf", "hello"), 2)


def test_an_empty_prompt(cli: Cli, base: Path) -> None:
    assert_one_line(cli("run", base, ""), 2, "empty")
    assert_one_line(cli("run", base), 2, "empty")
    assert_one_line(cli("run", base, stdin=b"\n"), 2, "empty")


def test_bytes_that_are_not_utf8(cli: Cli, base: Path) -> None:
    assert_one_line(cli("run", base, stdin=b"good \xff bad"), 2, "UTF-8", "offset 5")


def test_a_prompt_over_the_limits(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(cli("run", base, "hello", "--context", 5), 2, "6 tokens", "5")
    monkeypatch.setattr(pocketgem.cli.run, "MAX_PROMPT", 1 << 20)
    assert_one_line(cli("run", base, stdin=b"a" * ((1 << 20) + 1)), 2, "1 MiB")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--temperature", "hot"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "-1"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--top-p", "1.5"], "top_p"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--seed", "1" + "0" * 30], "seed"),
        (["--stop", ""], "stop"),
        (["--logprobs", "99", "--json"], "logprobs"),
        (["--logprobs", "1"], "--json"),
        (["--threads", "0"], "threads"),
        (["--context", "1"], "context"),
        (["--context", "40000"], "context"),
        (["--dtype", "int3"], "dtype"),
        (["--raw", "--think"], "--raw"),
        (["--no-such-option"], "--no-such-option"),
        (["surplus"], "surplus"),
    ],
)
def test_a_bad_option_value_ends_in_one_line(cli: Cli, base: Path, options: list[str], word: str) -> None:
    ran = cli("run", base, "hello", *options)
    assert_one_line(Ran(ran.code, ran.out, ran.err) if "--json" not in options else _as_text(ran), 2, word)


def _as_text(ran: Ran) -> Ran:
    return Ran(ran.code, ran.out, f"error: {json.loads(ran.err)['error']['message']}\n")


def test_bad_options_are_found_before_the_model_is(cli: Cli) -> None:
    assert_one_line(cli("run", "no-such-model", "hello", "--top-p", 7), 2, "top_p")


def test_a_missing_argument_and_an_unknown_verb(cli: Cli) -> None:
    assert_one_line(cli("run"), 2, "pocketgem run --help")
    assert_one_line(cli("fly"), 2, "fly")
    assert_one_line(cli("info"), 2, "--cpu")


def test_with_json_an_error_is_an_object_on_stderr(cli: Cli, base: Path) -> None:
    ran = cli("run", base, "", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert json.loads(ran.err)["error"]["type"] == "PromptError"
    assert json.loads(cli("run", "--json").err)["error"]["message"]
    assert cli("run", base, "--max-tokens", 1, "--", "--json").err.startswith("1 token,")  # there it is a prompt


# ---- failed runs: exit code 1, and what else can end one -----------------------------------------------------------


def test_a_model_that_computes_nonsense_is_a_failed_run(cli: Cli, tmp_path: Path) -> None:
    path = save_model(tmp_path / "nan", change=lambda weights: weights * torch.nan)
    ran = cli("run", path, "hello")
    assert_one_line(ran, 1)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RuntimeError("first line\nsecond line"), 1, "error: first line\n"),
        (MemoryError(), 1, "error: not enough memory\n"),
        (OSError(28, "No space left on device", "/x\x1by"), 1, "error: /x\\x1by: No space left on device\n"),
        (pocketgem.RunError("two\nlines \x1b[31m"), 1, "error: two\\nlines \\x1b[31m\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (a fault of pocketgem; POCKETGEM_DEBUG=1 shows where)\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_line_and_code(
    cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(LLM, "load", fail)
    assert cli("run", str(base), "hello") == Ran(code, "", line)


def test_debug_shows_the_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETGEM_DEBUG", "1")
    ran = cli("run", "no-such-model.gguf", "hello")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert "CheckpointError" in ran.err


# ---- a process of its own ------------------------------------------------------------------------------------------


def test_the_module_runs_and_speaks_utf8(base: Path) -> None:
    command = [*PYTHON, "run", str(base), "--max-tokens", "4"]
    done = subprocess.run(command, input=b"h\xc3\xa9", capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1)
    assert done.stdout.decode().strip()


def test_no_traceback_and_the_exit_code_of_a_process() -> None:
    done = subprocess.run([*PYTHON, "run", "nothing.gguf", "hello"], capture_output=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: nothing.gguf")
    assert done.stderr.count(b"\n") == 1


def test_a_closed_pipe_is_no_error(base: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*PYTHON, "run", str(base), "hello", "--max-tokens", "50"]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


# ---- text from files on a terminal ---------------------------------------------------------------------------------


def test_control_characters_are_spelt_out() -> None:
    assert harmless("a\tb\n\x1b[2J\x07\x9b\r\x7fé🙂") == "a\tb\n\\x1b[2J\\x07\\x9b\\r\\x7fé🙂"
    assert one_line("a\nb\u202e\udc80[bold]\u2028") == "a\\nb\\u202e\\udc80[bold]\\u2028"


# ---- the real model ------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_model_writes_text(cli: Cli, real_model_path: Path) -> None:
    ran = cli("run", real_model_path, "The capital of France is", "--max-tokens", 12)
    assert ran.code == 0
    assert len(ran.out.split()) > 3
    assert ran.out.isprintable() or "\n" in ran.out
