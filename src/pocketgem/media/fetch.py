"""A file of the network, for a server that was told it may: off unless somebody makes a Fetch.

A name is resolved once for each hop, every address it has must be public, and the connection goes to an address that
was looked at. Redirects are hops like the first. Bytes, time and redirects are capped.
"""

from __future__ import annotations

import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pocketgem.errors import MediaError
from pocketgem.media.addresses import is_public
from pocketgem.media.limits import MIB
from pocketgem.media.source import Source
from pocketgem.media.url import Url, follow, parse

REDIRECTS = (301, 302, 303, 307, 308)
PIECE = 1 << 16
HEADERS = {"User-Agent": "pocketgem", "Accept": "image/*, audio/*, video/*", "Accept-Encoding": "identity"}


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a name, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True)
class Fetch:
    """What may be fetched. hosts: names that are allowed, ``.example.com`` for all below one; None for any public host.

    resolver and allowed are there for tests.
    """

    hosts: frozenset[str] | None = None
    ports: frozenset[int] = frozenset((80, 443))
    seconds: float = 10.0
    redirects: int = 3
    resolver: Callable[[str, int], list[str]] = resolve
    allowed: Callable[[str], bool] = is_public

    def get(self, text: str, most: int) -> Source:
        """At most ``most`` bytes from a URL. Raises MediaError; what it says does not tell what a host answered."""
        deadline = time.monotonic() + self.seconds
        url = parse(text)
        for _ in range(self.redirects + 1):
            answer = self._hop(url, most, deadline)
            if isinstance(answer, Source):
                return answer
            url = follow(url, answer)
        raise MediaError(f"the URL redirects more than {self.redirects} times")

    def _hop(self, url: Url, most: int, deadline: float) -> Source | str:
        """The file, or where it is said to be."""
        address = self._address(url, deadline)
        try:
            with _connected(url, address, deadline) as connection:
                connection.request("GET", url.target, headers=HEADERS)
                return _read(connection.getresponse(), most)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: headers that are none
            late = time.monotonic() >= deadline
            raise MediaError(f"the URL could not be read{' in time' if late else ''}") from error

    def _address(self, url: Url, deadline: float) -> str:
        if self.hosts is not None and not any(_covers(host, url.host) for host in self.hosts):
            raise MediaError("the URL's host is not among those that may be read")
        if url.port not in self.ports:
            raise MediaError(f"the URL's port {url.port} may not be read")
        addresses = _in_time(lambda: self.resolver(url.host, url.port), deadline)
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise MediaError("the URL's host is not a public one, or has no address")
        return addresses[0]


def _covers(allowed: str, host: str) -> bool:
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed


def _in_time(call: Callable[[], list[str]], deadline: float) -> list[str]:
    """A system's resolver knows no limit of time: it is left behind when it takes too long."""
    done: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def run() -> None:
        with suppress(OSError, UnicodeError):
            return done.put(call())
        done.put([])

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise MediaError("the URL could not be read in time") from None


@contextmanager
def _connected(url: Url, address: str, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """To this very address. The socket is shut when time is up, whatever waits for it."""
    left = max(0.001, deadline - time.monotonic())
    sock = socket.create_connection((address, url.port), timeout=left)
    if url.scheme == "https":
        context = ssl.create_default_context()
        sock = context.wrap_socket(sock, server_hostname=url.host, do_handshake_on_connect=False)
    timer = threading.Timer(left, _shut, (sock,))
    timer.daemon = True
    timer.start()
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection = http.client.HTTPConnection(url.host, url.port, timeout=left)
        connection.sock = sock
        yield connection
    finally:
        timer.cancel()
        sock.close()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the socket's own, under TLS too


def _read(response: http.client.HTTPResponse, most: int) -> Source | str:
    if response.status in REDIRECTS:
        return response.headers.get("Location") or ""
    if response.status != 200:
        raise MediaError("the URL gives no file")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaError("the URL gives a packed file")  # a few bytes could become many
    held = bytearray()
    while piece := response.read1(PIECE):
        held += piece
        if len(held) > most:
            raise MediaError(f"the URL gives more than {most / MIB:.0f} MiB")
    if response.length:  # fewer than were announced
        raise MediaError("the URL gives a file that is cut short")
    return Source(bytes(held), response.headers.get("Content-Type"))
