"""Mel frames and raw pieces equal those of transformers' feature extractors (``tests/spoken.py`` compares more)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

from pocketgem.errors import MediaError
from pocketgem.media.kinds import SAMPLE_RATE, Floats, Sound
from pocketgem.media.mel import MAX_SAMPLES, frames_of, mel, tokens_of, waves
from tests.spoken import ESPEAK, WHY_NOT, speech

TOLERANCE = 1e-4


def noise(count: int, loudness: float = 0.1) -> Floats:
    return (np.random.default_rng(count).standard_normal(count) * loudness).astype(np.float32)


def tone(count: int) -> Floats:
    """A square wave as loud as can be: full scale, and frames that all hold steps."""
    return np.sign(np.sin(2 * np.pi * 440 * np.arange(count) / SAMPLE_RATE)).astype(np.float32)


SAMPLES_OF: dict[str, Callable[[], Floats]] = {
    "silence": lambda: np.zeros(SAMPLE_RATE, np.float32),
    "the fewest": lambda: noise(161),
    "one more frame": lambda: noise(321),
    "none more": lambda: noise(320),
    "no multiple of 128": lambda: noise(12_345),
    "a multiple of 128": lambda: noise(12_800),
    "full scale": lambda: tone(20_000),
    "very quiet": lambda: noise(16_000, 1e-6),
    "30 s": lambda: noise(MAX_SAMPLES),
    "just under 30 s": lambda: noise(MAX_SAMPLES - 1),
}
CORNERS = list(SAMPLES_OF)


@cache
def extractor() -> Gemma4AudioFeatureExtractor:
    return Gemma4AudioFeatureExtractor()


def oracle_mel(sound: Sound) -> tuple[Floats, int]:
    """Their valid frames, and the tokens their processor writes."""
    made = extractor()([sound.samples], return_tensors="np")
    mask = made["input_features_mask"][0]
    processor = Gemma4Processor.__new__(Gemma4Processor)
    processor.boa_token = processor.eoa_token = ""
    processor.audio_token = "x"
    tokens = len(processor.replace_audio_token(made, 0))
    return made["input_features"][0][mask], tokens


def oracle_waves(sound: Sound) -> Floats:
    made = Gemma4UnifiedAudioFeatureExtractor()([sound.samples], return_tensors="np")
    return made["input_features"][0][made["input_features_mask"][0]]


def waves_of(sound: Sound) -> Floats:
    frames = waves(sound)
    assert frames.tokens == len(frames.values)
    return frames.values


def check(sound: Sound) -> None:
    ours, (theirs, tokens) = mel(sound), oracle_mel(sound)
    assert ours.tokens == tokens
    assert ours.values.dtype == np.float32
    np.testing.assert_allclose(ours.values, theirs, atol=TOLERANCE, rtol=0)
    assert np.array_equal(waves_of(sound), oracle_waves(sound))


@pytest.mark.parametrize("name", CORNERS)
def test_frames_equal_transformers(name: str) -> None:
    check(Sound(SAMPLES_OF[name]()))


@pytest.mark.skipif(ESPEAK is None, reason=WHY_NOT)
@pytest.mark.parametrize(("voice", "rate"), [("en", 16_000), ("de", 8_000), ("cmn", 44_100), ("fr", 48_000)])
def test_speech_equals_transformers(voice: str, rate: int) -> None:
    check(speech(voice, rate))


@pytest.mark.parametrize("count", [1, 160])
def test_less_than_a_frame_is_refused_where_transformers_makes_nothing(count: int) -> None:
    sound = Sound(noise(count))
    assert oracle_mel(sound)[1] == 0 == tokens_of(frames_of(count))
    with pytest.raises(MediaError, match=f"too short to hear: {count} samples"):
        mel(sound)
    assert np.array_equal(waves_of(sound), oracle_waves(sound)), "the 12B hears a single sample"


def test_no_sound_at_all_is_refused() -> None:
    for prepare in (mel, waves):
        with pytest.raises(MediaError, match="too short"):
            prepare(Sound(np.zeros(0, np.float32)))


def test_more_than_30_s_is_refused_where_transformers_drops_the_rest() -> None:
    sound = Sound(noise(MAX_SAMPLES + 1))
    for prepare in (mel, waves):
        with pytest.raises(MediaError, match=r"lasts 30\.00 s and a model hears 30 s at once"):
            prepare(sound)
    theirs, tokens = oracle_mel(sound)
    ours = mel(Sound(sound.samples[:MAX_SAMPLES]))
    assert ours.tokens == tokens == 750
    np.testing.assert_allclose(ours.values, theirs, atol=TOLERANCE, rtol=0)


@given(st.integers(0, MAX_SAMPLES))
def test_counts_are_those_of_the_processor(count: int) -> None:
    processor = Gemma4Processor.__new__(Gemma4Processor)
    processor.feature_extractor, processor.audio_seq_length = extractor(), 750
    assert tokens_of(frames_of(count)) == processor._compute_audio_num_tokens(range(count), SAMPLE_RATE)
