"""Recordings over HTTP: OpenAI's official client, every form of answer, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from pocketgem.serve.settings import Settings
from tests.scripted import Script, scripted_llm
from tests.serving import PATIENCE, Running, running, wait_for
from tests.spoken import recording

ROUTE = "/v1/audio/transcriptions"
SCRIPT = Script(
    {
        "into German text": ["Hallo Welt. Wie geht es dir?"],
        "into Dutch text": ["een twee drie"],
        "translate it into English": ["Guten Tag.\nEnglish: Good day."],
        "translate it into French": ["Guten Tag.\nFrench: Bonjour."],
        "may come up: Zeno": ["Zeno said so."],
        "into Polish text": ["raz dwa trzy " * 200],
        "original language": ["Something else."],
    }
)


SHORT = ("a.wav", recording(1.0))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("audio")
    hears = scripted_llm(folder / "hears", SCRIPT, hears=True)
    deaf = scripted_llm(folder / "deaf", SCRIPT)
    with running({"m": hears, "deaf": deaf}, Settings(port=0, max_body=1 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(autouse=True)
def no_fault(server: Running) -> Iterator[None]:
    yield
    wait_for(server.idle)
    assert not any(line["event"] == "fault" for line in server.lines), server.lines[-3:]


def post(
    server: Running, data: dict[str, Any], path: str = ROUTE, file: tuple[str, bytes] | None = SHORT
) -> httpx.Response:
    return server.http.post(path, data=data, files={} if file is None else {"file": file})


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_the_official_client_gets_text_and_counts(api: openai.OpenAI) -> None:
    found = api.audio.transcriptions.create(file=SHORT, model="m", language="de")
    assert found.text == "Hallo Welt. Wie geht es dir?"
    usage = found.usage
    assert usage is not None and usage.type == "tokens"  # noqa: PT018 - for the type checker
    assert usage.input_token_details is not None
    assert usage.input_token_details.audio_tokens == 25
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens > 5


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("text", "Hallo Welt. Wie geht es dir?\n"),
        (
            "srt",
            "1\n00:00:00,000 --> 00:00:00,407\nHallo Welt.\n\n2\n00:00:00,407 --> 00:00:01,000\nWie geht es dir?\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:00.407\nHallo Welt.\n\n00:00:00.407 --> 00:00:01.000\nWie geht es dir?\n",
        ),
    ],
)
def test_the_official_client_gets_plain_forms(api: openai.OpenAI, form: Any, written: str) -> None:
    assert api.audio.transcriptions.create(file=SHORT, model="m", language="de", response_format=form) == written


def test_the_official_client_gets_segments(api: openai.OpenAI) -> None:
    found = api.audio.transcriptions.create(
        file=SHORT, model="m", language="de", response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert (found.language, found.duration) == ("german", 1.0)
    assert found.segments is not None
    assert [(one.start, one.end, one.text) for one in found.segments] == [
        (0.0, 0.407, "Hallo Welt."), (0.407, 1.0, "Wie geht es dir?"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:deprecated")  # the client's own word on translations
def test_translations_are_into_english_or_what_is_asked(api: openai.OpenAI) -> None:
    assert api.audio.translations.create(file=SHORT, model="m").text == "Good day."
    found = api.audio.translations.create(file=SHORT, model="m", extra_body={"target_language": "fr"})
    assert found.text == "Bonjour."


def test_a_prompt_is_a_hint(api: openai.OpenAI) -> None:
    assert api.audio.transcriptions.create(file=SHORT, model="m", prompt="Zeno").text == "Zeno said so."


def test_a_long_recording_is_heard_in_pieces(server: Running) -> None:
    """The script says the same of every piece, and what two pieces both say is said once."""
    answer = post(server, {"language": "nl", "response_format": "verbose_json"}, file=("l.wav", recording(31.5)))
    found = answer.json()
    assert found["text"] == "een twee drie"
    assert found["duration"] == 31.5
    counted = post(server, {"language": "nl"}, file=("l.wav", recording(31.5))).json()["usage"]
    assert counted["input_token_details"]["audio_tokens"] > 31.5 * 25, "pieces overlap"


def test_the_log_says_how_long_it_was_and_not_what(server: Running) -> None:
    post(server, {"language": "de"})
    wait_for(lambda: any("sound_seconds" in line for line in server.lines))
    (line,) = [line for line in server.lines if "sound_seconds" in line][-1:]
    assert (line["sound_seconds"], line["model"]) == (1.0, "m")
    assert "Hallo" not in json.dumps(server.lines)


def test_an_answer_that_reached_its_limit_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketgem.serve.audio.MAX_TOKENS", 40)
    assert "reached its limit of tokens" in post(server, {"language": "pl"}).json()["notes"][0]
    assert "notes" not in post(server, {"language": "de"}).json()


def test_several_at_once_get_their_own_answers(server: Running) -> None:
    wanted = {"de": "Hallo Welt. Wie geht es dir?", "nl": "een twee drie"}
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(
            lambda language: (language, post(server, {"language": language}).json()["text"]), [*wanted] * 4
        )
    assert all(text == wanted[language] for language, text in answers)


def test_a_client_that_leaves_ends_its_request(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{ROUTE}", data={"language": "pl"}, files={"file": SHORT}, timeout=0.2)
    wait_for(lambda: any(line.get("ended") == "client gone" for line in server.lines))
    wait_for(server.idle, 2.0)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"temperature": "3"}, "temperature: must be a number from 0 to 2"),
        ({"temperature": "nan"}, "temperature: must be a number"),
        ({"response_format": "diarized_json"}, "response_format: must be one of json, text"),
        ({"language": "xx"}, "'xx' is no language"),
        ({"prompt": "x" * 2001}, "at most 2000"),
        ({"stream": "true"}, "stream: is not done"),
        ({"timestamp_granularities[]": ["segment", "word"]}, "words have no times"),
        ({"timestamp_granularities[]": "syllable"}, "must be 'segment'"),
        ({"include[]": "logprobs"}, "log-probabilities are not given"),
        ({"chunking_strategy": "auto"}, "there is no other way"),
        ({"model": ["m", "m"]}, "model: is there more than once"),
        ({"model": "deaf"}, "no audio tower"),
    ],
)
def test_what_cannot_be_is_told(server: Running, data: dict[str, Any], told: str) -> None:
    answer = post(server, data)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (None, "form"),
        (("a.wav", b""), "sound"),
        (("a.wav", b"RIFF no more"), "sound"),
        (("a.wav", recording(1.0)[:44]), "sound"),
        (("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "sound"),
        (("a.wav", recording(0.0)), "sound"),
    ],
)
def test_what_is_no_recording_is_told(server: Running, file: tuple[str, bytes] | None, told: str) -> None:
    answer = post(server, {"model": "m"}, file=file)
    assert answer.status_code in (400, 415), answer.text
    assert told in answer.json()["error"]["message"]
    assert post(server, {"language": "de"}).json()["text"], "and the server lives"


def test_a_second_file_is_refused(server: Running) -> None:
    for files in ([("file", SHORT), ("file", SHORT)], [("file", SHORT), ("other", SHORT)]):
        answer = server.http.post(ROUTE, files=files)
        assert answer.status_code == 400
        assert "file" in answer.json()["error"]["message"]


def test_unknown_models_and_large_bodies_are_the_clients_own_errors(server: Running, api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        api.audio.transcriptions.create(file=SHORT, model="nobody")
    with pytest.raises(openai.APIStatusError) as caught:
        api.audio.transcriptions.create(file=("l.wav", bytes(2 << 20)), model="m")
    assert caught.value.status_code == 413


def test_forms_are_for_recordings_and_json_for_the_rest(server: Running) -> None:
    assert server.http.post(ROUTE, json={"file": "x"}).status_code == 415
    assert server.http.post("/v1/completions", files={"file": SHORT}).status_code == 415


def test_a_page_of_another_site_cannot_send_a_form(server: Running) -> None:
    answer = server.http.post(ROUTE, files={"file": SHORT}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
