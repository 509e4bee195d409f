"""``pocketgem serve --ray`` as a process, with two replicas of a tiny model: needs ``pip install "pocketgem[ray]"``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocketgem.cli import main
from tests.cli_models import TEMPLATE, save_model
from tests.serving import events_of, wait_for

pytest.importorskip("ray", reason='needs Ray: pip install "pocketgem[ray]"')

KEY = "a-key-of-enough-letters"
PATIENCE = 120.0  # seconds; Ray takes twenty to start on a busy machine
ASKED = {"max_tokens": 6, "temperature": 0}


@dataclass
class Cluster:
    """A server with its replicas."""

    program: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        found = re.search(r"serving at (http://\S+);", "".join(self.said))
        return found[1] if found else ""

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"x-api-key": KEY}, timeout=60, **more)

    def listen(self) -> None:
        assert self.program.stderr is not None
        self.said.extend(self.program.stderr)


@contextmanager
def started(folder: Path, temporary: Path, *options: str) -> Iterator[Cluster]:
    keys = temporary / "keys"
    keys.write_text(f"me {KEY}\n")
    command = [sys.executable, "-m", "pocketgem", "serve", str(folder), "--ray", "--replicas", "2", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    program = subprocess.Popen(
        [*command, "--api-key-file", str(keys), *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    cluster = Cluster(program)
    thread = threading.Thread(target=cluster.listen)
    thread.start()
    try:
        wait_for(lambda: cluster.url or program.poll() is not None, PATIENCE)
        assert cluster.url, "".join(cluster.said)
        yield cluster
    finally:
        program.terminate()  # killed at once, it would leave Ray's helpers for a minute
        with suppress(subprocess.TimeoutExpired):
            program.wait(60)
        program.kill()
        program.wait()
        thread.join()
        assert program.stderr is not None
        program.stderr.close()


def family(root: int) -> dict[int, str]:
    """This process and all it started, by Linux's table of processes."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if (rest := stat.rpartition(")")[2].split())[0] != "Z":
            parents[int(entry.name)], names[int(entry.name)] = int(rest[1]), name.replace(b"\0", b" ").decode()
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names.get(pid, "") for pid in found if pid in parents}


def replicas_of(cluster: Cluster) -> list[int]:
    return [pid for pid, name in family(cluster.program.pid).items() if "ServeReplica" in name]


