"""The sound of an MP4 or WebM file: m4a, and what a browser records from a microphone. In a confined process."""

from __future__ import annotations

from typing import Any, BinaryIO

import av
import numpy as np

from pocketgem.media.limits import LIMITS
from pocketgem.media.samples import Mono, too_long
from pocketgem.media.streams import SOUND_CODECS, opened, ready
from pocketgem.media.worker import Answer, Question, RefusedError


def read(question: Question, file: BinaryIO, answer: Answer) -> None:
    with opened(question["format"], file) as container:
        if not container.streams.audio:
            raise RefusedError("has no sound in it")
        if container.duration and container.duration / av.time_base > LIMITS.sound_seconds:
            raise RefusedError(too_long(container.duration / av.time_base))
        _read(container, ready(container.streams.audio[0], SOUND_CODECS), answer)


def _read(container: Any, stream: Any, answer: Answer) -> None:
    mono: Mono | None = None
    floats = av.AudioResampler(format="fltp")  # of whatever the codec makes; rate and channels stay
    for frame in container.decode(stream):
        for piece in floats.resample(frame):
            mono = mono or Mono(piece.sample_rate, len(piece.layout.channels), answer)
            mono.take(np.ascontiguousarray(piece.to_ndarray().T, np.float32))
    if mono is None:
        raise RefusedError("holds no sound: it has no samples")
    mono.end()
