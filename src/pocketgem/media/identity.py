"""A name for what was decoded and how it was prepared: equal names mean equal media, so results are kept under it."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass

import numpy as np


def content_key(*parts: object) -> bytes:
    """32 bytes (SHA-256) of everything given: media, parameters of their preparation, a tower's identity.

    Types, shapes, kinds of numbers, order and borders count: bytes that are equal in another form have another name.
    Raises TypeError for anything that is not made of arrays, text, bytes, numbers, tuples and dataclasses.
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.digest()


def _feed(digest: hashlib._Hash, part: object) -> None:
    """A tag, a length, the content; of what has parts, their number and each of them."""
    if isinstance(part, np.ndarray):
        return _feed_array(digest, part)
    if isinstance(part, tuple | list):
        _tag(digest, "sequence", len(part))
        for item in part:
            _feed(digest, item)
    elif is_dataclass(part) and not isinstance(part, type):
        _feed(
            digest, (f"dataclass {type(part).__qualname__}", *((f.name, getattr(part, f.name)) for f in fields(part)))
        )
    else:
        raw = _plain(part)
        _tag(digest, type(part).__name__, len(raw))
        digest.update(raw)
    return None


def _feed_array(digest: hashlib._Hash, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    if array.dtype.hasobject:
        raise TypeError("an array of objects has no content")
    _tag(digest, f"array {array.dtype.str} {array.shape}", array.nbytes)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _plain(part: object) -> bytes:
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    if isinstance(part, str):
        return part.encode("utf-8", "surrogatepass")
    if part is None or isinstance(part, bool | int | float):
        return repr(part).encode("ascii")
    raise TypeError(f"{type(part).__name__} has no content that is known here")


def _tag(digest: hashlib._Hash, kind: str, length: int) -> None:
    digest.update(f"{len(kind)} {kind} {length} ".encode())
