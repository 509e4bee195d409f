"""The server in front of replicas, with workers in its own process: the same answers, one guard, and replicas lost."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from starlette.types import ASGIApp

from pocketgem import LLM
from pocketgem.serve.affinity import Affinity
from pocketgem.serve.app import App, routes
from pocketgem.serve.forward import Forward, Lost, Sent, State
from pocketgem.serve.keys import Keys
from pocketgem.serve.log import Log
from pocketgem.serve.merged import merged
from pocketgem.serve.metrics import Metrics
from pocketgem.serve.models import Registry, Source
from pocketgem.serve.relay import LOCAL, Relay
from pocketgem.serve.settings import Settings
from pocketgem.serve.wiring import Serving
from pocketgem.serve.worker import Worker
from tests.cli_models import TEMPLATE, save_model
from tests.serving import Running, events_of, serving, wait_for

KEY = "a-key-of-enough-letters"
HELLO = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 6, "temperature": 0}


@dataclass
class Here:
    """Workers in this process; what goes to them and comes back is pickled on the way, as Ray would."""

    workers: dict[str, Worker]
    affinity: Affinity = field(default_factory=Affinity)
    seen: list[Forward] = field(default_factory=list)
    failing: int = 0  # requests that are lost before their answer begins
    cut_after: int | None = None  # pieces of an answer before its replica is lost

    async def answer(self, forward: Forward) -> AsyncGenerator[Sent]:
        forward = pickle.loads(pickle.dumps(forward))
        self.seen.append(forward)
        if self.failing:
            self.failing -= 1
            raise Lost
        order = self.affinity.order(forward.conversation, self.workers)
        name = forward.only if forward.only in self.workers else order[0]
        assert name is not None
        self.affinity.began(forward.id, forward.conversation, name)
        pieces = self.workers[name].answer(forward)
        try:
            number = 0
            async for sent in pieces:
                if number == self.cut_after:
                    raise Lost
                number += 1
                yield pickle.loads(pickle.dumps(sent))
        finally:
            await pieces.aclose()
            self.affinity.ended(forward.id)

    async def states(self) -> list[State]:
        return [await worker.state() for worker in self.workers.values()]


@dataclass
class Front:
    running: Running
    here: Here

    @property
    def http(self) -> httpx.Client:
        return self.running.http

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)


@contextmanager
def fronted(models: list[LLM], settings: Settings | None = None) -> Iterator[Front]:
    """A server in front of one worker for each model, all by the name ``twin``."""
    settings = settings or Settings(port=0)
    here = Here({f"replica{number}": worker(f"replica{number}", llm, settings) for number, llm in enumerate(models)})

    def front(log: Log) -> App:
        return Fronted(Serving(settings, Registry([], log), Metrics(), log), here)

    with serving(front, settings) as running:
        yield Front(running, here)


class Fronted(App):
    """Its workers start and end on the loop of the server."""

    def __init__(self, serving: Serving, here: Here) -> None:
        super().__init__(serving, table=Relay(here).table)
        self.here = here

    @asynccontextmanager
    async def _life(self, app: ASGIApp) -> AsyncIterator[None]:
        for one in self.here.workers.values():
            await one.start()
        try:
            yield
        finally:
            for one in self.here.workers.values():
                await one.close()


def worker(name: str, llm: LLM, settings: Settings) -> Worker:
    log = Log(requests=False)
    return Worker(name, App(Serving(settings, Registry([Source("twin", lambda: llm)], log), Metrics(), log)), ("twin",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("relay") / "twin", template=TEMPLATE)


@pytest.fixture(scope="module")
def front(folder: Path) -> Iterator[Front]:
    with fronted([LLM.load(folder), LLM.load(folder)], Settings(port=0, comment_seconds=0.05)) as front:
        yield front


def words(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def joined(answer: httpx.Response) -> str:
    chunks = [data for _, data in events_of(answer.text) if data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def test_a_stream_is_the_answer_in_pieces(front: Front) -> None:
    whole, stream = (
        front.post("/v1/chat/completions", HELLO),
        front.post("/v1/chat/completions", {**HELLO, "stream": True}),
    )
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert joined(stream) == words(whole) != ""
    assert stream.text.endswith("data: [DONE]\n\n")


def test_official_clients_do_not_notice(front: Front) -> None:
    with openai.OpenAI(base_url=f"{front.running.url}/v1", api_key="none", max_retries=0) as client:
        said = client.chat.completions.create(model="twin", **HELLO)  # type: ignore[call-overload]
        assert said.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", **HELLO)  # type: ignore[call-overload]
    with anthropic.Anthropic(base_url=front.running.url, api_key="none", max_retries=0) as other:
        hello = [{"role": "user", "content": "hello"}]
        with other.messages.stream(model="twin", max_tokens=5, messages=hello) as stream:  # type: ignore[arg-type]
            assert "".join(stream.text_stream)


def test_a_growing_conversation_stays_and_is_not_read_anew(front: Front) -> None:
    messages = [{"role": "user", "content": "a conversation that grows from turn to turn"}]
    front.here.seen.clear()
    for turn in range(4):
        answer = front.post("/v1/chat/completions", {**HELLO, "messages": messages})
        cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        print(turn, answer.json()["usage"])
        assert turn or cached < 10
        messages += [{"role": "assistant", "content": words(answer)}, {"role": "user", "content": f"turn {turn}"}]
    assert len({forward.conversation for forward in front.here.seen}) == 1
    assert len({line["replica"] for line in front.running.lines[-4:]}) == 1


def test_many_conversations_use_all_replicas(front: Front) -> None:
    for number in range(12):
        front.post("/v1/chat/completions", {**HELLO, "messages": [{"role": "user", "content": f"number {number}"}]})
    assert {line["replica"] for line in front.running.lines[-12:]} == set(front.here.workers)


def test_a_response_is_found_where_it_is_kept(front: Front) -> None:
    asked = {"model": "twin", "max_output_tokens": 4, "temperature": 0}
    for number in range(6):  # whichever replica the second turn would go to by itself
        first = front.post("/v1/responses", {**asked, "input": f"the {number}th of them"}).json()
        second = front.post("/v1/responses", {**asked, "input": "more", "previous_response_id": first["id"]})
        assert second.status_code == 200, second.text
        assert front.http.get(f"/v1/responses/{second.json()['id']}").json() == second.json()
        assert front.http.delete(f"/v1/responses/{first['id']}").json()["deleted"]
        assert front.http.get(f"/v1/responses/{first['id']}").status_code == 404
    gone = front.post("/v1/responses", {**asked, "input": "more", "previous_response_id": "resp_nobody"})
    assert gone.status_code == 400
    assert "names no response that is kept" in gone.text


def test_what_is_wrong_is_told_as_by_one_server(front: Front) -> None:
    bad = front.post("/v1/chat/completions", {**HELLO, "max_tokens": "many"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "max_tokens")
    assert front.post("/v1/chat/completions", {**HELLO, "model": "none"}).json()["error"]["code"] == "model_not_found"
    assert front.http.get("/nothing").status_code == 404
    assert front.http.get("/v1/chat/completions").status_code == 405
    assert (
        front.http.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}).status_code
        == 400
    )
    other = front.post("/v1/messages", {"model": "twin"}).json()
    assert (other["type"], other["error"]["type"]) == ("error", "invalid_request_error")


def test_a_form_arrives_whole(front: Front) -> None:
    """The replica reads it: it finds a field that is wrong, and the model without ears when none is."""
    for extra, told in ({"temperature": "x"}, "temperature: must be"), ({}, "no audio tower"):
        answer = front.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")}, data=extra)
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]
    assert front.here.seen[-1].content_type.startswith("multipart/form-data; boundary=")


def test_a_lost_replica_costs_nothing_before_it_has_answered(front: Front) -> None:
    front.here.failing = 2
    assert words(front.post("/v1/chat/completions", HELLO))
    front.here.failing = 9
    answer = front.post("/v1/chat/completions", HELLO)
    front.here.failing = 0
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "lost" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_replica_lost_in_the_middle_is_told(front: Front, path: str) -> None:
    front.here.cut_after = 1
    try:
        whole = front.post(path, HELLO)
        assert whole.status_code == 503
        streamed = front.post(path, {**HELLO, "stream": True})
    finally:
        front.here.cut_after = None
    name, last = events_of(streamed.text)[-1]
    assert name == ("error" if path == "/v1/messages" else None)
    assert "lost" in last["error"]["message"]
    assert front.running.lines[-1]["failed"] == "Lost"


def test_a_client_that_leaves_ends_its_request(front: Front) -> None:
    services = [one.app.serving.registry.loaded[0].service for one in front.here.workers.values()]
    long = {**HELLO, "max_tokens": 20_000, "stream": True}
    with front.http.stream("POST", "/v1/chat/completions", json=long) as answer:
        pieces = answer.iter_text()  # held: httpx closes the connection with it
        next(pieces)  # sent before the engine has come to the request
        wait_for(lambda: sum(service.running for service in services) == 1)
    wait_for(lambda: not any(service.running for service in services))
    with pytest.raises(httpx.ReadTimeout):
        front.http.post("/v1/chat/completions", json={**long, "stream": False}, timeout=0.5)
    wait_for(lambda: not any(service.running for service in services))
    wait_for(lambda: not front.here.affinity.running)


def test_counters_of_all_are_one_page(front: Front) -> None:
    words(front.post("/v1/chat/completions", HELLO))
    lines = front.http.get("/metrics").text.splitlines()
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(
        {line for line in lines if "# TYPE" in line}
    )
    assert any(line.startswith('pocketgem_requests_total{method="POST",route="/v1/chat/completions"') for line in lines)
    for name in front.here.workers:
        assert f'pocketgem_model_loaded{{model="twin",replica="{name}"}} 1.0' in lines


def test_it_is_well_while_one_replica_is(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    assert front.http.get("/health").json() == {"status": "ok"}
    states = [State("a", True, b""), State("b", False, b"")]

    async def told() -> list[State]:
        return states

    monkeypatch.setattr(front.here, "states", told)
    assert front.http.get("/health").status_code == 200
    states.pop()
    assert (front.http.get("/health").status_code, front.http.get("/health").json()) == (503, {"status": "stuck"})
    states.pop()
    assert front.http.get("/health").json() == {"status": "no replica"}
    assert front.http.get("/livez").status_code == 200


def test_the_log_says_who_and_how_much_but_not_what(front: Front) -> None:
    before = len(front.running.lines)

    def logged() -> list[dict[str, object]]:
        return [line for line in front.running.lines[before:] if line["path"] == "/v1/chat/completions"]

    words(front.post("/v1/chat/completions", {**HELLO, "stream": False}))
    front.post("/v1/chat/completions", {**HELLO, "stream": True})
    wait_for(lambda: len(logged()) == 2)  # a line is written once its answer has been read
    for line in logged():
        assert line["model"] == "twin"
        assert line["completion_tokens"] == 6
        assert line["replica"] in front.here.workers
        assert "ended" not in line
    assert "hello there" not in front.running.log.getvalue()


def test_a_fault_in_a_replica_is_logged_by_its_place(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*arguments: object, **more: object) -> None:
        raise ValueError("hello there")

    monkeypatch.setattr("pocketgem.serve.prepared.ready_of", break_down)
    answer = front.post("/v1/chat/completions", HELLO)
    assert answer.status_code == 500
    (fault,) = [line for line in front.running.lines if line.get("error") == "ValueError"]
    assert fault["request"] == answer.headers["x-request-id"]
    assert any("break_down" in place for place in fault["at"]), fault["at"]
    assert "hello there" not in answer.text + front.running.log.getvalue()


def test_one_guard_stands_in_front_of_every_route(folder: Path) -> None:
    settings = Settings(port=0, keys=Keys.of([("me", KEY), ("you", KEY + "2")]))
    with fronted([LLM.load(folder)], settings) as front:
        app = front.running.app
        for route in routes(app.serving):
            for method in route.methods or ():
                answer = front.http.request(
                    method, route.path.replace("{name:path}", "x").replace("{id}", "x"), json={}
                )
                assert answer.status_code == (200 if route.path in ("/health", "/livez") else 401), route.path
        assert front.http.get("/livez", headers={"host": "elsewhere.example"}).status_code == 403
        assert not front.here.seen  # nothing got through
        mine = front.http.post("/v1/chat/completions", json=HELLO, headers={"x-api-key": KEY})
        assert words(mine)
        yours = front.http.post("/v1/chat/completions", json=HELLO, headers={"x-api-key": KEY + "2"}).json()
        assert yours["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        kept = {"input": "hi", "max_output_tokens": 2}
        id = front.http.post("/v1/responses", json=kept, headers={"x-api-key": KEY}).json()["id"]
        assert front.http.get(f"/v1/responses/{id}", headers={"x-api-key": KEY + "2"}).status_code == 404
        assert front.http.get(f"/v1/responses/{id}", headers={"x-api-key": KEY}).status_code == 200
        assert KEY.encode() not in b"".join(pickle.dumps(forward) for forward in front.here.seen)
        assert [forward.key for forward in front.here.seen[:2]] == ["me", "you"]


def test_a_slow_reader_costs_its_own_stream_only(folder: Path) -> None:
    """Pieces that nobody takes wait in a box of bounded size; when it is full the client is cut off."""
    with fronted([LLM.load(folder)], Settings(port=0, stall_seconds=0.5)) as front:
        body = json.dumps({**HELLO, "max_tokens": 20_000, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with front.running.connect() as sock:
            sock.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: any(line.get("ended") == "client did not read" for line in front.running.lines), 60)
        wait_for(lambda: not front.here.affinity.running)
        assert words(front.post("/v1/chat/completions", HELLO))


def test_routes_are_those_of_one_server(front: Front) -> None:
    one = {(route.path, verb) for route in routes(front.running.app.serving) for verb in route.methods or ()}
    here = {(route.path, verb) for route in front.running.app.router.routes for verb in route.methods or ()}  # type: ignore[attr-defined]
    assert here - {("/openapi.json", "GET"), ("/openapi.json", "HEAD")} == one
    assert {path for path, _ in one} > LOCAL
    assert "/v1/chat/completions" in front.http.get("/openapi.json").json()["paths"]


def test_merging_counters_keeps_each_sample() -> None:
    first, second = Metrics(), Metrics()
    first.made.labels("m").inc(3)
    second.made.labels("m").inc(4)
    text = merged(Metrics().text(), {"a": first.text(), 'b"\\': second.text()}).decode()
    assert 'pocketgem_completion_tokens_total{model="m",replica="a"} 3.0' in text
    assert 'pocketgem_completion_tokens_total{model="m",replica="b\\"\\\\"} 4.0' in text
    assert text.count("# TYPE pocketgem_completion_tokens_total ") == 1
