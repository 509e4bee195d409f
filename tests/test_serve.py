"""The server over a real socket: completions, embeddings, tokens, models, health; clients that leave; keys; loading."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from pocketgem import LLM
from pocketgem.engine.loop import Output
from pocketgem.engine.request import FinishReason, Request, Sampled, SamplingParams, Sequence
from pocketgem.serve.keys import Keys
from pocketgem.serve.models import Source
from pocketgem.serve.settings import Settings
from pocketgem.service import Bell, ServedRun
from tests.cli_models import TEMPLATE, save_model
from tests.scripted import Script, scripted_llm
from tests.serving import Running, events_of, post_head, running, wait_for

KEY = "a-key-of-enough-letters"
LONG = {"prompt": "abc", "max_tokens": 20_000}  # nobody waits for its end


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(save_model(tmp_path_factory.mktemp("serve") / "twin", template=TEMPLATE), dtype=torch.float32)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(tmp_path_factory.mktemp("serve") / "scripted", Script({"sky": [" is blue 日本"]}))


@pytest.fixture(scope="module")
def server(twin: LLM, scripted: LLM) -> Iterator[Running]:
    with running({"twin": twin, "scripted": scripted}, Settings(port=0, comment_seconds=0.05)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(server: Running, **body: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/completions", json={"model": "twin", "max_tokens": 8, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(server: Running, **body: Any) -> list[dict[str, Any]]:
    body = {"model": "twin", "max_tokens": 8, "temperature": 0, "stream": True, **body}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = events_of("".join(answer.iter_text()))
    assert events[-1] == (None, "[DONE]")
    return [data for _, data in events[:-1]]


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream as those of the whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {**piece, "text": "", "logprobs": None})
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"] is not None:
                lists = choice["logprobs"] = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
                for name, values in piece["logprobs"].items():
                    lists[name] += values
    return [choices[index] for index in sorted(choices)]


@contextmanager
def busy(server: Running, model: str) -> Iterator[None]:
    """While a long answer is being made."""
    body = json.dumps({"model": model, **LONG}).encode()
    with server.connect() as sock:
        sock.sendall(post_head("/v1/completions", len(body)) + body)
        wait_for(lambda: server.app.serving.registry.find(model).loaded and server.service(model).running)
        yield


def rounded(value: Any) -> Any:
    """Numbers to four digits: which rows share a product may change the last bits of a float32."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


# ---- completions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hello"},
        {"prompt": ["hello", "quit"], "n": 2, "temperature": 1, "seed": 5},
        {"prompt": [2, 300, 301], "echo": True},
        {"prompt": [[2, 300, 301], [2, 301]], "logprobs": 3},
        {"model": "scripted", "prompt": "the sky", "max_tokens": 30, "logprobs": 1},
        {"model": "scripted", "prompt": "the sky", "max_tokens": 30, "stop": ["ue", "blue 日"]},
        {"prompt": "hello", "max_tokens": 0},
        {"prompt": "hello", "max_tokens": 0, "echo": True},
        {"prompt": ["hello", "quit"], "max_tokens": 0, "echo": True, "logprobs": 2},
        {"prompt": [2, 300, 301], "max_tokens": 1, "echo": True, "logprobs": 1},
    ],
)
def test_a_stream_joined_is_the_whole_answer(server: Running, body: dict[str, Any]) -> None:
    whole = complete(server, **body)
    chunks = streamed(server, **body, stream_options={"include_usage": True})
    assert rounded(joined(chunks)) == rounded(whole["choices"])
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert {**usage, "prompt_tokens_details": None} == {
        **whole["usage"],
        "prompt_tokens_details": None,
    }
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_completions_are_the_models_own(server: Running, twin: LLM) -> None:
    whole = complete(server, prompt=["hello", "quit"], logprobs=2)
    for choice, prompt in zip(whole["choices"], ["hello", "quit"], strict=True):
        alone = twin.generate(prompt, temperature=0, max_tokens=8, logprobs=2)
        assert choice["text"] == alone.text
        assert choice["finish_reason"] == "length"
        lists = choice["logprobs"]
        assert np.allclose(lists["token_logprobs"], [one.logprob for one in alone.logprobs], atol=1e-5)
        assert [max(top.values()) for top in lists["top_logprobs"]] == lists["token_logprobs"]  # greedy
    assert whole["usage"]["prompt_tokens"] == sum(len(twin.tokenize(prompt)) for prompt in ("hello", "quit"))
    assert whole["usage"]["completion_tokens"] == 16


def test_text_and_ids_are_the_same_prompt(server: Running, twin: LLM) -> None:
    by_text = complete(server, prompt="hello", echo=True)["choices"]
    assert by_text[0]["text"].startswith("hello")
    assert complete(server, prompt=twin.tokenize("hello"), echo=True)["choices"] == by_text
    assert complete(server, prompt=[twin.tokenize("hello")], echo=True)["choices"] == by_text


