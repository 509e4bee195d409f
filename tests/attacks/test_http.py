"""Hostile requests over a real socket. After each the server lives, says nothing of itself, and answers what it was
asked before with the same bytes.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import product
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from pocketgem import LLM
from pocketgem.errors import InputError
from pocketgem.serve.body import MAX_DEPTH, parse
from pocketgem.serve.doors import Doors
from pocketgem.serve.faults import Fault
from pocketgem.serve.guard import OPEN_PATHS
from pocketgem.serve.keys import Keys
from pocketgem.serve.settings import Settings, is_loopback
from tests.scripted import Script, scripted_llm
from tests.serving import Running, post_head, running, wait_for

KEY = "a-key-of-enough-letters"
POSTS = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/completions",
    "/v1/embeddings", "/tokenize", "/detokenize",
)  # fmt: skip
MAX_BODY = 256 << 10
TELLTALE = re.compile(r"0x[0-9a-f]{6,}|Traceback|site-packages|/(?:home|root|usr|tmp|work|etc)/|\.py\b|PATH=")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(
        tmp_path_factory.mktemp("attacks") / "model", Script({"canary": ["sings"]}), context=512, kept=0
    )


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    limits = Settings(port=0, max_body=MAX_BODY, header_seconds=0.5, body_seconds=0.7, stall_seconds=1)
    with running({"m": llm}, limits) as server:
        yield server


@pytest.fixture(scope="module")
def locked(llm: LLM) -> Iterator[Running]:
    with running({"m": llm}, Settings(port=0, keys=Keys.of([("me", KEY)]))) as server:
        yield server


@pytest.fixture(scope="module")
def first_song(server: Running) -> Any:
    return canary(server)


def canary(server: Running, **headers: str) -> Any:
    body = {"model": "m", "prompt": "a canary", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    answer = server.http.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


@pytest.fixture(autouse=True)
def lives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around every test with a server: the canary sings the same song, and nothing is left running."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Running = request.getfixturevalue("server")
    first: Any = request.getfixturevalue("first_song")
    yield
    assert canary(server) == first
    wait_for(server.idle)
    assert {line["event"] for line in server.lines} == {"request"}, server.lines[-3:]


def refused(answer: httpx.Response, *codes: int) -> dict[str, Any]:
    """The error of an answer, which must be JSON in its API's form and give nothing away."""
    assert answer.status_code in codes, (answer.status_code, answer.text[:300])
    assert not TELLTALE.search(answer.text), answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return dict(error)


# ---- bodies ---------------------------------------------------------------------------------------------------------

BAD_JSON = [
    b"", b"{", b"[]", b"null", b'"text"', b"7", b"{'a': 1}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1} x',
    b'{"model": "m", "prompt": "a', b"\xff\xfe{}", b'{"prompt": "\xff"}', b"\x00", b"[" * 100_000,
    b'{"a":' * 50_000, b'{"a": ' + b"9" * 10_000 + b"}", b'"' * 100_001, b'"\\' * 60_000, b'{"a": 1e999999999}',
    b"[" + b"[]," * 50_000 + b"1]",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/completions"])
@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: repr(body[:16]))
def test_what_is_no_json_is_told(server: Running, path: str, body: bytes) -> None:
    refused(server.http.post(path, content=body, headers={"content-type": "application/json"}), 400)


