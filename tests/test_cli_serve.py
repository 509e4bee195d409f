"""``pocketgem serve`` as a process: what it refuses, how it starts, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from pocketgem.cli import main
from pocketgem.cli.serve import aliases_of, named
from tests.cli_models import TEMPLATE, save_model
from tests.serving import post_head, wait_for
from tests.test_start import run

KEY = "a-key-of-enough-letters"
LONG = json.dumps({"prompt": "abc", "max_tokens": 20_000}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("cli") / "twin", template=TEMPLATE)


@dataclass
class Process:
    """A running server."""

    program: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    held: socket.socket | None = None  # a client that waits

    @property
    def url(self) -> str:
        found = re.search(r"serving at (http://\S+);", "".join(self.said))
        return found[1] if found else ""

    def listen(self) -> None:
        assert self.program.stderr is not None
        self.said.extend(self.program.stderr)


@contextmanager
def started(*arguments: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "pocketgem", "serve", *arguments, "--port", "0", "--threads", "1"]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    process = Process(program)
    thread = threading.Thread(target=process.listen)
    thread.start()
    try:
        wait_for(lambda: process.url or program.poll() is not None, 60)
        yield process
    finally:
        program.kill()
        program.wait()
        thread.join()
        if process.held is not None:
            process.held.close()
        assert program.stderr is not None
        program.stderr.close()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line is answered with."""
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("arguments", [["--help"], ["model", "--host", "0.0.0.0"], ["a", "--max-body", "much"]])
def test_help_and_wrong_command_lines_wait_for_nothing(arguments: list[str]) -> None:
    ran = run("serve", *arguments)
    assert (ran.code, ran.imported) == (0 if arguments == ["--help"] else 2, set())


def test_wrong_command_lines_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["model", "--host", "0.0.0.0"], "--api-key-file"),
        (["model", "--host", "0.0.0.0"], "--open-to-network-without-key"),
        (["model", "--allow-origin", "*"], "--api-key-file"),
        (["model", "--api-key-file", str(tmp_path / "none")], "cannot be read"),
        (["a", "a"], "two models have the name"),
        (["a", "--alias", "b"], "--alias"),
        (["a", "--port", "70000"], "65535"),
        (["a", "--max-body", "much"], "much"),
        ([], "MODEL"),
    ):
        assert told in refused(capsys, *arguments), arguments


def test_replicas_without_ray_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(capsys, "model", "--ray")
    assert said == "error: --ray needs Ray, which is not installed: pip install 'pocketgem[ray]'\n"
    assert "--ray" in refused(capsys, "model", "--replicas", "3")
    assert "--ray" in refused(capsys, "model", "--ray-address", "auto")
    assert "--api-key-file" in refused(capsys, "model", "--ray", "--host", "0.0.0.0")


def test_a_port_that_is_taken_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, str(folder), "--port", str(port))
    assert said == f"error: port {port} on 127.0.0.1 is taken by another program; give --port\n"


def test_a_missing_model_is_told_before_anything_is_served(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, str(folder), "no-such-model.gguf", "--port", "0")
    assert "no-such-model.gguf: no such file" in said


def test_keys_are_read_with_care(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    for content, told in (
        ("", "holds 0 API keys"),
        ("short\n", "entry 1"),
        ("a b c\n", "entry 1"),
        ("k\u00e9y" * 9, "ASCII"),
    ):
        file.write_text(content, encoding="utf-8")
        said = refused(capsys, "model", "--api-key-file", str(file))
        assert told in said
        assert "short" not in said
    file.write_text(f"# who has them\n\nme {KEY}\n{KEY}2\n")
    assert "no such file" in refused(capsys, "model", "--api-key-file", str(file), "--port", "0")


def test_names_of_models(folder: Path) -> None:
    assert named([str(folder), "gemma-3-270m", "google/gemma-4-E2B", "small=gemma-3-270m"]) == {
        "twin": str(folder),
        "gemma-3-270m": "gemma-3-270m",
        "google/gemma-4-E2B": "google/gemma-4-E2B",
        "small": "gemma-3-270m",
    }
    assert aliases_of(["gpt-4o=small"], {"small": "x"}) == {"gpt-4o": "small"}


def test_it_serves_drains_and_ends_well(folder: Path, tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log.jsonl"
    keys.write_text(f"me {KEY}\n")
    options = ["--api-key-file", str(keys), "--log-file", str(log), "--alias", "gpt=twin", "--drain-seconds", "20"]
    with started(str(folder), *options) as process:
        with httpx.Client(base_url=process.url, headers={"x-api-key": KEY}, timeout=30) as http:
            body = {"model": "gpt", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            streamed = {"prompt": "abc", "max_tokens": 300, "stream": True}
            with http.stream("POST", "/v1/completions", json=streamed) as answer:
                chunks = answer.iter_text()
                next(chunks)
                process.program.send_signal(signal.SIGTERM)
                rest = "".join(chunks)  # it is answered to the end
            assert rest.endswith("data: [DONE]\n\n")
        assert process.program.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["key"] for line in lines if line["event"] == "request"] == ["me", "me"]
    assert log.stat().st_mode & 0o077 == 0
    assert KEY not in log.read_text() + "".join(process.said)


def test_what_does_not_end_in_time_is_ended(folder: Path) -> None:
    with started(str(folder), "--drain-seconds", "1") as process:
        _begin_a_long_answer(process)
        process.program.send_signal(signal.SIGTERM)
        assert process.program.wait(30) == 0


def test_a_second_interrupt_ends_at_once(folder: Path) -> None:
    with started(str(folder), "--drain-seconds", "60") as process:
        _begin_a_long_answer(process)
        process.program.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.program.wait(1)
        process.program.send_signal(signal.SIGINT)
        assert process.program.wait(30) == 130
    assert "Traceback" not in "".join(process.said)


def _begin_a_long_answer(process: Process) -> None:
    port = int(process.url.rpartition(":")[2])
    process.held = socket.create_connection(("127.0.0.1", port))
    process.held.sendall(post_head("/v1/completions", len(LONG)) + LONG)
    with httpx.Client(base_url=process.url, timeout=30) as http:
        wait_for(lambda: 'pocketgem_running{model="twin"} 1.0' in http.get("/metrics").text)