def test_an_echo_tells_the_prompts_probabilities(server: Running, twin: LLM) -> None:
    """As evaluation harnesses ask for a log-likelihood."""
    ids = twin.tokenize("hello quit, a longer prompt than the window")
    score = twin.score(ids)
    choice = complete(server, prompt=[ids], echo=True, logprobs=1, max_tokens=1)["choices"][0]
    lists = choice["logprobs"]
    assert {name: len(values) for name, values in lists.items()} == dict.fromkeys(lists, len(ids) + 1)
    assert lists["token_logprobs"][0] is lists["top_logprobs"][0] is None
    assert np.allclose(lists["token_logprobs"][1:-1], score.logprobs, atol=1e-4)
    for name, logprob, top in list(zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True))[
        1:
    ]:
        assert top[name] == logprob  # the same float: a greedy token is the maximum, exactly
        assert max(top.values()) >= logprob
    assert choice["text"] == "hello quit, a longer prompt than the window" + lists["tokens"][-1]
    tokens, offsets = lists["tokens"][1:], lists["text_offset"][1:]
    assert [choice["text"][start:][: len(name)] for start, name in zip(offsets, tokens, strict=True)] == tokens
    assert complete(server, prompt=[ids], echo=True, logprobs=1, max_tokens=0)["usage"]["completion_tokens"] == 0


def test_a_stop_string_is_cut_and_ends_the_run(server: Running) -> None:
    whole = complete(server, model="scripted", prompt="the sky", max_tokens=30, stop="日")
    assert whole["choices"][0] == {"index": 0, "text": " is blue ", "logprobs": None, "finish_reason": "stop"}
    wait_for(server.idle)


def test_characters_of_several_tokens_have_offsets_and_names(server: Running) -> None:
    lists = complete(server, model="scripted", prompt="the sky", max_tokens=30, logprobs=1)["choices"][0]["logprobs"]
    assert lists["text_offset"][0] == 0
    assert lists["text_offset"] == sorted(lists["text_offset"])
    assert all(name in top for name, top in zip(lists["tokens"], lists["top_logprobs"], strict=True))


