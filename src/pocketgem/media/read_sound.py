"""A sound file, in a confined process, by libsndfile: WAV, FLAC, MP3, Ogg."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import soundfile

from pocketgem.media.limits import LIMITS
from pocketgem.media.riff import check_wav
from pocketgem.media.samples import Mono, too_long
from pocketgem.media.worker import Answer, Question, RefusedError

CONTAINERS = {"WAV": ("WAV", "WAVEX"), "FLAC": ("FLAC",), "MP3": ("MP3",), "Ogg": ("OGG",)}
CODINGS = (
    "PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW",
    "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS", "OPUS",
)  # fmt: skip
UNKNOWN = 1 << 62  # frames, where a header does not tell
BLOCK = 1 << 16  # samples that are read at once, of all channels


def read(question: Question, file: BinaryIO, answer: Answer) -> None:
    name = str(question["format"])
    streamed = name == "WAV" and check_wav(file, int(question["size"]))  # type: ignore[call-overload]
    with soundfile.SoundFile(file) as sound:
        sound._info.seekable = 0  # else it seeks after each read, which fails at an end that no header told
        _check(name, sound)
        mono = Mono(sound.samplerate, sound.channels, answer)
        _read(sound, mono)
        if name in ("WAV", "FLAC") and not streamed and mono.taken < sound.frames < UNKNOWN:
            raise RefusedError(f"is cut short: {mono.taken} of {sound.frames} samples are there")
        mono.end()


def _check(name: str, sound: soundfile.SoundFile) -> None:
    if sound.format not in CONTAINERS[name] or sound.subtype not in CODINGS:
        raise RefusedError(f"holds {sound.format} {sound.subtype}, which is not taken: save it as 16-bit WAV or FLAC")
    if sound.samplerate > 0 and LIMITS.sound_seconds * sound.samplerate < sound.frames < UNKNOWN:
        raise RefusedError(too_long(sound.frames / sound.samplerate))


def _read(sound: soundfile.SoundFile, mono: Mono) -> None:
    block = max(1, BLOCK // sound.channels)
    while len(samples := sound.read(block, dtype="float32", always_2d=True)):
        mono.take(np.asarray(samples, np.float32))
