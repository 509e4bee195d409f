"""API keys: read from a file, kept as hashes, compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pocketgem.errors import InputError

MIN_LENGTH, MAX_LENGTH = 16, 512  # characters of a key
MAX_KEYS = 1000
MAX_FILE = 1 << 20


@dataclass(frozen=True)
class Keys:
    """Names and SHA-256 digests of the keys. The keys themselves are not kept."""

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, keys: Iterable[tuple[str, str]]) -> Keys:
        """From (name, key) pairs."""
        return cls(tuple((name, _digest(key.encode())) for name, key in keys))

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """A key a line, or a name and a key; empty lines and those that begin with # are left out.

        Raises InputError for a file that cannot be read, without keys, or with one that is too short.
        """
        return cls.of(_named(path, _lines(path)))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def name_of(self, given: bytes) -> str | None:
        """The name of a key, None for one that is not known. Takes as long for every answer."""
        digest, found = _digest(given), None
        for name, known in self.digests:
            if hmac.compare_digest(known, digest):
                found = name
        return found


def given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """What a request offers: ``Authorization: Bearer``, ``x-api-key``, or the password of ``Authorization: Basic``."""
    found = []
    for name, value in headers:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(rest.strip())
            elif scheme.lower() == b"basic":
                found.append(_password(rest.strip()))
    return found


def _password(encoded: bytes) -> bytes:
    """A browser asks its person for a name and a password; the password is the key."""
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: the API keys cannot be read: {error.strerror}") from error
    try:
        text = content[:MAX_FILE].decode("ascii")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: API keys are plain ASCII; bad byte at offset {error.start}") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _named(path: Path, lines: list[str]) -> Iterable[tuple[str, str]]:
    if not 1 <= len(lines) <= MAX_KEYS:
        raise InputError(f"{path}: holds {len(lines)} API keys, expected 1 to {MAX_KEYS}, one a line")
    for number, line in enumerate(lines, 1):
        *name, key = line.split()
        if len(name) > 1 or not MIN_LENGTH <= len(key) <= MAX_LENGTH:
            raise InputError(
                f"{path}: entry {number} must be a key of {MIN_LENGTH} to {MAX_LENGTH} characters, "
                'or a name and a key; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        yield (name[0] if name else f"key-{number}"), key
