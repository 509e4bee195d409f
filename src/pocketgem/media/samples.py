"""Samples of any rate and number of channels become one channel of 16,000 a second, as they come."""

from __future__ import annotations

import numpy as np
import soxr

from pocketgem.media.kinds import SAMPLE_RATE, Floats
from pocketgem.media.limits import LIMITS
from pocketgem.media.worker import Answer, RefusedError


class Mono:
    """The mean of the channels, through soxr's high quality filter, sent on piece by piece."""

    def __init__(self, rate: int, channels: int, answer: Answer) -> None:
        slowest, fastest = LIMITS.sound_rates
        if not slowest <= rate <= fastest:
            raise RefusedError(f"has {rate} samples a second; {slowest} to {fastest} are taken")
        if not 1 <= channels <= LIMITS.channels:
            raise RefusedError(f"has {channels} channels; 1 to {LIMITS.channels} are taken")
        self._rate, self._answer, self.taken = rate, answer, 0
        same = rate == SAMPLE_RATE
        self._filter = None if same else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self.sent = 0

    def take(self, samples: Floats) -> None:
        """``samples``: ``[n, channels]``."""
        self.taken += len(samples)
        if self.taken > LIMITS.sound_seconds * self._rate:
            raise RefusedError(too_long())
        self._send(_sound(samples.mean(axis=1, dtype=np.float32)), last=False)

    def end(self) -> None:
        if self._filter is not None:
            self._send(np.zeros(0, np.float32), last=True)
        if not self.sent:
            raise RefusedError("holds no sound: it has no samples")

    def _send(self, samples: Floats, last: bool) -> None:
        if self._filter is not None:
            samples = self._filter.resample_chunk(samples, last=last)
        self.sent += len(samples)
        self._answer.bytes(np.ascontiguousarray(samples, np.float32).data)


def too_long(seconds: float | None = None) -> str:
    length = "is longer than" if seconds is None else f"is {seconds / 60:.0f} minutes long; sounds may have"
    return f"{length} {LIMITS.sound_seconds // 60} minutes: cut it"


def _sound(samples: Floats) -> Floats:
    """Raises RefusedError where these are no samples."""
    if not np.isfinite(samples).all():
        raise RefusedError("holds samples that are no numbers (NaN or infinite)")
    if len(samples) and float(np.abs(samples).max()) > LIMITS.peak:
        raise RefusedError(f"holds samples more than {LIMITS.peak:.0f} times full scale: floats must lie from -1 to 1")
    return samples
