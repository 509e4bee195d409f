"""What a decoder process and its owner say to each other: a kind, a length, so many bytes. JSON and raw bytes only.

The owner asks; the decoder reads the file piece by piece from the owner, and answers with a header, bytes and an end,
or with the reason why not. Both sides check every length: either end may be a stranger.
"""

from __future__ import annotations

import json
import struct
from typing import IO

HEAD = struct.Struct(">cI")  # kind, length of the body
SPAN = struct.Struct(">QI")  # of the file: from where, how many bytes
MOST = 1 << 20  # bytes of a body
MOST_JSON = 1 << 14

READY = b"+"  # decoder: it has started; JSON, how it is confined
ASK = b"?"  # owner: JSON, what to do
READ = b"R"  # decoder: a SPAN of the file
BYTES = b"B"  # the file's, pixels or samples
HEADER = b"H"  # decoder: JSON, what the next bytes are
DONE = b"."
REFUSED = b"!"  # decoder: JSON, why the file is not taken


class WireError(Exception):
    """The other side is gone or does not keep to this."""


def send(pipe: IO[bytes], kind: bytes, body: bytes | memoryview = b"") -> None:
    try:
        pipe.write(HEAD.pack(kind, len(body)))
        pipe.write(body)
        pipe.flush()
    except (OSError, ValueError) as error:  # ValueError: the pipe was closed here
        raise WireError(str(error)) from error


def receive(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    """Kind and body of the next message."""
    kind, length = HEAD.unpack(_exactly(pipe, HEAD.size))
    if length > MOST:
        raise WireError(f"a message of {length} bytes")
    return kind, _exactly(pipe, length)


def pack_json(value: dict[str, object]) -> bytes:
    return json.dumps(value, allow_nan=False).encode("ascii")


def unpack_json(body: bytes) -> dict[str, object]:
    if len(body) > MOST_JSON:
        raise WireError(f"{len(body)} bytes of JSON")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError("no JSON") from error
    if not isinstance(value, dict):
        raise WireError("no JSON object")
    return value


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    try:
        data = pipe.read(count)
    except (OSError, ValueError) as error:
        raise WireError(str(error)) from error
    if len(data) < count:
        raise WireError("the other side is gone")
    return data
