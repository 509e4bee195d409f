"""Long sounds in pieces, and their texts as one again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.media.kinds import SAMPLE_RATE, Sound
from pocketgem.media.mel import MAX_SAMPLES
from pocketgem.media.pieces import OVERLAP, PAUSE, SEARCH, Piece, cut, glued, own_parts, quietest

SHARED = int(OVERLAP * SAMPLE_RATE)


NOISE = np.random.default_rng(0).standard_normal(135 * SAMPLE_RATE, np.float32) * np.float32(0.1)


def noise(seconds: float, at: int = 0) -> Sound:
    return Sound(NOISE[at * SAMPLE_RATE :][: int(seconds * SAMPLE_RATE)])


# ---- sounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0])
def test_what_a_model_hears_at_once_is_one_piece(seconds: float) -> None:
    sound = noise(seconds)
    assert cut(sound) == (Piece(0, 0, len(sound.samples)),)


@settings(max_examples=40)
@given(st.floats(30.001, 130), st.integers(0, 4), st.sampled_from([0.0, 0.5, OVERLAP]))
def test_pieces_cover_a_sound_and_none_is_too_long(seconds: float, at: int, overlap: float) -> None:
    sound = noise(seconds, at)
    pieces = cut(sound, overlap=overlap)
    assert len(pieces) > 1
    assert pieces[0].start == pieces[0].own == 0
    assert pieces[-1].stop == len(sound.samples)
    for one, other in pairwise(pieces):
        assert one.stop == other.own, "what is new begins where the last piece ended"
        assert other.own - other.start == int(overlap * SAMPLE_RATE)
    for piece in pieces:
        assert 0 < len(piece.of(sound).samples) <= MAX_SAMPLES
        assert piece.own < piece.stop
    longest = [len(piece.of(sound).samples) for piece in pieces[:-1]]
    assert all(count >= MAX_SAMPLES - SEARCH * SAMPLE_RATE for count in longest), "a piece is shorter than it need be"


@settings(max_examples=30)
@given(st.floats(25.5, 29.5))
def test_a_cut_falls_into_a_pause(at: float) -> None:
    sound = Sound(noise(50).samples.copy())
    begins, ends = int(at * SAMPLE_RATE), int((at + 0.4) * SAMPLE_RATE)
    sound.samples[begins:ends] *= 0.01
    first, _ = cut(sound)
    assert begins + PAUSE / 2 * SAMPLE_RATE - 320 <= first.stop <= ends


def test_without_a_pause_pieces_are_as_long_as_they_may_be() -> None:
    first, *_ = cut(Sound(np.zeros(MAX_SAMPLES * 2, np.float32)))
    assert MAX_SAMPLES - first.stop <= PAUSE * SAMPLE_RATE


def test_the_quietest_of_nearly_nothing_is_its_end() -> None:
    assert quietest(np.zeros(100, np.float32)) == 100


def test_a_limit_without_room_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        cut(noise(1), limit=5.0)


# ---- texts -----------------------------------------------------------------------------------------------------------


def joined(*texts: str) -> str:
    return glued(own_parts(texts))


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("one two three four", "three four five six", "one two three four five six"),
        ("and so it goes", "it goes. On and on.", "and so it goes On and on."),
        ("we went to the par", "to the park and sat", "we went to the park and sat"),  # a word cut at the end
        ("we went to the park", "ent to the park and sat", "we went to the park and sat"),  # and one at the beginning
        ("He said: Stop", "stop and listen", "He said: Stop and listen"),  # one word, at the very seam
        ("the end of the one", "another thing is the other", "the end of the one another thing is the other"),
        ("nothing in common", "at all", "nothing in common at all"),
        ("", "only this", "only this"),
        ("only this", "", "only this"),
        ("今天天气很好我们去", "我们去公园散步", "今天天气很好我们去公园散步"),
        ("今天天气。", "很好", "今天天气。很好"),
        ("नमस्ते दुनिया", "दुनिया कैसी है", "नमस्ते दुनिया कैसी है"),
        ("wait ... what", "... no", "wait ... what ... no"),  # marks alone are no word
    ],
)
def test_what_both_say_is_kept_once(before: str, after: str, whole: str) -> None:
    assert joined(before, after) == whole


WORDS = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "ei", "o", "us", "un")]  # 40, all different


@given(st.permutations(WORDS), st.lists(st.tuples(st.integers(4, 9), st.integers(0, 4)), min_size=1, max_size=4))
def test_words_that_are_all_different_come_back(words: list[str], cuts: list[tuple[int, int]]) -> None:
    texts, start, at = [], 0, 0
    for length, shared in cuts:
        at += length
        texts.append(" ".join(words[start:at]))
        start = max(start + 1, at - shared)
    texts.append(" ".join(words[start:]))
    said = " ".join(words) if start <= at else " ".join([*words[:at], *words[start:]])
    assert joined(*texts) == said


TEXT = st.lists(st.sampled_from(["a", "b", "c", "the", "The.", "...", "今", "天"]), max_size=12).map(" ".join)


@given(st.lists(TEXT, max_size=5))
def test_parts_are_parts_of_their_texts_and_little_is_lost(texts: list[str]) -> None:
    parts = own_parts(texts)
    assert len(parts) == len(texts)
    for part, text in zip(parts, texts, strict=True):
        assert part in text
    if len(texts) == 1:
        assert parts[0] == texts[0].strip()
    assert set(glued(parts)) <= set(" ".join(texts)) | {" "}


@given(TEXT)
def test_a_text_twice_over_is_said_once(text: str) -> None:
    words = text.split()
    if words and all(word != "..." for word in words):
        assert joined(text, text) == glued([text]) or len(set(words)) < len(words)
