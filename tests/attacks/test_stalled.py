"""Readers that stop reading: what they cost in memory, and that nobody else notices."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path

from pocketgem.serve.settings import Settings
from tests.scripted import Script, scripted_llm
from tests.serving import events_of, post_head, running, wait_for

READERS, BYTES_EACH = 60, 256 << 10


def resident() -> int:
    """Bytes of this process, in which the server runs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_stalled_readers_hold_little_and_others_go_on(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script(usual=None), context=512)
    body = json.dumps({"prompt": "abc", "max_tokens": 60, "stream": True, "logprobs": 20}).encode()
    usual = {"prompt": "xyz", "max_tokens": 8, "temperature": 0, "stream": True}
    with running({"m": llm}, Settings(port=0, stall_seconds=30)) as server, ExitStack() as stack:

        def read() -> list[str]:
            text = server.http.post("/v1/completions", json=usual).text
            return [data["choices"][0]["text"] for _, data in events_of(text)[:-1]]

        def stall() -> None:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(post_head("/v1/completions", len(body)) + body)

        for _ in range(20):  # so that what the engine keeps for itself is there already
            stall()
        wait_for(lambda: server.service().running)
        wait_for(server.idle, 60)
        first, before = read(), resident()
        for _ in range(READERS):
            stall()
        wait_for(lambda: server.service().running)
        assert read() == first  # beside them
        wait_for(server.idle, 60)
        assert read() == first  # while they hold their connections open
        assert (resident() - before) / READERS <= BYTES_EACH
