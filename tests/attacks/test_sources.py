"""Attacks by way of where files come from, rows N1..N5 of our list of threats: data URLs, names of files, URLs.

Nothing is connected to but two servers of these tests: one plays a public host, the other must never be asked.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pocketgem.errors import MediaError
from pocketgem.media.addresses import is_public
from pocketgem.media.fetch import Fetch
from pocketgem.media.limits import MIB
from pocketgem.media.source import from_base64, from_data_url, from_file
from pocketgem.media.url import parse

DATA_URLS = [
    "", "data:", "data:,", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,a b",
    "data:image/png;base64,a", "data:image/png;base64,====", "data:image/png;base64,YQ==YQ==",
    "data:image/png;base64,YQ==\n", " data:image/png;base64,YQ==", "data:image/png;base64,Y\u0430==",
    "data://image/png;base64,YQ==", "data:image/png;base64;x,YQ==", "data:image;base64,YQ==",
    "data:image/png" + ";a=b" * 1000 + ";base64,YQ==", "data:im\0age/png;base64,YQ==",
    "data:image/png;base64,%59%51==", "data:image/png;base64,_-_-", "data:image/png;base64,YQ==#x",
    "DATA:image/png;base64,YQ==" * 2, "http://a/", "file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("url", DATA_URLS, ids=range(len(DATA_URLS)))
def test_data_urls_are_read_strictly(url: str) -> None:
    with pytest.raises(MediaError):
        from_data_url(url, MIB)


def test_good_data_urls() -> None:
    source = from_data_url("data:image/png;base64,aGVsbG8=", 5)
    assert (source.data, source.declared) == (b"hello", "image/png")
    assert from_data_url("data:;base64,aGVsbG8=", 5).declared is None
    assert from_data_url("data:audio/webm;codecs=opus;base64,aGVsbG8=", 5).declared == "audio/webm"


def test_base64_is_bounded_before_it_is_read() -> None:
    text = "A" * (64 * MIB)
    tracemalloc.start()
    for call in (lambda: from_base64(text, MIB), lambda: from_data_url("data:image/png;base64," + text, MIB)):
        with pytest.raises(MediaError, match="are taken"):
            call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 66 * MIB  # the URL itself was put together here
    with pytest.raises(MediaError, match="6 bytes; 5 are taken"):
        from_base64("aGVsbG9v", 5)


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "to-device").symlink_to("/dev/zero")
    assert from_file(tmp_path / "good", 5).data == from_file(tmp_path / "link", 5).data == b"12345"
    with pytest.raises(MediaError, match="more than"):
        from_file(tmp_path / "good", 4)
    for name in ("pipe", "to-pipe", "to-device", ".", "missing", "a\0b", "good/x"):
        with pytest.raises(MediaError, match=r"not a regular file|cannot be opened"):
            from_file(tmp_path / name, 5)


NOT_URLS = [
    # other schemes
    "file:///etc/passwd", "gopher://127.0.0.1:70/", "ftp://example.com/a", "ws://example.com/", "//example.com/",
    "example.com", "javascript:1", "jar:http://example.com!/", "dict://localhost:11211/", "HTTP://example.com/",
    "http:example.com", "http:/x.com/",
    # one reads this host, another that
    "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http:\\\\127.0.0.1/",
    "http://a@127.0.0.1/", "http://example.com:80@127.0.0.1/", "http://user:pass@example.com/",
    "http://example.com#@127.0.0.1/", "http://example.com /", "http://exa mple.com/", "http://example.com\t/",
    "http://example.com\r\nHost: 127.0.0.1/", "http://example.com/\r\nX: y", "http://example.com/a b",
    "http://example.com\0.evil/", "http://example.com%00/", "http://example.com%2f@127.0.0.1/",
    "http://%31%32%37.0.0.1/", "http:///127.0.0.1/", "http://?x", "http://:80/", "http://", "http://[::1",
    "http://::1/", "http://[127.0.0.1]/", "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/",
    "http://example..com/", "http://.example.com/", "http://example.com./", "http://-a.com/", "http://a_b.com/",
    "http://example.com:0/", "http://example.com:65536/", "http://example.com:/x:y@/", "http://example.com:+80/",
    "http://example.com:８０/",
    # addresses in another spelling
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0x7f.0.0.1/", "http://0177.0.0.1/",
    "http://127.1/", "http://127.0.1/", "http://127.0.0.01/", "http://127.0.0.1./", "http://0/", "http://00000000/",
    "http://1.2.3.4.5/", "http://256.1.1.1/", "http://4294967297/", "http://example.0x7f/", "http://127.0.0.0x1/",
    # letters and dots that look alike
    "http://127\u30020\u30020\u30021/", "http://127\uff0e0\uff0e0\uff0e1/", "http://\u2460\u2461\u2466.0.0.1/",
    "http://ⓔxample.com/", "http://examp\u00adle.com/", "http://example\u2024com/", "http://ex\u0430mple.com/",
    "http://example.com/\u0430", "http://example.com/" + "a" * 2048,
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1", "::", "::1", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1", "2606:4700::1111%1", "nonsense", "", "1.2.3", "0x7f.1",
]  # fmt: skip


@pytest.mark.parametrize("url", NOT_URLS, ids=range(len(NOT_URLS)))
def test_urls_that_two_would_read_differently_are_read_by_nobody(url: str) -> None:
    asked: list[str] = []
    fetch = Fetch(resolver=lambda host, port: asked.append(host) or ["127.0.0.1"], allowed=lambda address: True)
    with pytest.raises(MediaError):
        fetch.get(url, MIB)
    assert not asked  # before any name was looked up


def test_the_corpus_of_urls_is_large_enough() -> None:
    assert len(NOT_URLS) + len(PRIVATE) >= 60
    assert len(set(NOT_URLS)) == len(NOT_URLS)


@pytest.mark.parametrize(
    ("url", "again"),
    [("http://example.com", "http://example.com:80/"), ("https://Example.COM:443/a?b=c:/", "https://example.com:443/a?b=c:/"),
     ("http://8.8.8.8/", "http://8.8.8.8:80/"), ("http://[2606:4700:0:0::1111]/x", "http://[2606:4700::1111]:80/x"),
     ("https://xn--bcher-kva.example/%41", "https://xn--bcher-kva.example:443/%41"), ("http://a?b", "http://a:80/?b")],
)  # fmt: skip
def test_good_urls_and_what_is_connected_to(url: str, again: str) -> None:
    assert str(parse(url)) == again
    assert parse(again) == parse(url)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    for host in ("example.com", f"[{address}]" if ":" in address else address):
        for others in ([], ["93.184.215.14"]):
            with pytest.raises(MediaError):
                Fetch(resolver=lambda *_, found=(*others, address): list(found)).get(f"http://{host}/", MIB)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::1", "172.32.0.1", "100.128.0.1"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


# Two servers on this machine: one plays a public host (127.0.0.2), the other is what must not be reached (127.0.0.1).

OUTSIDE, INSIDE = "127.0.0.2", "127.0.0.1"


class Answers(BaseHTTPRequestHandler):
    """What each path does."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        name, _, rest = self.path.removeprefix("/").partition("/")
        getattr(self, f"_{name}")(rest)

    def log_message(self, *_: object) -> None:
        pass

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()

    def _file(self, _: str) -> None:
        self._head(200, Content_Type="image/png", Content_Length="5")
        self.wfile.write(b"hello")

    def _to(self, rest: str) -> None:
        status, _, target = rest.partition("/")
        self._head(int(status), Location=base64.urlsafe_b64decode(target).decode())

    def _round(self, rest: str) -> None:
        self._head(302, Location=f"/round/{rest}x")

    def _endless(self, _: str) -> None:
        self._head(200)
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def _drip(self, _: str) -> None:
        try:
            for letter in b"HTTP/1.0 200 OK\r\nX: " + b"y" * 10_000:
                self.wfile.write(bytes([letter]))
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def _packed(self, _: str) -> None:
        self._head(200, Content_Encoding="gzip")
        self.wfile.write(zlib.compress(bytes(1 << 20)))

    def _short(self, _: str) -> None:
        self._head(200, Content_Length="50")
        self.wfile.write(b"hello")

    def _missing(self, _: str) -> None:
        self._head(404)

    def _headers(self, _: str) -> None:
        self._head(200, **{f"X{number}": "y" * 1000 for number in range(500)})


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Answers)
        self.asked: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass  # a client that leaves


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    outside, inside = Server(OUTSIDE), Server(INSIDE)
    yield outside, inside
    for server in (outside, inside):
        server.shutdown()
        server.server_close()


