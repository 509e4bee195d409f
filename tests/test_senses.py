"""Messages with media become ids and rows: places, budgets, limits, the cache; and answers that depend on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketgem.engine.inserts import Insert
from pocketgem.errors import MediaError, PromptError, RunError, TemplateError
from pocketgem.llm import LLM
from pocketgem.media.kinds import Picture, Sound
from pocketgem.senses import MOST_MEDIA, Senses
from pocketgem.senses.medium import wanted
from pocketgem.senses.prepare import stamp
from tests import text_fixtures as fixtures
from tests.scripted import Script, scripted_llm
from tests.sensing import FakeTowers, ask, clip, give_senses, mp4, picture, png, sensing_llm, sound, wav


@pytest.fixture(scope="module")
def e2b(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return sensing_llm(tmp_path_factory.mktemp("e2b"), "E2B")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    llm = scripted_llm(tmp_path_factory.mktemp("scripted"), Script({"hello": ["Hello, you."]}))
    give_senses(llm)
    return llm


def inserts(llm: LLM, messages: Any) -> tuple[Insert, ...]:
    return llm.request(llm.read_chat(messages), thinking=False).inserts


# ---- places and counts -----------------------------------------------------------------------------------------------


def test_rows_stand_between_the_marks_of_their_kind(scripted: LLM) -> None:
    laid = scripted.read_chat(ask("Look ", picture(1), "and", sound(0.5), picture(2), "now"))
    names = scripted.tokenizer.special_tokens
    assert [row.medium.kind for _, row in laid.rows] == ["image", "audio", "image"]
    for start, row in laid.rows:
        kind = row.medium.kind
        opening, place, closing = names[f"<|{kind}>"], names[f"<|{kind}|>"], names[f"<{kind}|>"]
        assert laid.ids[start - 1] == opening
        assert laid.ids[start : start + row.count] == [place] * row.count
        assert laid.ids[start + row.count] == closing
    assert laid.media == {"image": laid.rows[0][1].count + laid.rows[2][1].count, "audio": 13, "video": 0}


def test_frames_stand_behind_their_times(scripted: LLM) -> None:
    laid = scripted.read_chat(ask(clip(3), "what?"))
    line = scripted.detokenize(laid.ids)
    frame = "<|image>" + "<|video|>" * laid.rows[0][1].count + "<image|>"
    assert f"00:00 {frame} 00:20 {frame} 00:40 {frame}what?" in line
    assert stamp(61.9) == "01:01"


def test_a_vocabulary_without_video_takes_the_images_place() -> None:
    metadata = fixtures.gemma4_metadata()
    tokens = [name if name != "<|video|>" else "<|other|>" for name in metadata["tokenizer.ggml.tokens"]]
    tokenizer = type(fixtures.gemma4_tokenizer()).from_gguf(metadata | {"tokenizer.ggml.tokens": tokens})
    senses = Senses(FakeTowers(8), replace(_config(), family="gemma4"), tokenizer)
    assert senses.can("video")


def _config() -> Any:
    from pocketgem.config import from_hf
    from tests.cli_models import CONFIG

    return from_hf(CONFIG)


@pytest.mark.parametrize(("budget", "most"), [(70, 70), (280, 280), (1120, 1120), ("auto", 70)])
def test_an_image_has_at_most_its_budget_of_rows(scripted: LLM, budget: Any, most: int) -> None:
    part = {"type": "image", "image": picture(3, 64, 64), "budget": budget}
    (insert,) = inserts(scripted, ask(part, "hello"))
    assert most // 2 < insert.count <= most


def test_what_was_made_smaller_is_said(scripted: LLM) -> None:
    part = {"type": "image", "image": picture(3, 600, 600), "budget": 70}
    reply = scripted.chat(ask(part, "hello"))
    assert reply.content == "Hello, you."
    assert reply.notes[0].startswith("an image of 600x600 was made smaller for 64 tokens")
    assert not scripted.chat(ask(picture(3, 600, 600), "hello")).notes
    assert reply.stats.image_tokens == 64


def test_a_video_with_sound_and_a_long_sound_are_said(scripted: LLM) -> None:
    reply = scripted.chat(ask(clip(2, has_sound=True), sound(31.0), "hello"))
    assert "not heard" in reply.notes[0]
    assert reply.notes[1] == "31 s of sound are heard in 2 pieces of 30 s at most"
    laid = scripted.read_chat(ask(sound(31.0)))
    assert len(laid.rows) == 2
    assert 770 < laid.media["audio"] < 780


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"type": "image", "image": "a.png"}, "image is a str; it can be a file's bytes, a Path or a Picture"),
        ({"type": "image", "image": b"x", "budget": 100}, "an image budget is '100'; it is auto or one of 70"),
        ({"type": "image", "image": b"x", "budget": True}, "an image budget is 'True'"),
        ({"type": "video", "video": b"x", "frames": 0}, "frames is '0'; 1 to 256"),
        ({"type": "audio", "audio": sound(0.001)}, "too short to hear"),
        ({"type": "image", "image": Path("/no/such/file.png")}, "/no/such/file.png: cannot be read (No such file"),
        ({"type": "image", "image": Path("/")}, "/: is no file"),
        ({"type": "image", "image": b"no picture at all"}, "the picture is of no kind"),
        ({"type": "image", "image": png(), "media_type": "image/jpeg"}, "jpeg"),
        ({"type": "image", "image": b"x", "media_type": 7}, "media_type is a int"),
    ],
)
def test_what_cannot_be_taken_is_named(scripted: LLM, part: Any, complaint: str) -> None:
    with pytest.raises(MediaError) as raised:
        scripted.read_chat(ask(part))
    assert complaint.lower() in str(raised.value).lower()


def test_too_many_media_and_too_many_rows_are_refused_before_a_tower_runs(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}), context=300)
    towers = give_senses(llm)
    with pytest.raises(MediaError, match=f"{MOST_MEDIA} are taken"):
        llm.read_chat(ask(*[picture()] * (MOST_MEDIA + 1)))
    with pytest.raises(MediaError, match="the context holds 300"):
        llm.chat(ask(*[{"type": "image", "image": picture(), "budget": 280}] * 2))
    with pytest.raises(PromptError, match="the context holds 300"):
        llm.chat(ask(picture(), "word " * 300))
    assert towers.runs == 0


def test_a_checkpoint_without_towers_says_so(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}))
    for kind, given in (("image", picture()), ("audio", sound()), ("video", clip())):
        with pytest.raises(MediaError, match=r"has no (vision|audio) tower.*mmproj"):
            llm.chat(ask(given))
        assert not llm.senses.can(kind)  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="only user and tool"):
        llm.chat([{"role": "assistant", "content": ask(picture())[0]["content"]}])


def test_gemma_3_takes_images_only(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}))
    senses = Senses(FakeTowers(8), replace(llm.model.config, family="gemma3"), fixtures.spm_tokenizer())
    assert senses.can("image")
    with pytest.raises(MediaError, match="takes image, and no video"):
        senses.check("video")


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_the_same_image_runs_a_tower_once(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({"hello": ["Hi."]}))
    towers = give_senses(llm)
    file = png(5)
    first = inserts(llm, ask(("image", file), ("image", file), "hello", ("image", file)))
    assert towers.runs == 1
    assert len({insert.key for insert in first}) == 1
    inserts(llm, ask("hello", ("image", file)))
    assert (towers.runs, llm.senses.shelf.hits, llm.senses.shelf.misses) == (1, 1, 1)
    llm.drop_towers()
    assert llm.senses.shelf.nbytes == 0
    inserts(llm, ask(("image", file)))
    assert towers.runs == 1  # ``drop`` had set it to 0


def test_the_cache_has_a_bound(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}))
    row = llm.model.config.hidden_size * 4
    towers = give_senses(llm, room=3 * 70 * row)
    for number in range(8):
        inserts(llm, ask(picture(number)))
        assert llm.senses.shelf.nbytes <= 3 * 70 * row
    assert towers.runs == 8
    inserts(llm, ask(picture(7)))
    assert towers.runs == 8
    inserts(llm, ask(picture(0)))
    assert towers.runs == 9


def test_names_of_media_tell_apart_what_is_not_the_same() -> None:
    """Threat C4: equal bytes of other shapes, kinds, borders, preparations, towers and owners."""
    pixels = np.arange(30 * 100 * 3, dtype=np.uint32).astype(np.uint8)
    one, other = (Picture(pixels.reshape(*shape, 3)) for shape in ((30, 100), (100, 30)))
    image = {"type": "image", "image": b"bytes"}
    found = [
        wanted({"type": "image", "image": one}, "auto").key(b"t", ""),
        wanted({"type": "image", "image": other}, "auto").key(b"t", ""),
        wanted({"type": "image", "image": one.pixels.tobytes()}, "auto").key(b"t", ""),
        wanted(image, "auto").key(b"t", ""),
        wanted(image, 70).key(b"t", ""),
        wanted(image, "auto").key(b"u", ""),
        wanted(image, "auto").key(b"t", "o"),
        wanted(image, "auto").key(b"to", ""),
        wanted({"type": "audio", "audio": b"bytes"}, "auto").key(b"t", ""),
        wanted({"type": "audio", "audio": Sound(np.zeros(2, np.float32))}, "auto").key(b"t", ""),
        wanted({"type": "video", "video": b"bytes"}, "auto").key(b"t", ""),
        wanted({"type": "video", "video": b"bytes", "frames": 3}, "auto").key(b"t", ""),
        wanted({"type": "video", "video": clip(2)}, "auto").key(b"t", ""),
        wanted({"type": "video", "video": clip(2, has_sound=True)}, "auto").key(b"t", ""),
    ]
    assert len({*found}) == len(found)
    assert wanted(image, "auto").key(b"t", "") == wanted({**image, "budget": "auto"}, 280).key(b"t", "")


def test_what_one_owner_sent_is_not_found_by_another(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}))
    towers = give_senses(llm)
    for owner, runs in (("a", 1), ("b", 2), ("a", 2)):
        llm.senses.encode(llm.read_chat(ask(picture()), owner=owner))
        assert towers.runs == runs


def test_who_gives_up_stops_before_the_next_tower(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", Script({}))
    towers = give_senses(llm)
    answers = iter([True, False])
    laid = llm.read_chat(ask(picture(1), picture(2), picture(3)))
    with pytest.raises(RunError, match="given up"):
        llm.request(laid, thinking=False, proceed=lambda: next(answers))
    assert towers.runs == 1


def test_pixels_of_many_images_are_not_all_held(scripted: LLM) -> None:
    parts = ask(*({"type": "image", "image": picture(n, 8, 8), "budget": 1120} for n in range(5)))[0]["content"]
    media = scripted.senses.read(parts)
    assert [medium.takes is None for medium in media] == [False, False, True, True, True]
    assert sum(medium.nbytes for medium in media) <= 64 << 20


# ---- answers ---------------------------------------------------------------------------------------------------------


def greedy(llm: LLM, messages: Any, **more: Any) -> tuple[int, ...]:
    return llm.chat(messages, temperature=0, max_tokens=6, **more).ids


def test_answers_depend_on_what_is_seen_and_heard_and_are_those_of_a_cold_run(e2b: LLM, tmp_path: Path) -> None:
    asked = [
        ask(("image", png(1)), "What?"),
        ask("One ", ("image", png(1)), "two", ("image", png(2)), "?"),
        ask(("audio", wav()), "What?"),
        ask({"type": "video", "video": mp4(), "frames": 3}, "What?"),
        ask(("image", png(2)), ("audio", wav()), "What?"),
    ]
    warm = [greedy(e2b, messages) for messages in asked]
    assert [greedy(e2b, messages) for messages in asked] == warm
    assert len({*warm}) > 1
    for messages, known in zip(asked, warm, strict=True):
        e2b.drop_towers()
        assert greedy(e2b, messages) == known
    cold = sensing_llm(tmp_path / "cold", "E2B", kept=0)
    assert greedy(cold, asked[1]) == warm[1]


def test_logits_of_a_request_behind_anothers_media_are_a_cold_runs(e2b: LLM, tmp_path: Path) -> None:
    """To the last bits of float32: some processors' matrix products round otherwise where a prefix was kept and fewer
    rows come at once. Another picture's rows move these numbers by tenths."""

    def tops(llm: LLM, number: int) -> tuple[list[int], list[dict[int, float]]]:
        found = llm.chat(ask(("image", png(number)), "What?"), temperature=0, max_tokens=3, logprobs=5)
        return [one.id for one in found.logprobs], [{**dict(one.top), one.id: one.logprob} for one in found.logprobs]

    cold = sensing_llm(tmp_path / "cold", "E2B", kept=0)
    ids, known = tops(cold, 8)
    others = tops(e2b, 7)[1]
    expected = [pytest.approx(one, abs=1e-4) for one in known]
    assert tops(e2b, 8) == (ids, expected)
    assert others != expected


