"""Forms: what official clients send is read, what is broken or too much is refused, and nothing gets lost between."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgem.serve.faults import Fault
from pocketgem.serve.multipart import FORM, MAX_PARTS, MAX_TEXT, Form, Upload, parse

TYPE = f"{FORM}; boundary=b"


def encoded(
    texts: dict[str, str | list[str]] | None = None, files: list[tuple[str, tuple[str, bytes, str]]] | None = None
) -> tuple[bytes, str]:
    """As httpx writes it, which is what OpenAI's client speaks through."""
    request = httpx.Request("POST", "http://x", data=texts, files=files or [("none", ("", b"", "a/b"))])
    return request.read(), request.headers["content-type"]


def part(head: str, body: bytes = b"1") -> bytes:
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n"


def refusal(body: bytes, content_type: str = TYPE) -> str:
    with pytest.raises(Fault) as caught:
        parse(body, content_type)
    assert (caught.value.status, caught.value.code) == (400, "invalid_multipart")
    return caught.value.message


def test_a_recording_with_its_fields() -> None:
    body, kind = encoded(
        {"model": "m", "prompt": "Zoë\r\n--b", "timestamp_granularities[]": ["segment", "word"]},
        [("file", ("a b.wav", b"RIFF\r\n\x00--", "audio/wav"))],
    )
    assert parse(body, kind) == Form(
        {"model": ["m"], "prompt": ["Zoë\r\n--b"], "timestamp_granularities[]": ["segment", "word"]},
        {"file": [Upload(b"RIFF\r\n\x00--", "a b.wav", "audio/wav")]},
    )


@given(st.dictionaries(st.text("abc[]_", min_size=1), st.text(max_size=50), max_size=4), st.binary(max_size=500))
def test_every_form_comes_back(texts: dict[str, str], content: bytes) -> None:
    body, kind = encoded(dict(texts), [("file", ("f", content, "audio/mpeg"))])
    form = parse(body, kind)
    assert form.texts == {name: [text] for name, text in texts.items()}
    assert form.files == {"file": [Upload(content, "f", "audio/mpeg")]}


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damage_is_refused_or_read_but_nothing_else(content: bytes, at: int, damage: bytes) -> None:
    body, kind = encoded({"model": "m"}, [("file", ("f", content, "a/b"))])
    for broken in (body[:at], body[:at] + damage + body[at + len(damage) :]):
        with suppress(Fault):
            parse(broken, kind)


def test_a_form_that_is_cut_short_is_refused() -> None:
    body, kind = encoded({"model": "m"})
    for end in range(1, len(body) - 4):  # the last line break may be missing, and dashes with it
        assert "cut short" in refusal(body[:end], kind), end


@pytest.mark.parametrize("kind", ["", FORM, f"{FORM}; boundary=", "text/plain; boundary=b", f"{FORM}; charset=utf-8"])
def test_a_type_without_boundary_is_refused(kind: str) -> None:
    assert "no boundary" in refusal(part('content-disposition: form-data; name="a"') + b"--b--\r\n", kind)


def test_too_many_too_long_and_nameless_parts_are_refused() -> None:
    field = 'content-disposition: form-data; name="a"'
    assert len(parse(part(field) * MAX_PARTS + b"--b--\r\n", TYPE).texts["a"]) == MAX_PARTS
    assert "more than 64 parts" in refusal(part(field) * (MAX_PARTS + 1) + b"--b--\r\n")
    assert len(parse(part(field, b"x" * MAX_TEXT) + b"--b--\r\n", TYPE).texts["a"][0]) == MAX_TEXT
    assert "more than 65536 bytes" in refusal(part(field, b"x" * (MAX_TEXT + 1)) + b"--b--\r\n")
    assert "no name" in refusal(part("content-disposition: form-data") + b"--b--\r\n")
    assert "no name" in refusal(part(f'content-disposition: form-data; name="{"n" * 257}"') + b"--b--\r\n")
    assert refusal(part("x: " + "y" * 5000) + b"--b--\r\n")
    assert refusal(part("\r\n".join(f"h{n}: 1" for n in range(20))) + b"--b--\r\n")
    assert "not UTF-8" in refusal(part(field, b"\xff") + b"--b--\r\n")
    assert refusal(b"no form at all")


def test_a_long_boundary_is_refused() -> None:
    assert refusal(b"--" + b"b" * 5000, f"{FORM}; boundary={'b' * 5000}")
