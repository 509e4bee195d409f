"""Media among the texts of a conversation: their places in the prompt, in real templates and in ones made for tests."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.errors import TemplateError
from pocketgem.text.chat import Chat
from pocketgem.text.media import PLACES, Slot, media_of
from pocketgem.text.messages import normalize
from tests import text_fixtures as fixtures
from tests.test_chat import SHARED, called, template, template_of, user

TOKENIZER = fixtures.gemma4_tokenizer()
REAL = [*sorted(SHARED.glob("*.jinja"))]
GEMMA_4 = [fixtures.DATA / "gemma4_like.jinja", *REAL]
PICTURE, SOUND, VIDEO = ({"type": kind, kind: b"x"} for kind in ("image", "audio", "video"))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def written(parts: list[Any]) -> str:
    """Parts as one line, media as [kind index]."""
    names = {id: name for name, id in TOKENIZER.special_tokens.items()}
    return "".join(f"[{p.kind} {p.index}]" if isinstance(p, Slot) else names.get(p, str(p)) for p in parts)


def chat(path: Any) -> Chat:
    return Chat(template(path.read_text(encoding="utf-8")), TOKENIZER)


@pytest.mark.parametrize("path", GEMMA_4, ids=lambda path: path.name)
def test_media_stand_where_the_person_put_them(path: Any) -> None:
    messages = [user([text("One "), PICTURE, text("and"), PICTURE, SOUND]), {"role": "assistant", "content": "Yes."}]
    messages.append(user([VIDEO, text("What now?")]))
    line = written(chat(path).parts(messages))
    assert "<|turn>user\nOne[image 0]and[image 1][audio 2]<turn|>" in line
    assert "<|turn>user\n[video 3]What now?<turn|>" in line


@pytest.mark.parametrize("path", GEMMA_4, ids=lambda path: path.name)
def test_media_in_a_tools_result_stand_behind_it(path: Any) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [text("see "), PICTURE, PICTURE]}
    line = written(chat(path).parts([user([PICTURE, text("w")]), called("Oslo"), result]))
    assert line.index("[image 0]") < line.index("see ")
    assert "<tool_response|>[image 1][image 2]" in line
    assert line.count("[") == 3


def test_gemma_3_writes_its_own_place() -> None:
    parts = Chat(template_of("gemma3_like.jinja"), fixtures.spm_tokenizer()).parts([user([text("a"), PICTURE])])
    assert [part for part in parts if isinstance(part, Slot)] == [Slot("image", 0)]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'][0]['text'] }}",
        "<|image|><|image|>",
        "<|audio|>",
        "{{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_drops_doubles_or_changes_media_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="does not show the media as they were given: image became"):
        Chat(template(source), TOKENIZER).parts([user([text("a"), PICTURE])])


def test_ids_alone_are_refused_where_there_are_media() -> None:
    with pytest.raises(TemplateError, match="hold media"):
        chat(GEMMA_4[0]).prompt([user([PICTURE])])


pieces = st.lists(
    st.sampled_from([*PLACES, "<|image>", "<image|>", "<", "|", ">", "image", "|>", "<|", "a"]), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(pieces, pieces, st.integers(0, 2), st.sampled_from(GEMMA_4))
def test_no_text_makes_a_place(before: list[str], behind: list[str], count: int, path: Any) -> None:
    content = [text("".join(before) or "b"), *[PICTURE] * count, text("".join(behind) or "c")]
    parts = chat(path).parts([user(content), {"role": "assistant", "content": "".join(before)}, user("".join(behind))])
    assert [part for part in parts if isinstance(part, Slot)] == [Slot("image", index) for index in range(count)]
    image = TOKENIZER.special_tokens["<|image|>"]
    assert image not in parts


def test_texts_side_by_side_are_one_and_media_keep_their_order() -> None:
    content = [text("a"), text("b"), PICTURE, text(""), SOUND, text("c")]
    assert normalize([user(content)])[0]["content"] == [
        text("ab"), {"type": "image"}, {"type": "audio"}, text("c"),
    ]  # fmt: skip
    assert media_of([user("x"), user(content)]) == [PICTURE, SOUND]


def test_texts_that_meet_are_encoded_as_one() -> None:
    talk = chat(GEMMA_4[0])
    joined = talk.encoded(["the", "re", 5, "he", "llo"])
    assert joined == talk.encoded(["there", 5, "hello"])
    assert any(a != b for a, b in pairwise([joined, talk.encoded(["the"]) + talk.encoded(["re"])]))
