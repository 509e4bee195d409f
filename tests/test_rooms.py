"""Imports run one way through the house: a module may import its own room and rooms lower in this list, no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pocketgem

HOUSE = Path(pocketgem.__file__).parent
FLOORS: dict[str, int] = {
    "errors": 0,
    "config": 1, "kernels": 1, "sizes": 1, "subtitles": 1,
    "checkpoint": 2,
    "memory": 3,
    "model": 4,
    "engine": 5, "media": 5, "text": 5,
    "adapters": 6, "answers": 6, "parts": 6,
    "flight": 7, "senses": 7,
    "reader": 8, "opening": 8, "measure": 8,
    "llm": 9,
    "service": 10, "info": 10, "bench": 10, "convert": 10, "pointing": 10, "speech": 10, "tune": 10,
    "serve": 11, "rebase": 11,
    "cli": 12,
    "__init__": 13, "__main__": 13,
}  # fmt: skip
FOREIGN = {"transformers", "sentencepiece"}  # oracles of the tests, never of a run


def modules() -> list[Path]:
    return sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(HOUSE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names a module imports, wherever the import stands in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" if module == "pocketgem" else module for alias in node.names)


def own_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("pocketgem.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOUSE)))
def test_no_import_runs_up_or_across(path: Path) -> None:
    room = room_of(path)
    for other in own_rooms(path) - {room}:
        assert other in FLOORS, f"{path.name} imports {other}, a room this list does not know"
        assert FLOORS[other] < FLOORS[room], f"{room}/{path.name} must not import {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOUSE)))
def test_no_module_imports_an_oracle(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(FOREIGN)


def test_scheduling_speaks_integers_only() -> None:
    for name in ("request.py", "scheduler.py", "prefix.py"):
        assert "torch" not in set(imports(HOUSE / "engine" / name)), name


def test_modules_within_a_room_form_no_circle() -> None:
    graph = {_dotted(path): {name for name in imports(path) if name.startswith("pocketgem.")} for path in modules()}
    for start in graph:
        assert start not in _reachable(graph, start), f"{start} imports itself by a detour"


def _dotted(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name in graph and name not in seen:
            seen.add(name)
            todo += graph[name]
    return seen
