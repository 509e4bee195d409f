"""Images, sounds and videos over HTTP: by the official clients, by hand, and by those who mean harm."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from pocketgem.errors import MediaError, RunError
from pocketgem.llm import LLM
from pocketgem.serve import fetch as fetching
from pocketgem.serve import messages, responses
from pocketgem.serve.chat_read import read as read_chat
from pocketgem.serve.fetch import fetch, is_public
from pocketgem.serve.fields import FieldError
from pocketgem.serve.parts import Remote
from pocketgem.serve.prepared import bring
from pocketgem.serve.settings import Settings
from tests.scripted import Script, scripted_llm
from tests.sensing import FakeTowers, give_senses, mp4, png, sensing_llm, wav
from tests.serving import PATIENCE, Running, running, wait_for

SCRIPT = Script(
    {
        "how many": ["There are two."],
        "tool": ["<|tool_call>call:shoot{}<tool_call|>", "A wall."],
        "hello": ["Hello, you."],
    }
)
SHOOT = {"type": "object", "properties": {}}


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(png(number)), **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def body(*content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content)}], "temperature": 0, **more}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    llm = scripted_llm(tmp_path_factory.mktemp("media") / "m", SCRIPT)
    give_senses(llm)
    return llm


@pytest.fixture(scope="module")
def server(scripted: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    twin = sensing_llm(tmp_path_factory.mktemp("media") / "twin", "E2B")
    with running({"m": scripted, "twin": twin}) as server:
        yield server


@pytest.fixture
def towers(scripted: LLM) -> FakeTowers:
    scripted.drop_towers()
    assert isinstance(scripted.senses.towers, FakeTowers)
    return scripted.senses.towers


# ---- the official clients --------------------------------------------------------------------------------------------


def test_openais_client_sends_images(server: Running, towers: FakeTowers) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        content: Any = [image(1), text("how many"), image(2)]
        asked: Any = [{"role": "user", "content": content}]
        whole = client.chat.completions.create(model="m", messages=asked)
        assert whole.choices[0].message.content == "There are two."
        assert whole.usage is not None
        details = whole.usage.prompt_tokens_details
        assert details is not None
        assert details.to_dict()["image_tokens"] == 2 * 60
        pieces = client.chat.completions.create(model="m", messages=asked, stream=True)
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert said == "There are two."
        assert towers.runs == 2


def test_openais_client_sends_sound_video_and_files(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
        video = {"type": "video_url", "video_url": {"url": url(mp4(0.4), "video/mp4")}}
        file = {"type": "file", "file": {"file_data": url(png(3)), "filename": "a.png"}}
        asked: Any = [{"role": "user", "content": [sound, video, file, text("hello")]}]
        answer = client.chat.completions.create(model="m", messages=asked)
        assert answer.choices[0].message.content == "Hello, you."
        assert answer.usage is not None
        details: Any = answer.usage.prompt_tokens_details
        assert details.audio_tokens == 13
        assert details.to_dict()["image_tokens"] == 60
        assert details.to_dict()["video_tokens"] == 4 * 64


def test_openais_responses_keep_images_for_the_next_turn(server: Running, towers: FakeTowers) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        content: Any = [
            {"type": "input_image", "image_url": url(png(4)), "detail": "low"},
            {"type": "input_text", "text": "hello"},
        ]
        first = client.responses.create(model="m", input=[{"role": "user", "content": content}])
        assert first.output_text == "Hello, you."
        second = client.responses.create(model="m", input="how many", previous_response_id=first.id)
        assert second.output_text == "There are two."
        assert second.usage is not None
        assert second.usage.input_tokens_details.to_dict()["image_tokens"] == 60
        assert towers.runs == 1


def test_anthropics_client_sends_images_also_in_results(server: Running) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        data = base64.b64encode(png(5)).decode()
        block: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        tools: Any = [{"name": "shoot", "input_schema": SHOOT}]
        asked: Any = [{"role": "user", "content": [block, text("use the tool")]}]
        first = client.messages.create(model="m", max_tokens=50, messages=asked, tools=tools)
        (use,) = [one for one in first.content if one.type == "tool_use"]
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": [text("here"), block]}
        asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        counted = client.messages.count_tokens(model="m", messages=asked, tools=tools)
        assert counted.model_extra == {"input_tokens_details": {"image_tokens": 120}}
        second = client.messages.create(model="m", max_tokens=50, messages=asked, tools=tools)
        assert second.content[0].text == "A wall."  # type: ignore[union-attr]
        assert second.usage.model_extra["input_tokens_details"] == {"image_tokens": 120}  # type: ignore[index]


def test_a_real_twin_answers_and_not_by_who_asked_before(server: Running) -> None:
    def answer(*content: Any) -> Any:
        made = server.http.post("/v1/chat/completions", json=body(*content, model="twin", max_tokens=6))
        assert made.status_code == 200, made.text
        return made.json()["choices"][0]["message"]["content"]

    several = [(image(1), text("a")), (image(2), text("a")), (image(1), text("b"), image(2))]
    alone = [answer(*content) for content in several]
    assert [answer(*content) for content in reversed(several)] == alone[::-1]


# ---- what the server says of it --------------------------------------------------------------------------------------


def test_details_are_budgets_and_what_was_made_smaller_is_said(server: Running) -> None:
    def asked(**more: Any) -> Any:
        file = {"type": "image_url", "image_url": {"url": url(png(6, 700, 700)), **more}}
        return server.http.post("/v1/chat/completions", json=body(file, text("hello"))).json()["usage"]

    low, high, usual = asked(detail="low"), asked(detail="high"), asked()
    assert low["prompt_tokens_details"]["image_tokens"] == 64
    assert low["notes"] == ["an image of 700x700 was made smaller for 64 tokens; fine detail is lost"]
    assert high["prompt_tokens_details"]["image_tokens"] == 33 * 33
    assert usual["prompt_tokens_details"]["image_tokens"] == 16 * 16
    assert "notes" not in usual


def test_models_say_what_they_take(server: Running) -> None:
    listed = {one["id"]: one["input_modalities"] for one in server.http.get("/v1/models").json()["data"]}
    everything = ["text", "image", "audio", "video"]
    assert listed == {"m": everything, "twin": everything}


def test_metrics_count_and_the_log_holds_no_content(server: Running, towers: FakeTowers) -> None:
    for _ in range(2):
        server.http.post("/v1/chat/completions", json=body(image(7), text("hello")))
    lines = server.http.get("/metrics").text
    assert 'pocketgem_media_tokens_total{kind="image",model="m"}' in lines
    assert 'pocketgem_media_encoded{cache="hit",model="m"}' in lines
    assert "pocketgem_media_cache_bytes" in lines
    (*_, last) = [line for line in server.lines if line["event"] == "request" and "chat" in line["path"]]
    assert last["image_tokens"] == 60
    assert base64.b64encode(png(7)).decode()[:40] not in server.log.getvalue()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "must be a data url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "must be a data url with base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,????"}}, "is not base64"),
        ({"type": "image_url", "image_url": {"url": url(b"nothing")}}, "picture"),
        ({"type": "image_url", "image_url": {"url": url(png(), "image/jpeg")}}, "jpeg"),
        ({"type": "image_url", "image_url": {"url": url(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}}, "SVG"),
        ({"type": "image_url", "image_url": {"url": url(png()), "detail": "huge"}}, "must be one of low"),
        ({"type": "image_url", "image_url": {"url": url(wav(), "image/png")}}, "picture"),
        ({"type": "image_url"}, "is missing"),
        ({"type": "input_audio", "input_audio": {"data": base64.b64encode(b"x").decode(), "format": "wav"}}, "sound"),
        ({"type": "video_url", "video_url": {"url": url(png(), "video/mp4")}}, "video"),
        ({"type": "file", "file": {"file_data": url(b"%PDF-1.4", "application/pdf")}}, "not documents"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "this server keeps none"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}, "this server fetches nothing"),
        ({"type": "hologram"}, "taken here: text, image_url, input_audio"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_a_400_that_says_why(server: Running, part: Any, complaint: str) -> None:
    made = server.http.post("/v1/chat/completions", json=body(part, text("hello")))
    assert made.status_code == 400, made.text
    assert complaint in made.json()["error"]["message"]
    assert server.http.post("/v1/chat/completions", json=body(text("hello"))).status_code == 200


def test_too_many_and_too_large_are_refused_before_a_tower_runs(server: Running, towers: FakeTowers) -> None:
    many = server.http.post("/v1/chat/completions", json=body(*[image()] * 65, text("hello")))
    assert (many.status_code, "64 are taken" in many.text) == (400, True)
    wide = [image(detail="high")] * 40
    long = server.http.post("/v1/chat/completions", json=body(*wide, text("hello"), model="m"))
    assert long.status_code == 400
    assert "the context holds" in long.text
    assert towers.runs == 0


def test_a_model_without_towers_refuses(tmp_path: Any) -> None:
    llm = scripted_llm(tmp_path / "m", SCRIPT)
    with running({"m": llm}) as server:
        made = server.http.post("/v1/chat/completions", json=body(image(), text("hello")))
        assert made.status_code == 400
        assert "no vision tower" in made.json()["error"]["message"]
        assert server.http.get("/v1/models").json()["data"][0]["input_modalities"] == ["text"]


def test_the_dialects_read_the_same_parts() -> None:
    data = png()
    chat = read_chat(body(image(detail="low"), text("a"))).job.messages[0]["content"]
    items = [{"type": "input_image", "image_url": url(data), "detail": "low"}, {"type": "input_text", "text": "a"}]
    other = responses.read({"input": [{"role": "user", "content": items}]}).job.messages[0]["content"]
    assert chat == other
    assert chat == [{"type": "image", "image": data, "budget": 70, "media_type": "image/png"}, text("a")]
    block = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    found = messages.read({"max_tokens": 1, "messages": [{"role": "user", "content": [block]}]}).job.messages
    path = "messages[0].content[0].source.url"
    assert found[0]["content"] == [{"type": "image", "image": Remote("https://example.org/a.png", path)}]
    for role in ("system", "assistant"):
        with pytest.raises(FieldError, match="are not taken here"):
            read_chat({"messages": [{"role": role, "content": [image()]}]})


# ---- who leaves ------------------------------------------------------------------------------------------------------


def test_what_waits_for_a_tower_ends_with_its_client(server: Running, towers: FakeTowers, monkeypatch: Any) -> None:
    begun, go = threading.Event(), threading.Event()
    see = towers.see

    def slow(values: Any, positions: Any) -> Any:
        begun.set()
        assert go.wait(PATIENCE)
        return see(values, positions)

    monkeypatch.setattr(towers, "see", slow)
    content = json.dumps(body(*[image(20 + n) for n in range(6)], text("hello"))).encode()
    with server.connect() as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert begun.wait(PATIENCE)
        others = server.http.post("/v1/chat/completions", json=body(text("hello")))
        assert others.json()["choices"][0]["message"]["content"] == "Hello, you.", "others waited for a tower"
    wait_for(lambda: any(line.get("ended") == "client gone" for line in server.lines))
    go.set()
    time.sleep(0.2)
    assert towers.runs == 1, "towers went on for nobody"


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "not an address", "192.0.2.1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_public_addresses() -> None:
    assert all(map(is_public, ("8.8.8.8", "1.1.1.1", "2606:4700::1111")))


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0x7f.1/", "http://2130706433/",
        "http://127.1/", "http://a@127.0.0.1/", "http://example.org:22/", "http://example.org@127.0.0.1/",
        "http://127.0.0.1\\@example.org/", "http://exa mple.org/", "ftp://example.org/", "gopher://x/", "file:///x",
        "http://", "http:///x", "http://[::ffff:7f00:1]/", "http://[fe80::1%25eth0]/", "http://\u2460/", "http://x\n/",
    ],
)  # fmt: skip
def test_links_that_lead_elsewhere_are_refused(link: str) -> None:
    with pytest.raises(MediaError):
        fetch(link, seconds=2)


class Host:
    """An http server on a free port that answers with given bytes, and where to reach it as if it were public."""

    def __init__(self, monkeypatch: Any, *pieces: bytes, wait: float = 0) -> None:
        import socket

        self.socket = socket.create_server(("127.0.0.1", 0))
        self.seen = b""
        port = self.socket.getsockname()[1]
        monkeypatch.setattr(fetching, "PORTS", {"http": port})
        monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
        threading.Thread(target=self._serve, args=(pieces, wait), daemon=True).start()

    def _serve(self, pieces: tuple[bytes, ...], wait: float) -> None:
        try:
            client, _ = self.socket.accept()
            with client, self.socket:
                self.seen = client.recv(65_536)
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(wait)
        except OSError:
            return


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


def test_what_lies_at_an_address_is_fetched_without_a_word_about_the_client(monkeypatch: Any) -> None:
    host = Host(monkeypatch, HEAD + b"data")
    assert fetch("http://localhost/a/b?c=d") == b"data"
    assert host.seen.startswith(b"GET /a/b?c=d HTTP/1.1\r\nHost: localhost")
    assert b"ookie" not in host.seen
    assert b"uthorization" not in host.seen


@pytest.mark.parametrize(
    ("pieces", "wait", "complaint"),
    [
        ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"], 0, "answered 302"),
        ([b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3000], 0, "larger than"),
        ([b"no http at all\r\n\r\n"], 0, "could not be fetched"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 50], 0.1, "could not be fetched"),
    ],
)
def test_what_is_too_much_or_no_answer_is_refused(monkeypatch: Any, pieces: Any, wait: float, complaint: str) -> None:
    Host(monkeypatch, *pieces, wait=wait)
    with pytest.raises(MediaError, match=complaint):
        fetch("http://localhost/", most=2000, seconds=1)


def test_a_server_that_may_fetch_does(scripted: LLM, monkeypatch: Any) -> None:
    data = png(9)
    Host(monkeypatch, f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    with running({"m": scripted}, Settings(port=0, allow_remote_media=True)) as server:
        part = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
        made = server.http.post("/v1/chat/completions", json=body(part, text("hello")))
        assert made.status_code == 200, made.text
        assert made.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 60


def test_all_addresses_of_a_request_share_one_limit(monkeypatch: Any) -> None:
    asked: list[tuple[int, float]] = []

    def fake(link: str, *, most: int, seconds: float) -> bytes:
        asked.append((most, seconds))
        return b"x" * (20 << 20)

    monkeypatch.setattr("pocketgem.serve.prepared.fetch", fake)
    parts = [{"type": "image", "image": Remote(f"https://example.org/{n}", "f")} for n in range(2)]
    bring([{"role": "user", "content": parts}], remote=True)
    assert [most >> 20 for most, _ in asked] == [32, 12]
    assert asked[1][1] <= asked[0][1] <= 10
    assert all(isinstance(part["image"], bytes) for part in parts)
    with pytest.raises(RunError, match="given up"):
        bring([{"role": "user", "content": [{"type": "image", "image": Remote("x", "f")}]}], lambda: False, remote=True)
