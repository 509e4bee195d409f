"""One strict parser for URLs of the network. What it returns is what is connected to: nobody parses the text again."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from pocketgem.errors import MediaError

LONGEST = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*)?(?:\?(?P<query>[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*))?\Z"
)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")
_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\Z")
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Url:
    """host: lower case, a name or an address without brackets. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"


def parse(text: str) -> Url:
    """Raises MediaError for anything but a plain ``http(s)://host[:port][/path][?query]``.

    No user and password, no backslash, no blank, nothing beyond ASCII, no fragment; an IPv4 address only as four
    decimal numbers.
    """
    found = _URL.match(text) if len(text) <= LONGEST else None
    if found is None:
        raise MediaError(
            "this URL is not taken: it must be http(s)://host/path in plain ASCII, without user or fragment"
        )
    scheme = found["scheme"]
    port = int(found["port"] or PORTS[scheme])
    if not 1 <= port <= 65_535:
        raise MediaError(f"this URL is not taken: there is no port {port}")
    target = (found["path"] or "/") + (f"?{found['query']}" if found["query"] is not None else "")
    return Url(scheme, _host(found["host"]), port, target)


def follow(url: Url, location: str) -> Url:
    """Where a redirect leads: a whole URL, or a path on the same host. Raises MediaError for other forms."""
    if location.startswith("/") and not location.startswith("//"):
        return parse(str(Url(url.scheme, url.host, url.port, "")) + location)
    new = parse(location)
    if url.scheme == "https" and new.scheme == "http":
        raise MediaError("a redirect leaves https for http")
    return new


def _host(text: str) -> str:
    if text.startswith("["):
        return _address(text[1:-1], 6)
    labels = text.lower().split(".")
    if _NUMBER.match(labels[-1]):  # what some would read as a number, in decimal, octal or hexadecimal
        return _address(text, 4)
    if not all(_LABEL.match(label) for label in labels):
        raise MediaError("this URL is not taken: its host is no name")
    return ".".join(labels)


def _address(text: str, version: int) -> str:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.version != version or (version == 4 and str(parsed) != text):
        raise MediaError("this URL is not taken: its host is no address as it is usually written")
    return str(parsed)