def test_towers_can_be_dropped(e2b: LLM) -> None:
    greedy(e2b, ask(("image", png(1)), "What?"))
    assert e2b.senses.towers.nbytes > 0  # type: ignore[attr-defined]
    e2b.drop_towers()
    assert e2b.senses.towers.nbytes == 0  # type: ignore[attr-defined]
    assert greedy(e2b, ask(("image", png(1)), "What?"))


def test_rows_of_a_tower_are_its_promised_number(e2b: LLM) -> None:
    for message in (ask(picture(1)), ask(sound()), ask(clip(2)), ask(picture(2, 120, 50))):
        for insert in inserts(e2b, message):
            assert isinstance(insert.vectors, torch.Tensor)
            assert insert.vectors.shape == (insert.count, e2b.model.config.hidden_size)


def test_a_tower_of_one_layout_is_whole_and_seen_at_once(tmp_path: Path) -> None:
    llm = sensing_llm(tmp_path / "moe", "26B-A4B")
    assert all(insert.whole for insert in inserts(llm, ask(picture(1), picture(2), "?")))
    assert not llm.senses.can("audio")
    assert greedy(llm, ask(picture(1), picture(2), "?")) == greedy(llm, ask(picture(1), picture(2), "?"))


def test_gemma_3_sees_squares_of_one_size(tmp_path: Path) -> None:
    llm = sensing_llm(tmp_path / "gemma3", "gemma3-multimodal")
    (one,) = inserts(llm, ask("One ", ("image", png(1, 40, 20)), "?"))
    assert (one.count, one.whole) == (4, True)
    assert not llm.senses.can("video")
    assert greedy(llm, ask(picture(1), "?")) == greedy(llm, ask(picture(1), "?"))


def test_with_a_memory_budget_room_is_planned_for_the_towers_that_will_be_used(tmp_path: Path) -> None:
    def peak(*media: str) -> int:
        llm = sensing_llm(tmp_path / "m", "E2B", memory="4GiB", media=media)
        assert llm.plan is not None
        return llm.plan.peak

    alone, seeing = peak(), peak("image", "video")
    assert alone < seeing < peak("image", "audio")
    with pytest.raises(PromptError, match="media is 'smell', expected some of image"):
        peak("smell")
