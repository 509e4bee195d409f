"""What an audio tower takes of a sound: mel frames for the conformer, raw pieces for the 12B.

The numbers are those of transformers' Gemma 4 feature extractors, the oracle of ``tests/test_mel.py``: 20 ms frames
every 10 ms, the first of them half before the sound, a periodic Hann window, magnitudes, 128 triangles on HTK's mel
scale, ``log(mel + 0.001)``. A frame whose window and one sample more do not fit into the sound is left out.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pocketgem.errors import MediaError
from pocketgem.media.kinds import SAMPLE_RATE, Floats, Frames, Sound

MAX_SECONDS = 30  # of one sound, for every Gemma that hears
MAX_SAMPLES = MAX_SECONDS * SAMPLE_RATE
FRAME, HOP = 320, 160  # samples
BEFORE = FRAME // 2  # zeros before the first sample
FFT = 512
BANDS = 128
FLOOR = 1e-3
WAVE = 640  # samples of one token of the 12B: 40 ms, as long as a token of the conformer's


def mel(sound: Sound) -> Frames:
    """Log-mel frames ``[frames, 128]`` and the tokens they become, 25 a second.

    Raises MediaError for a sound over 30 s, or under 161 samples (10 ms), which has no frame.
    """
    _check_length(sound, BEFORE + 1)
    padded = np.concatenate((np.zeros(BEFORE, np.float32), sound.samples))
    windows = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP][: frames_of(len(sound.samples))]
    magnitudes = np.abs(np.fft.rfft(windows * _window(), FFT)).astype(np.float32)  # [frames, 257]
    values = np.log(magnitudes @ _triangles() + np.float32(FLOOR))
    return Frames(values, tokens_of(len(values)))


def waves(sound: Sound) -> Frames:
    """Samples as they are, ``[tokens, 640]``, zeros after the last: what the 12B takes. Raises MediaError."""
    _check_length(sound, 1)
    samples = np.pad(sound.samples, (0, -len(sound.samples) % WAVE))
    return Frames(samples.reshape(-1, WAVE), len(samples) // WAVE)


def frames_of(samples: int) -> int:
    """Mel frames of a sound of so many samples."""
    return max(0, (samples + BEFORE - FRAME - 1) // HOP + 1)


def tokens_of(frames: int) -> int:
    """Rows that the conformer makes of so many frames: two convolutions, each halves and rounds up."""
    return (frames + 3) // 4


def _check_length(sound: Sound, fewest: int) -> None:
    count = len(sound.samples)
    if count < fewest:
        raise MediaError(f"the sound is too short to hear: {count} samples at 16 kHz; at least {fewest} are needed")
    if count > MAX_SAMPLES:
        raise MediaError(
            f"the sound lasts {sound.seconds:.2f} s and a model hears {MAX_SECONDS} s at once; cut it, "
            "or let transcribe() or translate() do so"
        )


@cache
def _window() -> Floats:
    """Hann, periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)


@cache
def _triangles() -> Floats:
    """``[257, 128]``: each band rises from its lower neighbour's middle to its own and falls to the upper one's."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)  # mels of 8 kHz
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)  # Hz, equally far apart in mels
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