def test_nesting_is_counted_before_it_is_read() -> None:
    deep = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse(deep)
    with pytest.raises(Fault, match="nested more than"):
        parse(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")
    assert parse(b'{"a": "[[[[[[' + b"[" * 10_000 + b'\\" [[["}')  # brackets in a text are no nesting


@pytest.mark.parametrize("unit", [b'"', b'"\\', b'\\"', b'\\"[', b'"a":', b"[]", b"{}", b",", b"\\", b'"\\\\'])
def test_looking_at_a_body_takes_no_longer_for_bad_ones(unit: bytes) -> None:
    body = unit * (2_000_000 // len(unit))
    began = time.perf_counter()
    with pytest.raises(Fault):
        parse(body)
    assert time.perf_counter() - began < 3


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\0a \n', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_a_fault(body: bytes) -> None:
    found: object = {}
    with suppress(Fault):
        found = parse(body)
    assert isinstance(found, dict)


ODD = [
    None,
    True,
    -1,
    0,
    2**31,
    2**53 + 1,
    2**63,
    1e308,
    -0.0,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "\ud800",
    "\x00",
]
FIELDS = {
    "/v1/completions": ("model", "prompt", "max_tokens", "n", "echo", "logprobs", "temperature", "top_p", "top_k",
                        "seed", "stop", "stream", "stream_options", "logit_bias", "suffix", "best_of", "min_tokens",
                        "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    "/v1/embeddings": ("model", "input", "dimensions", "encoding_format"),
    "/tokenize": ("model", "prompt", "add_special_tokens", "parse_special", "return_token_strs", "messages", "tools",
                  "chat_template_kwargs"),
    "/detokenize": ("model", "tokens"),
    "/v1/chat/completions": ("model", "messages", "tools", "tool_choice", "max_tokens", "response_format", "logprobs"),
    "/v1/responses": ("model", "input", "tools", "previous_response_id", "max_output_tokens", "text", "reasoning"),
    "/v1/messages": ("model", "messages", "system", "tools", "max_tokens", "thinking", "stop_sequences"),
}  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a canary", "max_tokens": 2},
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "canary"}], "max_tokens": 2},
    "/v1/responses": {"input": "canary", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "canary"}], "max_tokens": 2},
}


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_takes_odd_values_or_refuses_them(server: Running, path: str) -> None:
    for number, (name, value) in enumerate(product(FIELDS[path], ODD)):
        if (number) % 3:  # every field takes a third of them, all of them are taken
            continue
        body = {**GOOD[path], name: value}
        if name in ("n", "max_tokens", "max_output_tokens") and isinstance(value, int) and value > 100:
            body["stop"] = ["s"]  # an allowed number; the answer ends by itself all the same
        answer = server.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404), (name, value, answer.text[:300])
        assert not TELLTALE.search(answer.text), (name, value, answer.text)


# ---- the form of a request ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "br"},
    ],
)
@pytest.mark.parametrize("path", POSTS)
def test_a_page_cannot_post_without_asking(server: Running, path: str, headers: dict[str, str]) -> None:
    refused(server.http.post(path, content=b"{}", headers=headers), 415)


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
    "evil.example#localhost", "", "localhost, evil.example", "[::1].evil.example", "[::1]evil.example", "0x7f000001",
    "2130706433", "192.168.0.9", "localhost:8000:80", "localhost:http",
])  # fmt: skip
def test_a_foreign_host_is_refused_everywhere(server: Running, host: str) -> None:
    for route in routes(server):
        answer = server.http.request(method_of(route), path_of(route), headers={"host": host})
        assert answer.status_code in (400, 403), (host, route.path, answer.status_code)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "localhost."])
def test_names_of_this_machine_are_let_in(server: Running, host: str) -> None:
    assert server.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_every_address_is_a_name_of_a_server_that_listens_everywhere() -> None:
    doors = Doors(Settings(host="0.0.0.0", allow_hosts=("gem.lan",)))
    assert all(map(doors.knows_host, ("192.168.0.9:80", "[fe80::1]:80", "gem.lan", "GEM.lan:1", "localhost")))
    assert not any(map(doors.knows_host, ("evil.example", "192.168.0.9.evil.example", "", "a b")))


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil.example", "file://", "http://127.0.0.1:1", ""]
)
def test_a_foreign_origin_is_refused_everywhere(server: Running, origin: str) -> None:
    for route in routes(server):
        answer = server.http.request(method_of(route), path_of(route), headers={"origin": origin})
        assert answer.status_code == 403, (origin, route.path)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_cannot_even_load_an_image(server: Running, site: str) -> None:
    refused(server.http.get("/v1/models", headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}), 403)
    assert server.http.get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"}).status_code == 200


def test_the_page_itself_may_ask(server: Running) -> None:
    headers = {"origin": server.url, "sec-fetch-site": "same-origin"}
    assert server.http.get("/v1/models", headers=headers).status_code == 200


def test_an_origin_is_let_in_by_name_only(llm: LLM) -> None:
    with running({"m": llm}, Settings(port=0, allow_origins=("http://localhost:3000",))) as server:
        asked = {
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
        answer = server.http.options("/v1/completions", headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert answer.headers["access-control-allow-headers"] == "content-type"
        given = server.http.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert given.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert (
            server.http.options("/v1/completions", headers={**asked, "origin": "http://evil.example"}).status_code
            == 403
        )
        assert "access-control-allow-origin" not in server.http.get("/v1/models").headers


# ---- keys -----------------------------------------------------------------------------------------------------------


def routes(server: Running) -> list[Route]:
    """The live route table."""
    found = [route for route in server.app.router.routes if isinstance(route, Route)]
    assert len(found) > 15
    return found


def path_of(route: Route) -> str:
    return re.sub(r"{[^}]*}", "x", route.path)


def method_of(route: Route) -> str:
    return min(route.methods or {"GET"})


ALIASES = ("{}", "{}/", "/{}", "//{}", "/.{}", "/v1/..{}", "{}%20", "{}?key=1", "{};a", "{}%2f", "/x/../{}", "{}%00")


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]
)
def test_every_route_refuses_without_a_key(locked: Running, method: str) -> None:
    for route in routes(locked):
        if route.path in OPEN_PATHS:
            continue
        for headers in ({}, {"authorization": "Bearer wrong-key-of-enough-letters"}, {"x-api-key": ""}):
            answer = raw(locked, method, path_of(route), headers)
            assert answer == 401, (method, route.path, headers, answer)


