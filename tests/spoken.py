"""Speech made by espeak-ng in five languages, for tests and for the whole comparison:

python -m tests.spoken          mel frames against transformers', at four rates; resamplers against each other
"""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Iterator
from itertools import chain

import av
import numpy as np
import soxr

from pocketgem.media.kinds import SAMPLE_RATE, Floats, Sound

SENTENCES = {
    "en": "The quick brown fox jumps over the lazy dog, and 3 of 17 sheep look on.",
    "de": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "fr": "Portez ce vieux whisky au juge blond qui fume, s'il vous plaît.",
    "es": "El veloz murciélago hindú comía feliz cardillo y kiwi.",
    "cmn": "今天天气很好，我们去公园散步吧。",
}
RATES = (8_000, 16_000, 44_100, 48_000)
ESPEAK = shutil.which("espeak-ng")
WHY_NOT = "speech is made by espeak-ng, which is not installed here (Debian: apt install espeak-ng)"


def speak(text: str, voice: str) -> tuple[Floats, int]:
    """Samples and their rate."""
    assert ESPEAK is not None
    made = subprocess.run([ESPEAK, "-v", voice, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(made)) as file:
        rate = file.getframerate()
        data = file.readframes(len(made))  # the header of a pipe says no length: all there is
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate


def recorded(voice: str, rate: int) -> tuple[Floats, int]:
    """A language's sentence as a file of that rate would hold it."""
    samples, made = speak(SENTENCES[voice], voice)
    return resampled(samples, made, rate), rate


def resampled(samples: Floats, rate: int, wanted: int = SAMPLE_RATE) -> Floats:
    """As ``media/`` does it."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted).astype(np.float32)


def recordings() -> Iterator[tuple[str, int, Floats]]:
    for voice in SENTENCES:
        for rate in RATES:
            yield voice, rate, recorded(voice, rate)[0]


def speech(voice: str = "en", rate: int = SAMPLE_RATE) -> Sound:
    return Sound(resampled(*recorded(voice, rate)))


def recording(seconds: float, rate: int = 16_000) -> bytes:
    """A WAV file of noise, silent for its last quarter second."""
    samples = np.random.default_rng(0).integers(-3000, 3000, int(seconds * rate), np.int16)
    samples[-rate // 4 :] = 0
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.tobytes())
    return file.getvalue()


def by_fourier(samples: Floats, rate: int, wanted: int = SAMPLE_RATE) -> Floats:
    """Another resampler, an ideal one: the spectrum cut off at the lower half rate."""
    count = round(len(samples) * wanted / rate)
    spectrum = np.fft.rfft(samples.astype(np.float64))
    kept = np.zeros(count // 2 + 1, complex)
    both = min(len(kept), len(spectrum))
    kept[:both] = spectrum[:both]
    return (np.fft.irfft(kept, count) * count / len(samples)).astype(np.float32)


def main() -> None:
    from tests.test_mel import SAMPLES_OF

    made = ((f"{voice} {rate} Hz", Sound(resampled(samples, rate))) for voice, rate, samples in recordings())
    corners = ((name, Sound(samples())) for name, samples in SAMPLES_OF.items())
    worst = max(compare(name, sound) for name, sound in chain(made, corners))
    print(f"worst difference of a mel value: {worst:.1e}")
    for rate in RATES:
        compare_resamplers(rate)


def compare(name: str, sound: Sound) -> float:
    """The largest difference of mel values; counts and raw pieces are the same."""
    from pocketgem.media.mel import mel
    from tests.test_mel import oracle_mel, oracle_waves, waves_of

    ours, (theirs, tokens) = mel(sound), oracle_mel(sound)
    assert ours.values.shape == theirs.shape, name
    assert ours.tokens == tokens, name
    assert np.array_equal(waves_of(sound), oracle_waves(sound)), name
    apart = float(np.abs(ours.values - theirs).max())
    print(f"{name:20} {sound.seconds:6.2f} s  {len(theirs):4} frames {tokens:3} tokens  {apart:.1e}")
    return apart


def by_ffmpeg(samples: Floats, rate: int, wanted: int = SAMPLE_RATE) -> Floats:
    """FFmpeg's resampler, which other runtimes read sound with."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    made = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([one.to_ndarray()[0] for one in made])


def compare_resamplers(rate: int) -> None:
    """soxr against others, over all languages: what is left of it in mel values, of all bands and of those to 7 kHz."""
    from pocketgem.media.mel import BANDS, mel

    top = 2595 * np.log10(1 + 7000 / 700) / (2595 * np.log10(1 + 8000 / 700))
    low = int(top * (BANDS + 1)) - 1  # bands whose upper edge is under 7 kHz
    for name, other in ("an ideal one", by_fourier), ("FFmpeg's", by_ffmpeg):
        found = []
        for voice in SENTENCES:
            samples, _ = recorded(voice, rate)
            ours, theirs = resampled(samples, rate), other(samples, rate)
            count = min(len(ours), len(theirs))
            both = [mel(Sound(one[:count])).values[5:-5] for one in (ours, theirs)]  # the ideal one rings at the ends
            found.append(np.abs(both[0] - both[1]))
        every = np.concatenate(found)
        told = (f"{what} {part.mean():.4f} on average, {np.percentile(part, 99):.3f} at the 99th percentile"
                for what, part in (("all bands", every), ("to 7 kHz", every[:, :low])))  # fmt: skip
        print(f"{rate:6} Hz to 16 kHz, soxr and {name}: mel values differ by {'; '.join(told)}")


if __name__ == "__main__":
    main()
