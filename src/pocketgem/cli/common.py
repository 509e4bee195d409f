"""What every verb shares: how text that others wrote and numbers are shown, and how an error ends it all.

Exit codes: 0 done, 1 the run failed, 2 the input is bad, 130 Ctrl-C, 141 nobody reads the output any more.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import traceback
from typing import NoReturn, cast

import typer

from pocketgem.errors import InputError, PocketgemError

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

# What typer raises for a wrong command line; it moved between click and typer, this name did not.
UsageError = cast(type[Exception], typer.BadParameter.__base__)
HELP = {"help_option_names": ["-h", "--help"]}

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
# In one line also tab and newline, what reorders text or breaks lines in Unicode, and bytes that were not UTF-8.
_NOT_ONE_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """The text with control characters spelt out, so that a terminal obeys none of them."""
    return _CONTROL.sub(_spelt, text)


def one_line(text: object) -> str:
    """The same for a name or a message, which must also stay in its line."""
    return _NOT_ONE_LINE.sub(_spelt, str(text))


def _spelt(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def count_text(number: int) -> str:
    """Parameters for a person: 435.9 M, 4.63 G."""
    return _scaled(number, "")


def size_text(number: int) -> str:
    """Bytes for a person, in powers of ten: 241.3 MB."""
    return _scaled(number, "B")


def _scaled(number: float, unit: str) -> str:
    for prefix, digits in (("", 0), ("k", 1), ("M", 1)):
        if round(number, digits) < 1000:
            return f"{number:.{digits}f} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.2f} G{unit}"


def refuse(message: str) -> NoReturn:
    """End with a wrong command line."""
    raise UsageError(message)


def prepare_streams() -> None:
    """Let no character stop the output: what the locale cannot write is spelt out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ended(error: BaseException, *, as_json: bool) -> int:
    """Say what ended the program, in one line on stderr, and return the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if os.environ.get("POCKETGEM_DEBUG") == "1":
        traceback.print_exception(error)
    print(_report(error) if as_json else f"error: {explained(error)}", file=sys.stderr)
    return BAD_INPUT if isinstance(error, InputError | UsageError) else FAILED


def explained(error: BaseException) -> str:
    """An error as one line for a person."""
    if isinstance(error, PocketgemError):
        return one_line(error)
    if isinstance(error, UsageError):
        return one_line(_usage(error))
    if isinstance(error, OSError):
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    first = next(iter(str(error).strip().splitlines()), "")[:300]
    if isinstance(error, RuntimeError):  # torch's, which go on for lines
        return one_line(first or type(error).__name__)
    return one_line(f"{type(error).__name__}: {first} (a fault of pocketgem; POCKETGEM_DEBUG=1 shows where)")


def _usage(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    return f"{message} See: {context.command_path} --help" if context else str(message)


def _report(error: BaseException) -> str:
    return json.dumps({"error": {"type": type(error).__name__, "message": explained(error)}})


def _drop_output() -> None:
    """Point stdout nowhere, so that Python does not complain once more when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no file behind it
        sys.stdout = io.StringIO()
