"""The papers of the house say what is so: README's commands run, versions agree, public names exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

import pocketgem
from tests.test_cli_serve import started

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's empty caches, and what a clone has for the commands."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.mark.weights
def test_the_readmes_python_runs_as_written(home: Path) -> None:
    (code,) = (block for block in blocks("python") if "gemma-3-270m" in block)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100


@pytest.mark.weights
@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-4-26B-A4B"])
def test_the_readmes_commands_run_as_written(home: Path, name: str) -> None:
    every = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pocketgem")]
    lines = [line for line in every if name in line and "--vs" not in line]  # those need llama.cpp, minutes to build
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1] == "serve":
            serves(words[2:])
            continue
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=home)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() or done.stderr.strip()  # what writes a file says so beside the output


def serves(words: list[str]) -> None:
    """``pocketgem serve`` answers, on a port that is free; it would go on without end."""
    with started(*words) as process:
        assert process.url, "".join(process.said)
        assert httpx.post(f"{process.url}/v1/completions", json={"prompt": "One"}, timeout=60).status_code == 200


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changes, re.MULTILINE)
    assert newest is not None
    assert project["version"] == pocketgem.__version__ == newest[1]


def test_public_names_exist() -> None:  # their order is ruff's business
    for name in pocketgem.__all__:
        assert getattr(pocketgem, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pocketgem.nothing  # noqa: B018 - the access is the test


def test_every_file_the_architecture_page_names_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = page.split("```")[1]
    for name in set(re.findall(r"\b([a-z_0-9]+\.py)\b", drawing)):
        assert list((ROOT / "src").rglob(name)), f"docs/architecture.md names {name}, which does not exist"
