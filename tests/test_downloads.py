"""Downloads against a hub of our own on this machine: a cut one is resumed, a damaged one is refused and removed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli_models import save_model

REPO, COMMIT = "someone/model", "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.cli import main
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # what was received of a piece is lost: 10 MB are more than all
open_checkpoint(resolve("someone/model"))
sys.exit(main(["verify", "someone/model"]))
"""


class Hub(ThreadingHTTPServer):
    """A repository's files; ``cut`` ends the first answer for the weights in the middle, ``damage`` alters a byte."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.cut = self.damage = False
        self.ranges: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            files = self.server.files.items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files]
            told = json.dumps(tree if "/tree/" in self.path else info).encode()
            return self.answer(200, told, {"Content-Type": "application/json"})
        name = self.path.rpartition("/")[2]
        if name not in self.server.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.file(name, self.server.files[name])

    def file(self, name: str, content: bytes) -> None:
        large = name.endswith(".safetensors")
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        etag = hashlib.sha256(content).hexdigest() if large else git
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large and self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if wanted := self.headers.get("Range"):
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], headers)
        cut = large and self.server.cut and self.command == "GET"
        self.server.cut = self.server.cut and not cut
        self.answer(200, content, headers, send=len(content) // 2 if cut else None)

    def answer(self, status: int, content: bytes, headers: dict[str, str], send: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:send])
        self.close_connection = self.close_connection or send is not None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(save_model(tmp_path / "repo"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if "HF_" not in key and "_proxy" not in key.lower()}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)


def test_a_cut_download_is_resumed_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.cut = True
    done = download(hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    half = len(hub.files["model.safetensors"]) // 2
    (wanted,) = hub.ranges
    assert half - (1 << 16) < int(wanted.removeprefix("bytes=").rstrip("-")) <= half


def test_a_damaged_download_is_refused_removed_and_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    hub.damage = True
    done = download(hub, tmp_path / "home")
    assert done.returncode == 1
    assert "model.safetensors arrived damaged" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    hub.damage = False
    assert download(hub, tmp_path / "home").returncode == 0


def test_damage_in_the_cache_is_seen_by_verify(hub: Hub, tmp_path: Path) -> None:
    assert download(hub, tmp_path / "home").returncode == 0
    (weights,) = (tmp_path / "home").rglob("*.safetensors")
    blob = Path(os.path.realpath(weights))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    done = download(hub, tmp_path / "home")
    assert done.returncode == 1
    assert "model.safetensors: changed" in done.stdout