def test_no_alias_of_a_route_is_open(locked: Running) -> None:
    for route, alias in product(routes(locked), ALIASES):
        path = alias.format(path_of(route))
        if path.partition("?")[0] not in OPEN_PATHS:
            assert raw(locked, "GET", path, {}) == 401, path


def test_what_is_open_says_nothing(locked: Running) -> None:
    assert {"/health", "/livez"} == OPEN_PATHS
    for path in OPEN_PATHS:
        assert locked.http.get(path).json() == {"status": "ok"}
    assert canary(locked, authorization=f"Bearer {KEY}")


def test_keys_do_not_see_each_others_responses(llm: LLM) -> None:
    keys = Keys.of([("me", KEY), ("you", KEY[::-1])])
    with running({"m": llm}, Settings(port=0, keys=keys)) as server:
        mine, yours = {"x-api-key": KEY}, {"x-api-key": KEY[::-1]}
        made = server.http.post("/v1/responses", json={"model": "m", "input": "canary"}, headers=mine).json()
        assert server.http.get(f"/v1/responses/{made['id']}", headers=mine).status_code == 200
        refused(server.http.get(f"/v1/responses/{made['id']}", headers=yours), 404)
        again = {"model": "m", "input": "canary", "previous_response_id": made["id"]}
        refused(server.http.post("/v1/responses", json=again, headers=yours), 400, 404)
        refused(server.http.delete(f"/v1/responses/{made['id']}", headers=yours), 404)


def test_keys_are_compared_as_hashes() -> None:
    keys = Keys.of([("one", KEY), ("two", KEY + "2")])
    assert keys.name_of(KEY.encode()) == "one"
    assert keys.name_of((KEY + "2").encode()) == "two"
    assert keys.name_of(b"") is keys.name_of(KEY[:-1].encode()) is None
    assert KEY not in repr(keys)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.9", "gem.lan", ""])
def test_others_get_in_only_with_a_key(host: str) -> None:
    with pytest.raises(InputError, match="--api-key-file"):
        Settings(host=host).check()
    Settings(host=host, keys=Keys.of([("me", KEY)])).check()
    Settings(host=host).check(open_to_all=True)
    assert not is_loopback(host)


def test_all_origins_only_with_a_key() -> None:
    with pytest.raises(InputError, match="--api-key-file"):
        Settings(allow_origins=("*",)).check()
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        Settings(host=host).check()


# ---- sockets --------------------------------------------------------------------------------------------------------