def listening(pids: set[int]) -> set[str]:
    """Addresses at which these processes listen, as Linux writes them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                found.add(columns[1].rpartition(":")[0])
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("ray") / "twin", template=TEMPLATE)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory() as short, started(folder, Path(short)) as cluster:  # sockets want a short path
        yield cluster


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_stream_is_the_answer_in_pieces(cluster: Cluster) -> None:
    asked = {**ASKED, "messages": conversation("hello there")}
    with cluster.client() as http:
        whole = http.post("/v1/chat/completions", json=asked)
        stream = http.post("/v1/chat/completions", json={**asked, "stream": True})
    assert whole.status_code == 200, whole.text
    chunks = [data for _, data in events_of(stream.text) if data != "[DONE]"]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == whole.json()["choices"][0]["message"]["content"] != ""
    assert sum(map(bool, pieces)) == 6  # token by token, not all at its end


def test_a_growing_conversation_stays_with_its_past(cluster: Cluster) -> None:
    with cluster.client() as http:
        for number in range(4):
            messages = conversation(f"conversation {number} that grows from turn to turn")
            for turn in range(3):
                answer = http.post("/v1/chat/completions", json={**ASKED, "messages": messages}).json()
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached > 50 if turn else cached < 40
                messages += [answer["choices"][0]["message"], *conversation(f"turn {turn}")]


def test_both_replicas_answer(cluster: Cluster) -> None:
    with cluster.client() as http:
        for number in range(12):
            http.post("/v1/chat/completions", json={**ASKED, "messages": conversation(f"{number} of twelve")})
        text = http.get("/metrics").text
    assert len(set(re.findall(r'pocketgem_answers_total\{[^}]*replica="(\w+)"', text))) == 2


def test_a_response_is_found_where_it_is_kept(cluster: Cluster) -> None:
    with cluster.client() as http:
        for number in range(4):
            asked = {"input": f"the {number}th", "max_output_tokens": 4}
            first = http.post("/v1/responses", json=asked).json()
            second = http.post("/v1/responses", json={**asked, "input": "more", "previous_response_id": first["id"]})
            assert second.status_code == 200, second.text
            assert http.get(f"/v1/responses/{first['id']}").json() == first


def test_a_client_that_leaves_ends_its_request(cluster: Cluster) -> None:
    asked = {**ASKED, "messages": conversation("on and on"), "max_tokens": 30_000, "stream": True}  # greedy: no end
    with cluster.client() as http:
        with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            pieces = answer.iter_text()  # held: httpx closes the connection with it
            next(pieces)
            wait_for(lambda: sum(running(http)) == 1)
        wait_for(lambda: sum(running(http)) == 0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's table of processes")
def test_a_replica_has_one_heap(cluster: Cluster) -> None:
    found = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in replicas_of(cluster)]
    assert [b"MALLOC_ARENA_MAX=1" in variables for variables in found] == [True, True]


def running(http: httpx.Client) -> list[float]:
    return [float(value) for value in re.findall(r"pocketgem_running\{.*\} (\S+)", http.get("/metrics").text)]


def test_nothing_gets_in_without_a_key(cluster: Cluster) -> None:
    with httpx.Client(base_url=cluster.url, timeout=60) as http:
        assert http.post("/v1/chat/completions", json={"messages": conversation("hi")}).status_code == 401
        assert http.get("/metrics").status_code == 401
        assert http.get("/health").status_code == 200


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_only_this_machine_can_reach_any_of_its_ports(cluster: Cluster) -> None:
    addresses = listening(set(family(cluster.program.pid)))
    assert addresses
    assert addresses <= LOOPBACK


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's table of processes")
def test_conversations_of_a_killed_replica_go_on_elsewhere(cluster: Cluster) -> None:
    before = replicas_of(cluster)
    assert len(before) == 2
    talks = [conversation(f"talk {number} goes on") for number in range(6)]
    with cluster.client() as http:

        def turn(talk: list[dict[str, str]]) -> None:
            answer = http.post("/v1/chat/completions", json={**ASKED, "messages": talk})
            assert answer.status_code == 200, answer.text
            talk += [answer.json()["choices"][0]["message"], *conversation("and then")]

        for talk in talks:
            turn(talk)
        os.kill(before[0], signal.SIGKILL)
        for talk in talks:
            turn(talk)
        wait_for(lambda: len(set(replicas_of(cluster)) - {before[0]}) == 2, PATIENCE)  # Ray starts another
        wait_for(lambda: http.get("/metrics").text.count("pocketgem_model_loaded{") == 2, PATIENCE)
        for talk in talks:
            turn(talk)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's table of processes")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_all_that_it_started(folder: Path, how: signal.Signals) -> None:
    with tempfile.TemporaryDirectory() as short, started(folder, Path(short), "--drain-seconds", "20") as cluster:
        everyone = family(cluster.program.pid)
        assert any("raylet" in name for name in everyone.values())
        with cluster.client() as http:
            asked = {"messages": conversation("a last word"), "max_tokens": 100, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
                pieces = answer.iter_text()
                next(pieces)
                cluster.program.send_signal(how)
                if how is signal.SIGTERM:
                    assert "".join(pieces).endswith("data: [DONE]\n\n")  # it is answered to the end
        assert cluster.program.wait(60) == (0 if how is signal.SIGTERM else -how)
        works = ("ray::Serve", "raylet", "gcs_server")
        wait_for(lambda: not any(word in name for name in left_of(everyone).values() for word in works), 30)
        if how is signal.SIGKILL:  # two helpers of Ray see it after a minute; a test does not wait so long
            for pid in left_of(everyone):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not left_of(everyone), 30)
        if how is signal.SIGTERM:
            assert not list(Path(short).glob("pocketgem-*"))


def left_of(everyone: dict[int, str]) -> dict[int, str]:
    """Those that still run; a number may have been given to another process meanwhile."""
    return {pid: name for pid, name in everyone.items() if name and family(pid).get(pid) == name}


def test_a_model_that_does_not_load_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "none"), "--ray", "--port", "0"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["serve", str(folder), "--ray", "--ray-address", "ray://elsewhere:10001"]) == 2
    assert "HOST:PORT or auto" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["serve", str(folder), "--ray", "--ray-address", f"127.0.0.1:{port}"]) == 2
    assert f"nothing answers at 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", str(folder), "--ray", "--ray-address", "auto:much"]) == 2
