"""What a person types: lines with editing and a history where the system has readline, and blocks of several lines."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

PROMPT, MORE = ">>> ", "... "
BLOCK = '"""'
HISTORY_LINES = 1000


def read_message(read: Callable[[str], str]) -> str:
    """One line, or several: a backslash at the end goes on, three double quotes begin and end a block.

    ``read`` takes what to prompt with; what it raises (EOFError, KeyboardInterrupt) goes through.
    """
    line = read(PROMPT)
    if line.lstrip().startswith(BLOCK):
        return _block(line.lstrip().removeprefix(BLOCK), read)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read(MORE))
    return "\n".join(lines)


def _block(first: str, read: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(BLOCK):
        lines.append(read(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
    return "\n".join(lines).strip("\n")


class Lines:
    """``input`` with a history, kept from one conversation to the next while used as a context manager."""

    def __init__(self) -> None:
        self._readline = _readline()
        self._file = _history_file()

    def read(self, prompt: str) -> str:
        return input(prompt)

    def __enter__(self) -> Self:
        if self._readline is not None and self._file is not None:
            try:
                self._readline.read_history_file(self._file)
            except (OSError, ValueError):  # none yet, or not one: begin anew
                self._readline.clear_history()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._readline is not None and self._file is not None:
            self._readline.set_history_length(HISTORY_LINES)
            write_whole(self._file, self._readline.write_history_file)


def _readline() -> ModuleType | None:
    try:
        return importlib.import_module("readline")  # importing it is what gives ``input`` its editing
    except ImportError:  # Windows
        return None


def _history_file() -> Path | None:
    """In the person's state folder; None where there is no home or nothing can be written."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or "")
        folder = (state if state.is_absolute() else Path.home() / ".local" / "state") / "pocketgem"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return None
    return folder / "history"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file that only this person can read, and put it in place complete or not at all.

    Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        write(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
