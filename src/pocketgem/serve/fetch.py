"""Media from http addresses, where the server was told to fetch them: from public addresses only, within limits.

An address is looked up once, every answer is checked, and the connection goes to the one that was checked: a name that
changes its mind in between changes nothing. Redirects are not followed. Nothing of the request but its path is sent.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

from pocketgem.errors import MediaError

MAX_BYTES = 32 << 20
SECONDS = 10.0  # for all of it
PORTS = {"http": 80, "https": 443}
_PIECE = 64 << 10
_TRANSLATED = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


def fetch(url: str, *, most: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What lies at an address. Blocks. Raises MediaError that tells nothing of the server's network."""
    parts = _parsed(url)
    until = time.monotonic() + seconds
    try:
        with closing(_connected(parts, until)) as connection, closing(connection.sock) as sock:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "pocketgem", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise MediaError(
                    f"the address answered {answer.status}; only 200 is taken, and no redirect is followed"
                )
            return _read(answer, sock, most, until)
    except (OSError, http.client.HTTPException, ValueError):
        raise MediaError("the address could not be fetched") from None


def _parsed(url: str) -> SplitResult:
    """The parts of an address that mean the same to every reader. Raises MediaError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise MediaError("the address cannot be read") from None
    plain = url.isascii() and url.isprintable() and not set(url) & set(' \\"<>^`{|}')
    if parts.scheme not in PORTS or not plain or not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise MediaError("the address must be http or https, in ASCII, with a plain host name")
    if port not in (None, PORTS[parts.scheme]):
        raise MediaError("only the usual ports of http and https are asked")
    return parts


def _connected(parts: SplitResult, until: float) -> http.client.HTTPConnection:
    """A connection to the address that was checked, which goes by the name that was given."""
    host, port = parts.hostname or "", PORTS[parts.scheme]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise MediaError("the address is not one of the public internet")
    raw = socket.create_connection((addresses[0], port), timeout=_left(until))
    connection = http.client.HTTPConnection(host, port, timeout=_left(until))
    try:
        connection.sock = raw
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
    return connection


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and stands for no other."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


def _read(answer: http.client.HTTPResponse, sock: socket.socket, most: int, until: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        sock.settimeout(_left(until))
        piece = answer.read1(_PIECE)
        if not piece:
            return b"".join(pieces)
        size += len(piece)
        if size > most:
            raise MediaError(f"what lies at the address is larger than {most >> 20} MiB")
        pieces.append(piece)


def _left(until: float) -> float:
    """Seconds that are left. Raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