def test_n_seeded_answers_differ_and_repeat(server: Running) -> None:
    body = {"prompt": "hello", "n": 4, "temperature": 2.0, "seed": 11}
    texts = [choice["text"] for choice in complete(server, **body)["choices"]]
    assert len(set(texts)) > 1
    assert texts == [choice["text"] for choice in complete(server, **body)["choices"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "n": 1000}, "n"),
        ({"prompt": []}, "prompt"),
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [2, 99999]}, "prompt"),
        ({"prompt": [2, -1]}, "prompt[1]"),
        ({"prompt": [2, "a"]}, "prompt[1]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": 1e9}, "temperature"),
        ({"prompt": "a", "top_p": True}, "top_p"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "stop": ["a"] * 65}, "stop"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "model": 7}, "model"),
    ],
)
def test_what_is_wrong_is_named(server: Running, body: dict[str, Any], field: str) -> None:
    answer = server.http.post("/v1/completions", json={"model": "twin", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(field)


def test_a_prompt_longer_than_the_context_is_told(server: Running, twin: LLM) -> None:
    answer = server.http.post("/v1/completions", json={"model": "twin", "prompt": [5] * 40_000})
    assert answer.status_code == 400
    assert "the context holds 32768" in answer.json()["error"]["message"]


# ---- the openai client ----------------------------------------------------------------------------------------------


def test_openais_client_completes(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="scripted", prompt="the sky", max_tokens=30, logprobs=1)
    assert whole.choices[0].text == " is blue 日本"
    assert whole.choices[0].finish_reason == "stop"
    stream = client.completions.create(model="scripted", prompt="the sky", max_tokens=30, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " is blue 日本"


def test_openais_client_embeds_and_lists(client: openai.OpenAI, twin: LLM) -> None:
    found = client.embeddings.create(model="twin", input=["hello", "quit"])  # it asks for base64
    assert np.allclose(found.data[0].embedding, twin.embed("hello"), atol=1e-6)
    assert abs(np.linalg.norm(found.data[1].embedding) - 1) < 1e-5
    plain = client.embeddings.create(model="twin", input="hello", encoding_format="float", dimensions=8)
    short = np.array(twin.embed("hello"))[:8]
    assert np.allclose(plain.data[0].embedding, short / np.linalg.norm(short), atol=1e-6)
    assert [model.id for model in client.models.list()] == ["twin", "scripted"]
    assert client.models.retrieve("twin").id == "twin"


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="no-such", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="twin", prompt="a", temperature=-1)


def test_embeddings_of_ids_are_those_of_the_text(server: Running, twin: LLM) -> None:
    answer = server.http.post("/v1/embeddings", json={"model": "twin", "input": [twin.tokenize("hello")]}).json()
    assert np.allclose(answer["data"][0]["embedding"], twin.embed("hello"), atol=1e-6)
    long = twin.tokenize("hello" * 300)
    assert np.allclose(twin.embed(long), twin.embed(long, chunk=64), atol=1e-5)


# ---- tokens, models, health -----------------------------------------------------------------------------------------


def test_the_tokenizer_over_http(server: Running, twin: LLM) -> None:
    def post(path: str, **body: Any) -> Any:
        answer = server.http.post(path, json={"model": "twin", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    tokens = post("/tokenize", prompt="hello")
    assert tokens == {"count": len(tokens["tokens"]), "max_model_len": 32768, "tokens": twin.tokenize("hello")}
    assert post("/tokenize", prompt="hello", add_special_tokens=False)["tokens"] == twin.tokenize(
        "hello", add_bos=False
    )
    assert len(post("/tokenize", prompt="<|turn>", add_special_tokens=False)["tokens"]) == 1
    assert len(post("/tokenize", prompt="<|turn>", add_special_tokens=False, parse_special=False)["tokens"]) > 1
    assert post("/tokenize", prompt="qu", return_token_strs=True)["token_strs"] == ["<bos>", "qu"]
    messages = [{"role": "user", "content": "hello"}]
    assert post("/tokenize", messages=messages)["tokens"] == twin.chat_prompt(messages)
    assert post("/detokenize", tokens=twin.tokenize("hello")) == {"prompt": "<bos>hello"}
    info = server.http.get("/tokenizer_info", params={"model": "twin"}).json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<bos>", "<eos>", "<pad>")
    assert info["chat_template"] == TEMPLATE
    assert server.http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_health_metrics_and_version(server: Running) -> None:
    complete(server, prompt="secretly")
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/livez").json() == {"status": "ok"}
    assert server.http.get("/version").json()["version"]
    text = server.http.get("/metrics").text
    assert 'pocketgem_requests_total{method="POST",route="/v1/completions",status="200"}' in text
    assert 'pocketgem_completion_tokens_total{model="twin"}' in text
    assert "secretly" not in text


def test_a_server_that_does_not_move_is_not_ready(server: Running, twin: LLM) -> None:
    with busy(server, "twin"), twin.flights.lock:
        settings = server.app.serving.settings
        object.__setattr__(settings, "ready_seconds", 0.2)
        try:
            wait_for(lambda: server.http.get("/health").status_code == 503)
            assert server.http.get("/livez").status_code == 200
        finally:
            object.__setattr__(settings, "ready_seconds", 60.0)
    wait_for(server.idle)
    assert server.http.get("/health").status_code == 200


def test_the_page_brings_its_own_policy(server: Running) -> None:
    page = server.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert server.http.get("/page/style.css").status_code == 200
    assert server.http.get("/page/../settings.py").status_code == 404
    assert server.http.get("/page/%2e%2e/settings.py").status_code == 404


def test_the_log_tells_what_happened_and_not_what_was_said(server: Running) -> None:
    complete(server, prompt="a secret word")
    wait_for(lambda: server.lines and server.lines[-1]["path"] == "/v1/completions")
    line = server.lines[-1]
    assert (line["method"], line["status"], line["model"], line["completion_tokens"]) == ("POST", 200, "twin", 8)
    assert "secret" not in server.log.getvalue()


async def test_an_answer_is_over_when_its_last_token_was_read_not_when_it_was_made() -> None:
    """The engine ends a sequence a moment before its last output arrives: who reads meanwhile must not stop there."""
    sequence = Sequence(Request("r", (5,), SamplingParams()))
    run = ServedRun(sequence, Bell(asyncio.get_running_loop()), 100)
    run.take(Output(sequence, Sampled(7, None, ())))
    assert await run.next() is not None
    sequence.finish = FinishReason.LENGTH
    assert run.finish is None
    run.take(Output(sequence, Sampled(8, None, ())))
    assert run.finish is None
    assert await run.next() is not None
    assert run.finish is FinishReason.LENGTH


# ---- clients that leave ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Running, stream: bool) -> None:
    body = json.dumps({"model": "twin", **LONG, "n": 3, "stream": stream}).encode()
    sock = server.connect()
    sock.sendall(post_head("/v1/completions", len(body)) + body)
    wait_for(lambda: server.service("twin").running == 3)
    sock.close()
    wait_for(server.idle)
    wait_for(lambda: any(line.get("ended") == "client gone" for line in server.lines))


def test_a_stream_without_news_sends_comments(server: Running, twin: LLM) -> None:
    with (
        twin.flights.lock,
        server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        assert next(answer.iter_text()).startswith(":")
    wait_for(server.idle)


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(twin: LLM) -> Iterator[Running]:
    with running({"twin": twin}, Settings(port=0, keys=Keys.of([("me", KEY)]), requests_per_minute=1000)) as server:
        yield server


def test_a_key_opens_in_every_form(locked: Running) -> None:
    basic = base64.b64encode(f"any:{KEY}".encode()).decode()
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": f"Basic {basic}"}):
        assert locked.http.get("/v1/models", headers=headers).status_code == 200
    for headers in ({}, {"x-api-key": KEY[:-1]}, {"authorization": f"Bearer {KEY}x"}, {"authorization": "Basic ???"}):
        answer = locked.http.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert locked.http.get("/").headers["www-authenticate"].startswith("Basic")
    wait_for(lambda: any(line["key"] == "me" for line in locked.lines))
    assert KEY not in locked.log.getvalue()


def test_anthropics_errors_have_their_form(locked: Running) -> None:
    body = locked.http.post("/v1/messages", json={}).json()
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    assert body["request_id"]


def test_too_often_is_told_when_to_come_back(twin: LLM) -> None:
    with running({"twin": twin}, Settings(port=0, requests_per_minute=3)) as server:
        codes = [server.http.get("/v1/models").status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        answer = server.http.get("/v1/models")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.http.get("/health").status_code == 200


def test_too_many_at_once_are_told_at_once(twin: LLM) -> None:
    with running({"twin": twin}, Settings(port=0, max_requests=1)) as server:
        with busy(server, "twin"):
            refused = server.http.post("/v1/completions", json={"prompt": "a"})
            assert server.service("twin").running == 1  # it did not wait for the other's end
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        wait_for(server.idle)
        assert server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


# ---- several models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("many") / "twin")


def test_models_load_on_demand_and_make_room(folder: Path) -> None:
    loads: list[str] = []

    def source(name: str) -> Source:
        return Source(name, lambda: (loads.append(name), LLM.load(folder))[1], weight=100)

    sources = [source("one"), source("two"), source("three")]
    with running({}, sources=sources, budget=200, aliases={"gpt": "one"}) as server:
        body = {"prompt": "hello", "max_tokens": 4, "temperature": 0}
        texts = {server.http.post("/v1/completions", json={"model": name, **body}).text[30:] for name in ("one", "gpt")}
        assert loads == ["one"]
        assert texts
        assert server.http.post("/v1/completions", json=body).json()["model"] == "one"
        for name in ("two", "one", "three"):  # two was idle longest when three came
            assert server.http.post("/v1/completions", json={"model": name, **body}).json()["model"] == name
        assert loads == ["one", "two", "three"]
        models = {model["id"]: model["loaded"] for model in server.http.get("/v1/models").json()["data"]}
        assert models == {"one": True, "two": False, "three": True}


def test_a_model_that_cannot_be_loaded_is_told_without_its_path(folder: Path) -> None:
    def broken() -> LLM:
        return LLM.load(folder / "nothing.gguf")

    with running({}, sources=[Source("broken", broken), Source("good", lambda: LLM.load(folder))]) as server:
        answer = server.http.post("/v1/completions", json={"model": "broken", "prompt": "a"})
        assert answer.status_code == 500
        assert str(folder) not in answer.text
        assert server.http.post("/v1/completions", json={"model": "good", "prompt": "a"}).status_code == 200


def test_busy_models_are_not_unloaded(folder: Path) -> None:
    sources = [Source(name, lambda: LLM.load(folder), weight=100) for name in ("one", "two")]
    with running({}, sources=sources, budget=100, patience=0.2) as server:
        with busy(server, "one"):
            refused = server.http.post("/v1/completions", json={"model": "two", "prompt": "a"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        wait_for(server.idle)
        assert server.http.post("/v1/completions", json={"model": "two", "prompt": "a"}).status_code == 200


def test_an_idle_model_is_unloaded(folder: Path) -> None:
    with running({}, sources=[Source("one", lambda: LLM.load(folder))], idle_seconds=0.3) as server:
        assert server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        wait_for(lambda: not server.http.get("/v1/models").json()["data"][0]["loaded"])
        assert server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.weights
def test_the_real_model_completes(real_model_path: Path) -> None:
    llm = LLM.load(real_model_path)
    with running({"gemma-3-270m": llm}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = client.completions.create(model="gemma-3-270m", prompt="1, 2, 3, 4,", max_tokens=8, temperature=0)
            stream = client.completions.create(
                model="gemma-3-270m", prompt="1, 2, 3, 4,", max_tokens=8, temperature=0, stream=True
            )
            assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
            assert "5, 6" in whole.choices[0].text
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": ["a cat", "a kitten", "tax law"]}, timeout=20)
        cat, kitten, law = (np.array(item["embedding"]) for item in answer.json()["data"])
        assert cat @ kitten > cat @ law
