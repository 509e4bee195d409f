"""What a server was told on its command line. No torch, no HTTP."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from pocketgem.errors import InputError
from pocketgem.serve.keys import Keys

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and doors of a server. The defaults suit one person's laptop.

    host, port            where it listens; port 0 takes a free one
    keys                  API keys; none: everybody who reaches the port may ask
    allow_hosts           names this server goes by, beside loopback's and its address: what a Host header may say
    allow_origins         web pages of other origins that may call it, "*" for all
    max_body              bytes of one request
    max_bodies            bytes of all requests that are being read
    max_requests          requests that are being answered or wait for it; more get 429
    max_connections       open connections; more are closed at once
    requests_per_minute   for each key, or each address where there are no keys; None: no limit
    header_seconds        for the whole head of a request; body_seconds: for its whole body
    stall_seconds         how long a client may read nothing of what is sent to it
    comment_seconds       a stream that has nothing to say sends a comment this often
    drain_seconds         how long requests may go on after SIGTERM
    allow_remote_media    whether images and the like are fetched from http addresses that a request names
    thinking              whether models think first when a request does not say
    ready_seconds         a server with work that made no step for so long is not ready
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=Keys)
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    max_body: int = 32 * MIB
    max_bodies: int = 256 * MIB
    max_requests: int = 128
    max_connections: int = 4096
    requests_per_minute: int | None = None
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    stall_seconds: float = 60.0
    comment_seconds: float = 15.0
    drain_seconds: float = 30.0
    allow_remote_media: bool = False
    thinking: bool = False
    ready_seconds: float = 120.0

    def check(self, *, open_to_all: bool = False) -> None:
        """Raises InputError for a server that would be open to strangers."""
        if not is_loopback(self.host) and not self.keys and not open_to_all:
            raise InputError(
                f"--host {self.host}: other machines could use this server, and it has no keys; "
                "give --api-key-file, or --open-to-network-without-key if that is what you want"
            )
        if "*" in self.allow_origins and not self.keys:
            raise InputError("--allow-origin '*' lets every web page call this server: it needs --api-key-file")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen at."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
