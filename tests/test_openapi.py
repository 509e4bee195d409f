"""The server keeps to its own OpenAPI document, whatever schemathesis sends; nothing in it makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from starlette.routing import Route

from pocketgem.serve.openapi import BODIES
from pocketgem.serve.settings import Settings
from tests.scripted import Script, scripted_llm
from tests.serving import Running, running, wait_for

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    llm = scripted_llm(tmp_path_factory.mktemp("openapi") / "m", Script(usual="Yes."), context=128)
    with running({"m": llm}, Settings(port=0)) as server:
        yield server


def document(server: Running) -> Any:
    return server.http.get("/openapi.json").json()


def test_every_route_is_in_the_document(server: Running) -> None:
    paths = document(server)["paths"]
    table = {route.path.replace(":path}", "}") for route in server.app.router.routes if isinstance(route, Route)}
    assert set(paths) == table - {"/openapi.json"}
    assert {path for path, operations in paths.items() if "post" in operations} == set(BODIES)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_schemathesis_finds_nothing(server: Running, method: str) -> None:
    schema = schemathesis.openapi.from_dict(document(server)).include(method=method)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in modes if method == "POST" else modes[:1]:

            @hypothesis.settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                if isinstance(case.body, dict) and case.body.get("model"):
                    case.body["model"] = "m"
                answer = case.call(base_url=server.url, timeout=20)
                case.validate_response(answer, checks=CHECKS)

            check()
    wait_for(server.idle)
    assert not [line for line in server.lines if line["event"] == "fault"]
