"""Who may knock: names in the Host header, web pages in the Origin header.

A page on the web can make a browser send requests to this machine. Two things keep them out. A page that lets its own
name point to 127.0.0.1 (DNS rebinding) gives itself away by the Host it asks for; a page of another site by its Origin.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from pocketgem.serve.settings import Settings

# No more than RFC 3986 has for names and addresses: what one reader takes for the name, no other may read differently.
_HOST = re.compile(r"(\[(?P<address>[0-9a-fA-F:.]{2,45})\]|(?P<name>[a-zA-Z0-9._-]{1,255}))(:[0-9]{1,5})?")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Doors:
    """The names and origins of one server."""

    def __init__(self, settings: Settings) -> None:
        given = {settings.host, *settings.allow_hosts}
        self.names = LOOPBACK_NAMES | {name.strip("[]").rstrip(".").lower() for name in given}
        self.everywhere = _is_unspecified(settings.host)
        if self.everywhere:
            self.names |= {socket.gethostname().lower()}
        self.origins = frozenset(origin.rstrip("/").lower() for origin in settings.allow_origins)

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server. Listening everywhere that is any address."""
        name = _name_of(host)
        return name is not None and (name in self.names or (self.everywhere and _is_address(name)))

    def allows(self, origin: str) -> bool:
        """Whether a page of another origin was let in by name."""
        return "*" in self.origins or origin.lower() in self.origins

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page comes from this server, as its browser calls it."""
        scheme, _, rest = origin.lower().partition("://")
        return scheme in ("http", "https") and rest == host.lower()


def _name_of(host: str) -> str | None:
    """The name of ``name:port``, lower case and without brackets; None for what is no host."""
    match = _HOST.fullmatch(host)
    return None if match is None else (match["address"] or match["name"]).rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    try:
        return host == "" or ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
