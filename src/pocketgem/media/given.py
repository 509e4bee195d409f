"""What a caller gives: files, and how many rows an image may become. No decoding, no torch."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from pocketgem.errors import MediaError
from pocketgem.media.patches import BUDGETS
from pocketgem.media.source import from_file

Budget = int | Literal["auto"]  # rows for one image; auto: the fewest that lose no detail
MAX_FILE = 512 << 20  # bytes; what a kind of file may have is the decoder's to say


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises MediaError for what is no readable file, or too large for any medium."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise MediaError(f"{path}: is no file")
        if facts.st_size > MAX_FILE:
            raise MediaError(f"{path}: has {facts.st_size >> 20} MiB; {MAX_FILE >> 20} are taken at most")
        return from_file(path, MAX_FILE).data  # it may have become another since
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from error


def checked_budget(value: object) -> Budget:
    """``value`` if it is a budget. Raises MediaError."""
    if value == "auto":
        return "auto"
    if type(value) is int and value in BUDGETS:
        return value
    raise MediaError(f"an image budget is {str(value)[:40]!r}; it is auto or one of {', '.join(map(str, BUDGETS))}")


def parse_budget(text: str) -> Budget:
    """``auto`` or a number, as a person writes it. Raises MediaError."""
    return checked_budget(int(text) if text.isascii() and text.isdecimal() else text)
