"""Where output goes: answers to stdout as they come, everything else to stderr, bars only where somebody watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pocketgem.cli.common import harmless, one_line, size_text

SHORT_WAIT = 1.0  # seconds without a bar
LONG_PROMPT = 512  # tokens: from here on the bar appears at once
THOUGHT_STYLE = NOTE_STYLE = "dim"


class Screen:
    """Both streams of one program. ``quiet`` leaves only answers and errors; ``silent`` not even answers."""

    def __init__(
        self, *, quiet: bool = False, silent: bool = False, out: TextIO | None = None, err: Console | None = None
    ) -> None:
        self.out = sys.stdout if out is None else out
        self.err = Console(stderr=True, markup=False, highlight=False, emoji=False) if err is None else err
        self.quiet, self.silent = quiet or silent, silent
        self._unfinished: Literal["out", "err"] | None = None  # whose line has no end yet

    def content(self, text: str) -> None:
        """A piece of the answer, as it comes."""
        if not text or self.silent:
            return
        if self._unfinished == "err":
            self.end()
        self.out.write(harmless(text) if self.out.isatty() else text)
        self.out.flush()
        self._unfinished = None if text.endswith("\n") else "out"

    def thought(self, text: str) -> None:
        """A piece of what the model thinks before it answers."""
        if not text or self.quiet:
            return
        if self._unfinished == "out":
            self.end()
        self.err.print(Text(harmless(text), style=THOUGHT_STYLE), end="", soft_wrap=True)
        self._unfinished = None if text.endswith("\n") else "err"

    def note(self, line: str) -> None:
        """One line beside the answer."""
        if not self.quiet:
            self.say(line)

    def say(self, line: str) -> None:
        """One line on stderr, even when quiet: an answer to the person, or an error."""
        self.end()
        self._print(Text(one_line(line), style=NOTE_STYLE))

    def rows(self, rows: Mapping[str, str]) -> None:
        """Two columns on stderr."""
        self.end()
        table = Table.grid(padding=(0, 2))
        for name, meaning in rows.items():
            table.add_row(Text(one_line(name), style=NOTE_STYLE), Text(one_line(meaning), style=NOTE_STYLE))
        self._print(table)

    def table(self, table: Table) -> None:
        """Columns on stderr, unless quiet."""
        if not self.quiet:
            self.end()
            self._print(table)

    def _print(self, what: RenderableType) -> None:
        """Wrapped between words for a person, in one line for a file."""
        self.err.print(what, soft_wrap=not self.err.is_terminal)

    def end(self) -> None:
        """Finish the line that is open, if one is."""
        if self._unfinished == "out":
            self.out.write("\n")
            self.out.flush()
        elif self._unfinished == "err":
            self.err.print()
        self._unfinished = None

    def waiting(self, label: str, unit: Literal["bytes", "tokens"]) -> Waiting:
        """A bar for something that may take long."""
        return Waiting(self.err, label, unit, enabled=self.err.file.isatty() and not self.quiet)


class Waiting:
    """A bar that shows itself only after a second, or at once for many tokens. Call it with (done, in all)."""

    def __init__(self, console: Console, label: str, unit: Literal["bytes", "tokens"], *, enabled: bool) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[amount]}"))
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(one_line(label), total=None, amount="")
        self._unit = unit
        self._enabled, self._shown = enabled, False
        self._lock = threading.Lock()
        self._timer = threading.Timer(SHORT_WAIT, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if self._enabled:
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, done: int, total: int) -> None:
        if self._enabled:
            shown = size_text if self._unit == "bytes" else "{:,}".format
            amount = f"{shown(done)} of {shown(total)}"
            self._progress.update(self._task, completed=done, total=total, amount=amount)
            if self._unit == "tokens" and total > LONG_PROMPT:
                self._show()

    def _show(self) -> None:
        with self._lock:
            if self._enabled:
                self._progress.start()
                self._shown = True

    def close(self) -> None:
        """Take the bar away. Calling it again does nothing."""
        with self._lock:
            self._enabled = False
            self._timer.cancel()
            if self._shown:
                self._shown = False
                self._progress.stop()
