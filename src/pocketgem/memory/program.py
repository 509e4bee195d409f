"""What a process takes before there is a model in it: the interpreter, torch and the tokenizer.

The base is measured when a plan is made, in a process of its own, because it differs by build and system; where the
system does not tell, it is a constant. What the tokenizer takes is a constant a token and a merge, measured on real
vocabularies of 262,144 tokens and 513,511 merges (Python 3.11, tokenizers 0.22, x86-64 Linux, 2026-11-25).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import dataclass

MIB = 1 << 20
# Imports of pocketgem.llm with torch 2.13 for processors only, Python 3.11, x86-64 Linux, 2026-11-25.
USUAL = 155 * MIB, 79 * MIB  # private, mapped
PATIENCE = 60.0  # seconds for the imports; a cold disk takes a few
LATER_CODE = 8 * MIB  # pages of libraries that the first run touches
LAYER_OBJECTS = 60 << 10  # Python's objects for a decoder layer
EXPERT_OBJECTS = 2 << 10  # for one matrix of an expert

TOKEN_MADE, TOKEN_KEPT = 432, 327  # bytes a token: while the tokenizer is made, and after
MERGE_MADE, MERGE_KEPT = 480, 40  # a merge
TOKEN_LISTED, MERGE_LISTED = 152, 99  # of these, what an opened checkpoint holds: the lists in the file's header
SPLIT_MADE = 384  # a merge that is found by cutting tokens, not listed
SPLITS = 1.96  # such merges a token
_ASK = "import pocketgem.llm, pocketgem.memory.program as p; print(*p.resident())"


@dataclass(frozen=True)
class Base:
    """Bytes of a process with nothing but the program in it."""

    private: int
    mapped: int
    measured: bool

    @property
    def total(self) -> int:
        return self.private + self.mapped


def status() -> dict[str, int]:
    """This process's memory by the kernel's names (VmHWM, RssAnon ...), in bytes; empty where the system has none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if line.startswith(("Vm", "Rss")))
    except OSError:
        return {}
    return {name: int(text.split()[0]) * 1024 for name, text in fields.items()}


def resident() -> tuple[int, int]:
    """(private, mapped) bytes of this process that are in memory now; zeros where the system does not tell."""
    found = status()
    return found.get("RssAnon", 0), found.get("RssFile", 0) + found.get("RssShmem", 0)


def base_here() -> Base:
    """Of this process, as it is."""
    private, mapped = resident()
    return Base(private, mapped, True) if private else Base(*USUAL, False)


def base_of_a_new_process() -> Base:
    """Of a process that has imported all that running a model takes: asked of one, which takes a second or two."""
    if not status():
        return Base(*USUAL, False)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        private, mapped = map(int, asked.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return Base(*USUAL, False)
    return Base(private, mapped, True)


def give_back() -> None:
    """Hand memory that was freed back to the system, where its allocator would keep it: after a tokenizer was made,
    50 to 80 MiB. Does nothing where the C library has no such call."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@dataclass(frozen=True)
class TextBytes:
    """Bytes of the vocabulary at work. ``made``: the most while the tokenizer is built."""

    made: int
    kept: int


def text_bytes(tokens: int, listed_merges: int | None) -> TextBytes:
    """``listed_merges``: None where the file has scores instead, and the merges are found by cutting tokens."""
    if listed_merges is None:
        merges = int(SPLITS * tokens)
        return TextBytes(tokens * TOKEN_MADE + merges * SPLIT_MADE, tokens * TOKEN_KEPT + merges * MERGE_KEPT)
    return TextBytes(tokens * TOKEN_MADE + listed_merges * MERGE_MADE, tokens * TOKEN_KEPT + listed_merges * MERGE_KEPT)


def listed_bytes(tokens: int, listed_merges: int | None) -> int:
    """What the vocabulary's lists take from a checkpoint's opening until a tokenizer was made of them."""
    return tokens * TOKEN_LISTED + (listed_merges or 0) * MERGE_LISTED
