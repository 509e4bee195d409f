"""Boxes, points and captions: always readable, on the right pixels."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketgem import pointing
from pocketgem.errors import MediaError, PromptError
from pocketgem.llm import LLM
from pocketgem.media.kinds import Picture
from pocketgem.pointing import COLOURS, Box, Point, box_of, caption, detect, draw, point, point_of
from tests.scripted import Script, scripted_llm
from tests.sensing import clip, give_senses, picture, png, sensing_llm

CATS = [{"box_2d": [100, 200, 500, 600], "label": "cat"}, {"box_2d": [900, 900, 100, 1000], "label": "tail"}]
SCENES = [{"start": "00:00", "end": "00:20", "text": "A wall."}, {"start": "00:50", "end": "99:59", "text": "Fog."}]
SCRIPT = Script(
    {
        "Detect every cat": [json.dumps(CATS)],
        "Detect nothing": ["[]"],
        "Point to the nose": ['[{"point": [500, 250], "label": "nose"}]'],
        "scene by scene": [json.dumps(SCENES)],
    }
)
TRIES = 3  # of 200; ``python -m tests.test_pointing FOLDER`` runs them all


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    llm = scripted_llm(tmp_path_factory.mktemp("pointing"), SCRIPT)
    give_senses(llm)
    return llm


def test_boxes_are_in_pixels_of_the_picture(llm: LLM) -> None:
    found = detect(llm, picture(1, height=200, width=400), "every cat")
    assert found == [Box(80, 20, 240, 100, "cat"), Box(360, 20, 400, 180, "tail")]
    assert detect(llm, png(1, 200, 400), "every cat") == found
    told: list[str] = []
    assert detect(llm, picture(), "nothing", tell=told.append) == []
    assert not told
    large = picture(1, height=1700, width=1700)
    assert detect(llm, large, "nothing", tell=told.append) == []
    assert told[0].startswith("an image of 1700x1700 was made smaller")
    assert point(llm, picture(1, height=200, width=400), "the nose") == [Point(100, 100, "nose")]


def test_pixels_are_those_of_the_upright_picture(llm: LLM) -> None:
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    Image.new("RGB", (400, 200)).save(file, "JPEG", exif=turned)
    assert detect(llm, file.getvalue(), "every cat")[0] == Box(40, 40, 120, 200, "cat")


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (480, 640)])
def test_every_place_lies_in_the_picture(size: tuple[int, int]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b, c, d = (rng.choice([0, 1000, rng.randint(0, 1000)]) for _ in range(4))
        box = box_of([a, b, c, d], "", size)
        assert 0 <= box.left < box.right <= size[1]
        assert 0 <= box.top < box.bottom <= size[0]
        one = point_of([a, b], "", size)
        assert 0 <= one.x < size[1]
        assert 0 <= one.y < size[0]
    assert box_of([0, 0, 1000, 1000], "", size) == Box(0, 0, size[1], size[0], "")


def test_what_is_drawn_lies_on_its_pixels() -> None:
    white = Picture(np.full((100, 200, 3), 255, np.uint8))
    box, dot = Box(20, 10, 120, 60, ""), Point(160, 80, "")
    drawn = np.asarray(Image.open(io.BytesIO(draw(white, [box], [dot]))))
    assert drawn.shape == (100, 200, 3)
    marked = np.argwhere((drawn == COLOURS[0]).all(-1) & (np.arange(200) < 140))
    assert marked.min(0).tolist() == [10, 20]
    assert marked.max(0).tolist() == [59, 119]
    assert (drawn[12:58, 22:118] == 255).all(), "the box is filled"
    for row, column in ((10, 20), (10, 119), (59, 20), (59, 119), (35, 20), (11, 60)):
        assert drawn[row, column].tolist() == list(COLOURS[0])
    assert drawn[80, 160].tolist() == list(COLOURS[0])
    assert (white.pixels == 255).all(), "the picture itself was drawn on"


def test_labels_in_any_script_are_drawn_and_break_nothing() -> None:
    boxes = [Box(0, 0, 1, 1, "кот 猫 🐈"), Box(90, 50, 100, 60, "a label that is longer than the picture is wide")]
    assert draw(picture(1, 60, 100), boxes, [Point(99, 59, "é")])


def test_captions_have_times_within_the_video(llm: LLM) -> None:
    found = caption(llm, clip(3))
    assert [(line.start, line.end, line.text) for line in found.lines] == [(0, 20, "A wall."), (50, 60, "Fog.")]
    assert "00:00:50,000 --> 00:01:00,000" in found.srt
    assert found.vtt.startswith("WEBVTT")


def test_what_cannot_be_asked_is_refused(llm: LLM) -> None:
    for what in ("", "   ", "x" * 3000):
        with pytest.raises(PromptError, match="say what to look for"):
            detect(llm, picture(), what)
    with pytest.raises(PromptError, match="the answer was cut after 5 tokens"):
        detect(llm, picture(), "every cat", max_tokens=5)
    with pytest.raises(MediaError, match="the picture"):
        detect(llm, b"no picture", "every cat")


def constrained(llm: LLM, tries: int) -> int:
    """How many answers of random weights are as they were asked for."""
    good = 0
    for seed in range(tries):
        kind = (detect, point, caption)[seed % 3]
        what: Any = clip(2) if kind is caption else picture(seed)
        found = kind(llm, what, *([] if kind is caption else ["it"]), temperature=1.0, top_k=None, seed=seed)
        good += isinstance(found, list | pointing.Captions)
    return good


def test_answers_of_random_weights_can_always_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointing, "MOST", 3)
    monkeypatch.setattr(pointing, "_SCENES", {**pointing._SCENES, "maxItems": 2})
    llm = sensing_llm(tmp_path / "m", "E2B")
    assert constrained(llm, TRIES) == TRIES


if __name__ == "__main__":  # python -m tests.test_pointing FOLDER [TRIES]
    import sys

    pointing.MOST = 3
    pointing._SCENES = {**pointing._SCENES, "maxItems": 2}
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    print(constrained(sensing_llm(Path(sys.argv[1]), "E2B"), count), "of", count)