def fetching(outside: Server, inside: Server, **options: object) -> Fetch:
    """To whom only the first server is public, under the name it has in these tests."""
    names = {"files.example": [OUTSIDE], "inside.example": [INSIDE]}
    ports = frozenset((outside.server_port, inside.server_port))
    usual: dict[str, object] = {
        "resolver": lambda host, port: names.get(host, [host]), "allowed": lambda address: address == OUTSIDE,
        "ports": ports, "seconds": 2.0,
    }  # fmt: skip
    return Fetch(**{**usual, **options})  # type: ignore[arg-type]


def test_a_file_is_fetched_where_that_is_allowed(servers: tuple[Server, Server]) -> None:
    outside, inside = servers
    where = f"http://files.example:{outside.server_port}"
    fetch = fetching(outside, inside, hosts=frozenset(("files.example",)))
    source = fetch.get(f"{where}/file", 5)
    assert (source.data, source.declared) == (b"hello", "image/png")
    target = base64.urlsafe_b64encode(f"{where}/file".encode()).decode()
    for status in (301, 302, 303, 307, 308):
        assert fetch.get(f"{where}/to/{status}/{target}", 5).data == b"hello"
    assert outside.asked[0] == ("/file", f"files.example:{outside.server_port}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_where_nobody_may_go(servers: tuple[Server, Server], status: int) -> None:
    outside, inside = servers
    port = inside.server_port
    places = [
        f"http://{INSIDE}:{port}/file", f"http://inside.example:{port}/file", f"http://localhost:{port}/file",
        f"http://files.example@{INSIDE}:{port}/file", f"http://2130706433:{port}/file", f"//{INSIDE}:{port}/file",
        f"http://[::ffff:127.0.0.1]:{port}/file", f"\\\\{INSIDE}/file", "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd", "gopher://127.0.0.1/", "",
    ]  # fmt: skip
    for place in places:
        target = base64.urlsafe_b64encode(place.encode()).decode()
        with pytest.raises(MediaError):
            fetching(outside, inside).get(f"http://files.example:{outside.server_port}/to/{status}/{target}", MIB)
    assert len(outside.asked) == len(places)
    assert not inside.asked


def test_a_resolver_that_changes_its_mind(servers: tuple[Server, Server]) -> None:
    """The address that was looked at is the one that is connected to, and there is one look for each hop."""
    outside, inside = servers
    answers = iter([[OUTSIDE], [INSIDE], [INSIDE], [OUTSIDE, INSIDE], [INSIDE, OUTSIDE]])
    fetch = fetching(outside, inside, resolver=lambda host, port: next(answers))
    url = f"http://files.example:{outside.server_port}/file"
    assert fetch.get(url, MIB).data == b"hello"
    for _ in range(4):
        with pytest.raises(MediaError, match="not a public one"):
            fetch.get(url, MIB)
    assert not inside.asked


@pytest.mark.parametrize(
    ("path", "told"),
    [("endless", "more than 1 MiB"), ("drip", "in time"), ("packed", "packed"), ("short", "cut short|could not"),
     ("missing", "gives no file"), ("round/", "redirects more than 3 times"), ("headers", "could not be read")],
)  # fmt: skip
def test_servers_that_waste_time_and_memory(servers: tuple[Server, Server], path: str, told: str) -> None:
    outside, inside = servers
    start = time.monotonic()
    with pytest.raises(MediaError, match=told):
        fetching(outside, inside, seconds=0.5).get(f"http://files.example:{outside.server_port}/{path}", MIB)
    assert time.monotonic() - start <= 1.5


def test_a_host_that_says_nothing_and_a_resolver_that_never_ends(servers: tuple[Server, Server]) -> None:
    outside, inside = servers
    with socket.create_server((OUTSIDE, 0)) as silent:
        ports = frozenset((silent.getsockname()[1],))
        for options in ({}, {"resolver": lambda host, port: time.sleep(5) or [OUTSIDE]}):
            start = time.monotonic()
            with pytest.raises(MediaError, match="in time"):
                fetching(outside, inside, ports=ports, seconds=0.3, **options).get(
                    f"http://files.example:{min(ports)}/", MIB
                )
            assert time.monotonic() - start <= 1
        with pytest.raises(MediaError, match="could not be read"):  # TLS to what speaks none
            fetching(outside, inside).get(f"https://files.example:{outside.server_port}/", MIB)


def test_hosts_and_ports_that_were_not_named(servers: tuple[Server, Server]) -> None:
    outside, inside = servers
    url = f"http://files.example:{outside.server_port}/file"
    for hosts in (("example",), ("iles.example",), (".files.example",), ("files.example.com",), ()):
        with pytest.raises(MediaError, match="not among those"):
            fetching(outside, inside, hosts=frozenset(hosts)).get(url, MIB)
    with pytest.raises(MediaError, match="port"):
        fetching(outside, inside, ports=frozenset((80, 443))).get(url, MIB)
    assert not outside.asked
    assert fetching(outside, inside, hosts=frozenset((".example",))).get(url, MIB).data == b"hello"
