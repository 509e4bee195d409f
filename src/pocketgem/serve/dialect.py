"""What every dialect of a chat API has in common: a request that was read, and what a stream is made of.

A dialect is a module with the same four names:

    read(body) -> Asked                     its JSON, checked; raises FieldError
    Stream(asked, stamp)                    .start() .push(update) .fail(status, message) -> what to send
    whole(asked, stamp, updates) -> dict    the same answer at once; raises RunError for a run that was cut off
    error(status, message, field) -> dict   the body of a refusal
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pocketgem.serve.job import ChatJob, Reading


@dataclass(frozen=True)
class Sent:
    """One server-sent event. ``data`` is an object, or a text to send as it stands."""

    event: str | None
    data: Mapping[str, object] | str

    @property
    def body(self) -> str:
        """What follows ``data: `` on the wire; one line."""
        return self.data if isinstance(self.data, str) else to_json(self.data)


@dataclass(frozen=True)
class Comment:
    """A line that starts with a colon on the wire; every reader of server-sent events skips it."""

    text: str


Out = Sent | Comment


@dataclass(frozen=True)
class Stamp:
    """What makes one answer different from another. The same stamp and updates give the same answer.

    id       of letters and digits, random, so that nobody can guess another's
    created  Unix seconds
    piece    the bytes of a token (``Tokenizer.piece``), for the alternatives of log-probabilities
    """

    id: str
    created: int
    piece: Callable[[int], bytes] | None = None


@dataclass(frozen=True)
class Asked:
    """A request of any dialect.

    usage     whether the stream ends with a count of tokens
    progress  whether the stream tells in events of its own how far the prompt was read, not in comments alone
    ignored   fields that were given and mean nothing here; the answer names them
    echo      what the answer repeats of the request (Responses)
    keep      the conversation to remember with the answer (Responses); None: nothing
    summary   whether thoughts are shown as a summary (Responses)
    """

    job: ChatJob
    usage: bool = True
    progress: bool = False
    ignored: tuple[str, ...] = ()
    echo: Mapping[str, object] = field(default_factory=dict)
    keep: tuple[Mapping[str, object], ...] | None = None
    summary: bool = False


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))  # not made for each token


def to_json(value: object) -> str:
    """JSON on one line, as UTF-8 text. Numbers that JSON does not have become null."""
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(finite(value))


def progress(reading: Reading) -> dict[str, object]:
    """How far the prompt was read. ``seconds_left`` is null while nothing tells."""
    left = reading.seconds_left
    return {
        "prompt_tokens_read": reading.read,
        "prompt_tokens": reading.total,
        "cached_tokens": reading.reused,
        "seconds_left": None if left is None else round(left, 2),
    }


def progress_comment(reading: Reading) -> Comment:
    return Comment(f"progress {to_json(progress(reading))}")


def finite(value: object) -> object:
    """A copy with null for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