def raw(server: Running, method: str, path: str, headers: dict[str, str]) -> int:
    """The status of a request whose path nobody cleans up on the way."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    with server.connect() as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(sock.recv(64).split(b" ")[1])


def answer_of(sock: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting \r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json"
        b"\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(20_000)) + b"\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_http_is_refused(server: Running, bytes_sent: bytes) -> None:
    with server.connect() as sock:
        try:
            sock.sendall(bytes_sent)
        except OSError:
            return  # it was cut off before we were done
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4") or answer == b""
    assert not TELLTALE.search(answer.decode("latin-1"))


def test_many_small_headers_are_refused(server: Running) -> None:
    headers = {f"x-{number}": "a" for number in range(150)}
    refused(server.http.get("/health", headers=headers), 431)
    refused(server.http.get("/" + "a" * 9000), 414)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_huge_body_is_refused(server: Running, chunked: bool) -> None:
    data = b'{"prompt": "' + b"a" * (4 * MAX_BODY)
    content = iter([data[start : start + 65536] for start in range(0, len(data), 65536)]) if chunked else data
    error = refused(
        server.http.post("/v1/completions", content=content, headers={"content-type": "application/json"}), 413
    )
    assert error["code"] == "request_too_large"


def test_a_body_said_to_be_huge_is_refused_before_it_comes(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(post_head("/v1/completions", 10**15, "Expect: 100-continue"))
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_slow_heads_and_bodies_are_cut_off(server: Running) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(200)]
        slow = [stack.enter_context(server.connect()) for _ in range(200)]
        bodies = [stack.enter_context(server.connect()) for _ in range(200)]
        for sock in slow:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        for sock in bodies:
            sock.sendall(post_head("/v1/completions", 1000) + b"{")
        canary(server)  # they take nobody's place
        began = time.monotonic()
        assert {answer_of(sock) for sock in idle + slow} == {b""}
        assert all(answer_of(sock).startswith(b"HTTP/1.1 408") for sock in bodies)
        assert time.monotonic() - began < 10
    wait_for(lambda: len(server.server.server_state.connections) <= 1)


def test_too_many_connections_are_closed_at_once(llm: LLM) -> None:
    with running({"m": llm}, Settings(port=0, max_connections=10)) as server, ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(server.connect())
        assert server.http.get("/health").status_code == 200
        with server.connect() as one_more:
            assert answer_of(one_more) == b""


def test_a_client_that_hangs_up_half_way_costs_nothing(server: Running) -> None:
    body = json.dumps({"model": "m", "prompt": "abc", "max_tokens": 400}).encode()
    for sent in (
        b"",
        b"POST",
        post_head("/v1/completions", len(body)),
        post_head("/v1/completions", len(body)) + body[:9],
    ):
        with server.connect() as sock:
            sock.sendall(sent)
    for how in (socket.SHUT_WR, socket.SHUT_RDWR):
        with server.connect() as sock:
            sock.sendall(post_head("/v1/completions", len(body)) + body)
            sock.shutdown(how)
    wait_for(server.idle)
    # each of the six is over when the server has seen its line close, which idle alone does not say
    wait_for(lambda: server.app.guard.places.taken == 0 and server.app.guard.bodies.taken == 0)


def test_requests_in_a_row_without_waiting_are_dropped(server: Running) -> None:
    """Behind a second request nobody would see the client leave."""
    body = json.dumps({"model": "m", "prompt": "abc", "max_tokens": 400}).encode()
    with server.connect() as sock:
        sock.sendall((post_head("/v1/completions", len(body)) + body) * 3)
        assert answer_of(sock) == b""
    wait_for(server.idle)


def test_readers_that_stall_are_cut_off_and_hold_little(server: Running) -> None:
    body = json.dumps({"model": "m", "prompt": "abc", "max_tokens": 480, "stream": True, "logprobs": 20}).encode()
    with ExitStack() as stack:
        for _ in range(3):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            stack.enter_context(sock)
            sock.sendall(post_head("/v1/completions", len(body)) + body)
        wait_for(lambda: sum(line.get("ended") == "client did not read" for line in server.lines) == 3, 60)
    wait_for(server.idle)


def test_a_large_answer_that_nobody_reads_is_dropped(server: Running) -> None:
    body = json.dumps({"model": "m", "prompt": "a b c d " * 20_000, "return_token_strs": True}).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    with sock:
        sock.sendall(post_head("/tokenize", len(body)) + body)
        wait_for(
            lambda: server.lines[-1]["path"] == "/tokenize" and server.lines[-1].get("ended") == "client did not read"
        )
    wait_for(lambda: server.app.guard.places.taken == 0)


# ---- the log --------------------------------------------------------------------------------------------------------


def test_nobody_forges_a_line_of_the_log(server: Running) -> None:
    for path in (
        "/%0a%7b%22event%22:%22request%22%7d",
        "/a%0d%0ab",
        "/%1b%5b31m",
        "/%e2%80%a8x",
        "/%7f",
        "/" + "y" * 5000,
    ):
        server.http.get(path, headers={"user-agent": "\x1b[31m secret agent"})
    wait_for(lambda: server.lines[-1]["path"].startswith("/yyy"))
    text = server.log.getvalue()
    assert all(character == "\n" or " " <= character <= "~" for character in text)
    assert all(set(line) >= {"time", "event"} for line in server.lines)
    assert "secret agent" not in text
    assert max(map(len, text.splitlines())) < 1000


def test_an_error_in_the_server_is_told_without_its_text(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[int]:
        raise RuntimeError("a secret of the prompt at 0x7f001122 in /usr/lib")

    with running({"m": llm}) as server:
        before = canary(server)
        with monkeypatch.context() as patch:
            patch.setattr(LLM, "tokenize", broken)
            error = refused(server.http.post("/tokenize", json={"prompt": "a"}), 500)
            assert error["type"] == "server_error"
        assert canary(server) == before
        fault = next(line for line in server.lines if line["event"] == "fault")
        assert fault["error"] == "RuntimeError"
        assert "secret" not in server.log.getvalue()
