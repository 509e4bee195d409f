"""The server's own OpenAPI document: it is true, and schemathesis finds nothing by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from pocketgem import LLM
from pocketgem.serve import chat, completions_read, messages, responses
from pocketgem.serve.chat_read import KNOWN as CHAT_KNOWN
from pocketgem.serve.chat_read import REFUSED as CHAT_REFUSED
from pocketgem.serve.fields import FieldError, Fields
from pocketgem.serve.messages_read import KNOWN as MESSAGES_KNOWN
from pocketgem.serve.messages_read import REFUSED as MESSAGES_REFUSED
from pocketgem.serve.openapi import OPERATIONS
from pocketgem.serve.openapi_schemas import BODIES
from pocketgem.serve.responses_read import KNOWN as RESPONSES_KNOWN
from pocketgem.serve.responses_read import REFUSED as RESPONSES_REFUSED
from tests.scripted import Script, scripted_llm
from tests.serving import PATIENCE, Running, running, wait_for

EXAMPLES = 6  # of schemathesis for each operation and kind
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "canary"}]},
    "/v1/responses": {"input": "canary"},
    "/v1/messages": {"messages": [{"role": "user", "content": "canary"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "canary"}]},
    "/v1/completions": {"prompt": "a canary"},
    "/v1/embeddings": {"input": "a"},
    "/v1/audio/transcriptions": {"file": "a"},
    "/v1/audio/translations": {"file": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}
READERS: dict[str, Any] = {
    "/v1/chat/completions": chat.read,
    "/v1/responses": responses.read,
    "/v1/messages": messages.read,
    "/v1/messages/count_tokens": lambda body: messages.read(body, counting=True),
    "/v1/completions": lambda body: completions_read.Wanted.read(Fields.of(body)),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(tmp_path_factory.mktemp("openapi") / "model", Script({"canary": ["sings"]}), context=256)


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    with running({"m": llm}) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return server.http.get("/openapi.json").json()


# ---- the document is true -------------------------------------------------------------------------------------------


def test_every_route_is_described_and_nothing_else(server: Running, document: Any) -> None:
    live = {
        (method, route.path)
        for route in server.app.router.routes
        for method in (getattr(route, "methods", None) or set()) - {"HEAD"}
    }
    assert live == set(OPERATIONS)
    assert {path for method, path in live if method == "POST"} == set(BODIES) == set(GOOD)
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(method, path.replace(":path}", "}")) for method, path in live}


class Watched(Mapping[str, object]):
    """A request that remembers which of its fields were looked for."""

    def __init__(self, data: dict[str, object]) -> None:
        self.data, self.asked = data, set[str]()

    def __getitem__(self, name: str) -> object:
        self.asked.add(name)
        return self.data[name]

    def get(self, name: str, default: object = None) -> Any:
        self.asked.add(name)
        return self.data.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def test_the_fields_are_those_that_are_read() -> None:
    dialects = {
        "/v1/chat/completions": (CHAT_KNOWN, CHAT_REFUSED),
        "/v1/responses": (RESPONSES_KNOWN, RESPONSES_REFUSED),
        "/v1/messages": (MESSAGES_KNOWN, MESSAGES_REFUSED),
        "/v1/messages/count_tokens": (MESSAGES_KNOWN, MESSAGES_REFUSED),
    }
    for path, (known, refused) in dialects.items():
        assert set(BODIES[path]["properties"]) == set(known) - set(refused), path
    watched = Watched({"prompt": "a", "stream": True, "model": "m", "logprobs": 1, "stop": "a", "min_tokens": 0})
    READERS["/v1/completions"](watched)
    assert watched.asked == set(BODIES["/v1/completions"]["properties"])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/detokenize"])
def test_a_field_of_the_wrong_type_is_refused_so_it_is_read(server: Running, path: str) -> None:
    for name, schema in BODIES[path]["properties"].items():
        wrong: Any = 7.5 if schema.get("type") != ["object", "null"] else [7.5]
        body = {**GOOD[path], **({"messages": [{"role": "user", "content": "a"}]} if name == "tools" else {})}
        if name == "chat_template_kwargs":
            body["messages"] = [{"role": "user", "content": "a"}]
        answer = server.http.post(path, json={**body, name: wrong})
        assert answer.status_code == 400, (name, answer.text)
        assert name in answer.json()["error"]["message"]


def limits() -> list[tuple[str, str, Any, bool]]:
    """(path, field, value, whether it is let in) at and beyond every limit of a number."""
    found: list[tuple[str, str, Any, bool]] = []
    for path in READERS:
        for name, schema in BODIES[path]["properties"].items():
            if "minimum" in schema:
                low, high = schema["minimum"], schema["maximum"]
                found += [(path, name, value, True) for value in (low, high)]
                found += [(path, name, value, False) for value in (low - 1, high + 1, "1", True, [])]
    return found


def refusal(path: str, body: dict[str, Any]) -> str | None:
    """The field that the reader refuses, if it does."""
    try:
        READERS[path](body)
    except FieldError as error:
        return error.field
    return None


def test_the_limits_are_the_readers() -> None:
    tried = limits()
    assert len(tried) > 200
    beside = {"min_tokens": {"max_tokens": 2**31 - 1}, "top_logprobs": {"logprobs": True}}
    for path, name, value, fits in tried:
        body = {**GOOD[path], **beside.get(name, {}), name: value}
        if name == "best_of":
            body["n"] = value
        refused = refusal(path, body)
        assert refused in (None, name, "n", "min_tokens"), (path, name, value, refused)
        assert (refused is None) == fits, (path, name, value)


def test_what_the_readers_take_fits_the_document() -> None:
    tool = {"name": "f", "parameters": {"type": "object"}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    use, thought = {"type": "tool_use", "id": "c", "name": "f", "input": {}}, {"type": "thinking", "thinking": "a"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "1", "is_error": True}
    bodies: list[tuple[str, dict[str, Any]]] = [
        *GOOD.items(),
        ("/v1/completions", {"prompt": [[1, 2], "a"], "stop": ["a"], "logit_bias": {"5": -100}, "suffix": None}),
        ("/v1/chat/completions", {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "image_url", "image_url": "https://example.org/a.png"},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
                    {"type": "file", "file": {"file_data": "data:image/png;base64,AAAA", "filename": "a"}},
                ]},
            ],
            "tools": [{"type": "function", "function": tool}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        }),
        ("/v1/responses", {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"},
                                             {"type": "input_image", "image_url": "data:;base64,", "detail": "auto"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
            ],
            "tools": [{"type": "function", **tool}, {"type": "web_search"}], "reasoning": {"effort": "low"},
        }),
        ("/v1/messages", {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [thought, use]},
                {"role": "user", "content": [result]},
                {"role": "user", "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                ]},
            ],
            "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }),
    ]  # fmt: skip
    for path, body in bodies:
        jsonschema.validate(body, BODIES[path])
        if path in READERS:
            READERS[path](body)


# ---- schemathesis ---------------------------------------------------------------------------------------------------


def short(body: Any) -> Any:
    """A request that is as odd as it was, but makes few tokens."""
    if isinstance(body, dict):
        for name, most in (("n", 3), ("best_of", 3), ("max_tokens", 9), ("max_completion_tokens", 9)):
            if type(body.get(name)) is int:
                body[name] = min(body[name], most)
    return body


CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.filterwarnings("ignore")  # of schemathesis' own
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*one, mode) for one in sorted(OPERATIONS) for mode in GenerationMode if one[0] == "POST" or mode.is_positive],
)
def test_schemathesis_finds_nothing(
    server: Running, document: Any, song: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_dict(document)[path.replace(":path}", "}")][method]
    statuses: list[int] = []
    checks = CHECKS if mode.is_positive else [*CHECKS, negative_data_rejection]

    @hypothesis.settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def try_it(case: Any) -> None:
        case.body = short(case.body)
        answer = case.call_and_validate(base_url=server.url, checks=checks, timeout=PATIENCE)
        statuses.append(answer.status_code)

    try_it()
    assert mode.is_positive or 400 in statuses
    assert sing(server) == song


@pytest.fixture(scope="module")
def song(server: Running) -> Any:
    return sing(server)


def sing(server: Running) -> Any:
    """A canary's answer: the same whatever was asked before."""
    wait_for(server.idle)
    body = {"model": "m", "prompt": "a canary", "max_tokens": 3, "temperature": 1, "seed": 5}
    answer = server.http.post("/v1/completions", json=body)
    assert not any(line["event"] == "fault" for line in server.lines), server.lines[-3:]
    return answer.json()["choices"]
