"""The registry: names, history, pruning, processes that are killed, processes side by side, links."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pocketgem.adapters.manifest import Manifest, manifest_of, read_manifest, to_json
from pocketgem.adapters.peft import WEIGHTS, open_adapter
from pocketgem.adapters.registry import Entry, Registry, default_folder
from pocketgem.adapters.where import where_is
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.errors import CheckpointError, FormatError, InputError
from tests.adapter_files import made_up, saved
from tests.test_parity import load
from tests.twins import make_twin


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Manifest]]:
    """Three adapters of one base, with their manifests beside them."""
    folder = tmp_path_factory.mktemp("sources")
    twin = make_twin("gemma3", folder / "twin")
    model, checkpoint = load(twin.folder), open_checkpoint(resolve(twin.folder))
    found = []
    for seed in (1, 2, 3):
        adapter = saved(made_up(model, choose=lambda name: "q_proj" in name, seed=seed), folder / str(seed))
        manifest = manifest_of(model, checkpoint, adapter)
        (folder / str(seed) / "manifest.json").write_bytes(to_json(manifest))
        found.append((folder / str(seed), manifest))
    return found


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_a_name_stands_for_what_was_added(registry: Registry, sources: list[tuple[Path, Manifest]]) -> None:
    assert registry.entries() == []
    entry = registry.add("calls", *sources[0])
    assert registry.find("calls") == entry
    assert entry.manifest == sources[0][1]
    assert open_adapter(entry.folder).identity == entry.manifest.identity
    assert registry.add("calls", *sources[0]) == entry, "adding it again changes nothing"
    with pytest.raises(InputError, match="there are calls"):
        registry.find("nothing")


def test_history_and_back(registry: Registry, sources: list[tuple[Path, Manifest]]) -> None:
    first, second, third = (registry.add("calls", *source) for source in sources)
    assert third.before == (second.identity, first.identity)
    assert registry.rollback("calls").identity == second.identity
    assert registry.rollback("calls").identity == first.identity
    with pytest.raises(InputError, match="no earlier"):
        registry.rollback("calls")
    assert registry.find("calls").after == (second.identity, third.identity)
    assert registry.point("calls", third.identity[:12]).identity == third.identity
    assert {*registry.find("calls").before} == {first.identity, second.identity}
    assert registry.history("calls")[0].identity == third.identity
    assert len(registry.history("calls")) == 3
    with pytest.raises(InputError, match="0 objects"):
        registry.point("calls", "0" * 64)


def test_prune_leaves_what_a_name_or_its_history_needs(
    registry: Registry, sources: list[tuple[Path, Manifest]]
) -> None:
    first, second, third = (registry.add("calls", *source) for source in sources)
    kept = registry.add("other", *sources[0])
    assert kept.identity == first.identity
    assert registry.prune(remove=True) == []
    assert [one.identity for one in registry.prune(keep=0)] == [second.identity]
    assert second.folder.is_dir(), "without remove nothing goes"
    found = registry.prune(keep=0, remove=True)
    assert found[0].nbytes > 1000
    assert not second.folder.exists()
    assert registry.find("calls").before == ()
    registry.remove("other")
    assert [one.identity for one in registry.prune(remove=True)] == [first.identity]
    assert open_adapter(registry.find("calls").folder).identity == third.manifest.identity


def test_links_are_not_followed(registry: Registry, sources: list[tuple[Path, Manifest]], tmp_path: Path) -> None:
    registry.add("calls", *sources[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    objects = registry.folder / "objects"
    (objects / ("a" * 64)).symlink_to(tmp_path / "mine")
    (objects / f".{'b' * 64}.1.gone").symlink_to(tmp_path / "mine")
    (objects / ("c" * 64)).mkdir()
    (objects / ("c" * 64) / "in").symlink_to(tmp_path / "mine")
    (registry.folder / "names" / "evil.json").symlink_to(tmp_path / "mine" / "letter")
    registry.prune(remove=True)
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    assert not (objects / ("c" * 64)).exists()
    assert [one.name for one in registry.entries()] == ["calls"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "objects").symlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is a link"):
        Registry(tmp_path / "other").add("calls", *sources[0])


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a:b", ".hidden", "x" * 65, "a\n"])
def test_names_lead_nowhere(registry: Registry, sources: list[tuple[Path, Manifest]], name: str) -> None:
    with pytest.raises(InputError, match="no name"):
        registry.add(name, *sources[0])
    with pytest.raises(InputError):
        registry.find(name)


def test_a_damaged_object_is_replaced_when_it_is_added_again(
    registry: Registry, sources: list[tuple[Path, Manifest]]
) -> None:
    entry = registry.add("calls", *sources[0])
    (entry.folder / WEIGHTS).write_bytes(b"")
    registry.add("calls", *sources[0])
    assert open_adapter(entry.folder).identity == entry.manifest.identity
    (registry.folder / "names" / "calls.json").write_text('{"identity": ["../../etc"]}')
    with pytest.raises(FormatError, match="identity"):
        registry.find("calls")


def test_where_is(registry: Registry, sources: list[tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.add("calls", *sources[0])
    assert where_is("calls", registry) == entry.folder
    assert where_is(str(sources[1][0]), registry) == sources[1][0]
    with pytest.raises(InputError, match=r"no such adapter; there are calls"):
        where_is(str(sources[1][0]), registry, paths=False)
    with pytest.raises(InputError, match="no such adapter or folder"):
        where_is("nothing", registry)
    monkeypatch.setenv("POCKETGEM_ADAPTERS", str(registry.folder))
    assert default_folder() == registry.folder
    assert where_is("calls", paths=False) == entry.folder


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def writers(registry: Registry, sources: list[tuple[Path, Manifest]]) -> Iterator[Callable[[str, Path], int]]:
    """Starts a writer for a name and a log; the process that starts them goes at the end."""
    command = [sys.executable, "-m", "tests.registry_worker", str(registry.folder)]
    starter = subprocess.Popen(
        [*command, *(str(path) for path, _ in sources)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def start(name: str, log: Path) -> int:
        assert starter.stdin is not None
        assert starter.stdout is not None
        starter.stdin.write(f"{name} {log}\n")
        starter.stdin.flush()
        return int(starter.stdout.readline())

    yield start
    starter.communicate()


def promised(log: Path) -> list[str]:
    """What a writer logged; its last line may be cut."""
    return [line for line in log.read_text().splitlines() if len(line) == 64] if log.exists() else []


def check_whole(entry: Entry) -> None:
    assert open_adapter(entry.folder).identity == entry.manifest.identity == read_manifest(entry.folder).identity


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_any_moment_two_writers_lose_nothing(
    registry: Registry, sources: list[tuple[Path, Manifest]], writers: Callable[[str, Path], int], tmp_path: Path
) -> None:
    registry.add("steady", *sources[0])
    draw, written = random.Random(5), 0
    for turn in range(6):
        logs = {name: tmp_path / f"{name}{turn}" for name in ("one", "two")}
        running = {name: writers(name, log) for name, log in logs.items()}
        for name in draw.sample(["one", "two"], 2):
            time.sleep(draw.uniform(0.02, 0.3))
            os.kill(running[name], signal.SIGKILL)
            if said := promised(logs[name]):
                written += len(said)
                check_whole(registry.find(name))
        for entry in registry.entries():
            check_whole(entry)
        assert registry.find("steady").manifest == sources[0][1]
    assert written > 10, "nothing was going on"
    registry.prune(keep=0, remove=True)
    left = {path.name for path in (registry.folder / "objects").iterdir()}
    assert left == {entry.identity for entry in registry.entries()}, "something half made was left"
    assert {path.suffix for path in (registry.folder / "names").iterdir()} == {".json"}
