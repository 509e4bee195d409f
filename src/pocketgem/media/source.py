"""Where a medium's bytes come from: a data URL, a file of this machine, or, only where it is allowed, the network."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pocketgem.checkpoint.tensor import open_regular
from pocketgem.errors import MediaError
from pocketgem.media.limits import MIB

_TYPE = re.compile(
    r"data:([A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60})?((?:;[A-Za-z0-9=\"'_.+ -]{1,100}){0,8})\Z"
)
_LONGEST_HEAD = 1024
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:")


@dataclass(frozen=True)
class Source:
    """``data``: the file. declared: the media type that came with it, of which Decoder sees whether it is true."""

    data: bytes
    declared: str | None = None


def from_data_url(url: str, most: int) -> Source:
    """The bytes of ``data:TYPE;base64,...``, at most ``most``. Raises MediaError.

    Strict: base64 with its padding and nothing between; one file, whatever commas would promise more.
    """
    head, comma, _ = url[: _LONGEST_HEAD + 1].partition(",")
    found = _TYPE.match(head) if comma else None
    if found is None:
        raise MediaError("a data URL must begin with data:TYPE;base64, and nothing else")
    if not found[2].lower().endswith(";base64"):
        raise MediaError("a data URL must be base64: data:TYPE;base64,...")
    count = len(url) - len(head) - 1
    if count // 4 * 3 > most + 2:
        raise MediaError(f"a data URL of {count * 3 / 4 / MIB:.0f} MiB; {most / MIB:.0f} are taken")
    return Source(from_base64(url[len(head) + 1 :], most), found[1])


def from_base64(text: str, most: int) -> bytes:
    """At most ``most`` bytes. Raises MediaError."""
    if len(text) // 4 * 3 > most + 2:
        raise MediaError(f"base64 of {len(text) * 3 / 4 / MIB:.0f} MiB; {most / MIB:.0f} are taken")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: beyond ASCII
        raise MediaError(f"not base64 ({error})") from error
    if len(data) > most:
        raise MediaError(f"{len(data)} bytes; {most} are taken")
    return data


def from_file(path: str | os.PathLike[str], most: int) -> Source:
    """A regular file's bytes, for the person whose machine this is: a server must never pass a client's name here.

    Raises MediaError for a missing, unreadable or special file, and one above ``most`` bytes.
    """
    descriptor = open_regular(Path(path), MediaError)
    with open(descriptor, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise MediaError(f"{path}: more than {most / MIB:.0f} MiB: make it smaller")
    return Source(data)


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def refuse_scheme(url: str) -> MediaError:
    """What to answer about a URL that is neither data nor fetched. It is never repeated in full."""
    found = _SCHEME.match(url[:40])
    scheme = f"{found[0]} URLs are" if found else "this is"
    return MediaError(f"{scheme} not taken here; send the file itself as a data URL: data:TYPE;base64,...")
