"""Attacks by media, one test (or a few) for each row M1..M8 of our list of threats.

Everything here is refused with a MediaError, in two seconds and 256 MiB, and the next request works. The mutated files
of tests/fuzz_media.py are the rest; where files come from is in test_sources.py.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import pocketgem.media
from pocketgem.errors import MediaError
from pocketgem.media import collect, sniff, wire
from pocketgem.media.child import Child
from pocketgem.media.decode import Decoder
from pocketgem.media.limits import LIMITS, MIB
from pocketgem.media.source import from_data_url
from tests.fuzz_media import check, seeds
from tests.media_files import (
    chunk,
    claiming,
    encoded,
    flac_claiming,
    full_png,
    noise,
    png,
    sound,
    spoken,
    tone,
    turned,
    video,
    wav,
)

LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="looks at processes through /proc; only Linux confines so far"
)
SECONDS, BYTES = 2.0, 256 * MIB
CASES = 200  # mutated files in each run; `make fuzz-media` for more
HOUR = 3600 * 16_000


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        made.picture(encoded(noise(8, 8), "PNG"))
        made.sound(sound(tone(16_000, 0.1), 16_000))
        made.sound(spoken("webm", 0.1))
        made.clip(video(2))
        yield made


def refused(call: Callable[[bytes], object], data: bytes, told: str = ".") -> str:
    """What is said about a file, in time."""
    start = time.monotonic()
    with pytest.raises(MediaError, match=told) as error:
        call(data)
    assert time.monotonic() - start <= SECONDS
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 600
    return text


def said(call: Callable[[bytes], object], data: bytes) -> str:
    """What a file is refused with; nothing where it is taken."""
    try:
        call(data)
    except MediaError as error:
        return str(error)
    return ""


# --- M1: bombs


@pytest.mark.parametrize(
    ("kind", "width", "height"),
    [("PNG", 2**31 - 1, 2**31 - 1), ("PNG", 2**31 - 1, 1), ("PNG", 100_000, 100_000), ("PNG", 10_000, 10_000),
     ("PNG", 1, 40_000_000), ("JPEG", 65_535, 65_535), ("JPEG", 65_500, 1_000), ("GIF", 65_535, 65_535),
     ("WEBP", 16_383, 16_383)],
)  # fmt: skip
def test_a_small_file_that_claims_a_large_picture(decoder: Decoder, kind: str, width: int, height: int) -> None:
    why = refused(decoder.picture, claiming(kind, width, height))
    assert "megapixels" in why or "damaged" in why


def test_a_hundred_megapixels_are_refused_with_the_limit(decoder: Decoder) -> None:
    webp = encoded(Image.new("RGB", (4000, 2600)), "WEBP", method=0, quality=1)
    why = refused(decoder.picture, full_png(10_000, 10_000))
    assert why == "the picture has 100.0 megapixels (10000x10000); PNG may have 24: make it smaller"
    assert "JPEG may have 52" in refused(decoder.picture, claiming("JPEG", 10_000, 10_000))
    assert "WebP may have 10" in refused(decoder.picture, webp)


def test_a_jpeg_in_very_many_passes(decoder: Decoder) -> None:
    """Each pass costs all of its pixels: a hundred bytes more, a hundredth of a second more."""
    data = encoded(Image.new("L", (4000, 4000), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    again = data[last:-2]
    bomb = data[:-2] + again * 400 + data[-2:]
    assert "passes" in refused(decoder.picture, bomb)


def test_texts_in_a_png_that_unpack_without_end(decoder: Decoder) -> None:
    packed = zlib.compress(bytes(80 * MIB), 1)
    rows = zlib.compress(b"\0\0\0\0")
    for more in (
        chunk(b"zTXt", b"a\0\0" + packed),
        chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
        chunk(b"iCCP", b"a\0\0" + packed),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MIB - 10), 1)) * 100,
    ):
        with measured("picture") as (confined, cost):
            why = said(confined.picture, png(1, 1, body=rows, more=more))
        assert not why or "damaged" in why or "memory" in why
        assert cost.seconds <= SECONDS
        assert cost.bytes <= BYTES


class Cost:
    bytes, seconds = 0, 0.0


@contextmanager
def measured(room: str, seconds: float = LIMITS.seconds) -> Iterator[tuple[Decoder, Cost]]:
    """A decoder with a fresh process, and what was used: the process at its largest and what was allocated here."""
    cost = Cost()
    with Decoder(limits=replace(LIMITS, seconds=seconds)) as made:
        process = Child(room)
        made._idle[room].append(process)
        tracemalloc.start()
        start = time.monotonic()
        yield made, cost
        cost.seconds = time.monotonic() - start
        cost.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        cost.bytes += peaks[0] if peaks else LIMITS.address_space  # one that died had no more than it may


def large(kind: str, width: int, height: int, **options: object) -> bytes:
    image = Image.fromarray(noise(height // 8, width // 8)).resize((width, height), Image.Resampling.NEAREST)
    return encoded(image, kind, **options)


LARGEST: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: full_png(6000, 4000, 4),
    "JPEG": lambda: large("JPEG", 7200, 7200),
    "progressive JPEG": lambda: large("JPEG", 4000, 4000, progressive=True),
    "turned JPEG": lambda: turned(Image.new("RGB", (6000, 4000), "red"), "JPEG", 6),
    "WebP": lambda: encoded(Image.new("RGB", (4000, 2500), "red"), "WEBP", method=0, quality=1),
    "GIF": lambda: encoded(Image.new("P", (6000, 4000)), "GIF"),
}


@LINUX
@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_picture_costs_no_more_than_it_may(kind: str) -> None:
    data = LARGEST[kind]()
    with measured("picture", 20) as (confined, cost):  # a busy machine is no fault of the file's
        height, width = confined.picture(data).size
    assert height * width >= 10_000_000
    assert cost.bytes <= BYTES


@LINUX
def test_a_long_sound_costs_no_more_than_it_may() -> None:
    data = sound(np.zeros((LIMITS.sound_seconds * 8_000 - 8_000, 1), np.float32), 8_000, "FLAC")
    with measured("sound", 20) as (confined, cost):
        assert confined.sound(data).seconds == LIMITS.sound_seconds - 1
    assert cost.bytes <= BYTES


@LINUX
def test_a_large_video_costs_no_more_than_it_may() -> None:
    picture = noise(2160, 3840)
    data = video(6, size=(3840, 2160), paint=lambda number: picture, preset="ultrafast")
    with measured("clip", 20) as (confined, cost):
        clip = confined.clip(data, frames=6)
    assert len(clip.frames) == 6
    assert cost.bytes <= BYTES


# --- M2: many frames in one


def test_commas_do_not_make_more_frames(decoder: Decoder) -> None:
    one = base64.b64encode(encoded(noise(8, 8), "JPEG")).decode()
    for url in (f"data:video/jpeg;base64,{','.join([one] * 5000)}", f"data:video/jpeg,{one},{one}"):
        with pytest.raises(MediaError):
            from_data_url(url, MIB)
    assert refused(decoder.clip, encoded(noise(8, 8), "JPEG")) == "the video is a JPEG file; MP4 and WebM are taken"


def test_a_video_of_too_many_or_too_large_frames(decoder: Decoder) -> None:
    data = video(2, kind="webm", codec="libvpx", size=(160, 90))
    place = data.index(b"\xb0\x81\xa0\xba\x81\x5a")  # width and height, a byte each
    wide = data[:place] + b"\xb0\x84\x7f\xff\xff\xff\xba\x81\x5a" + data[place + 6 :]
    refused(decoder.clip, wide)
    refused(decoder.clip, video(2, size=(4200, 2400), preset="ultrafast"), "has frames of 4200x2400; they may have")


# --- M3: small and odd ones are good pictures: tests/test_media.py. M5: the process


@LINUX
@pytest.mark.parametrize("room", ["picture", "sound", "spoken", "clip"])
def test_a_decoder_has_nothing_and_can_do_nothing(room: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By what the kernel says of a process: no variable, no file of its owner's, no right it could get back."""
    monkeypatch.setenv("SECRET", "of the owner")
    with open(tmp_path / "of-the-owner", "w"):
        process = Child(room)
    try:
        about = Path(f"/proc/{process.pid}")
        variables = about.joinpath("environ").read_bytes().split(b"\0")
        assert {name.split(b"=")[0] for name in variables} <= {
            b"",
            b"OPENBLAS_NUM_THREADS",
            b"OMP_NUM_THREADS",
            b"LC_CTYPE",
        }
        opened = sorted(os.readlink(link) for link in about.joinpath("fd").iterdir())
        assert all(name.startswith(("pipe:", "/dev/null")) for name in opened), opened
        limits = {
            line[:25].strip(): line[26:].split()[:2] for line in about.joinpath("limits").read_text().splitlines()
        }
        for name in ("Max file size", "Max core file size", "Max processes"):
            assert limits[name] == ["0", "0"], name
        assert int(limits["Max open files"][1]) <= 16
        assert int(limits["Max address space"][1]) <= 1024 * MIB
        status = dict(
            line.split(":\t", 1) for line in about.joinpath("status").read_text().splitlines() if ":\t" in line
        )
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
        assert {"no files", "no network"} <= set(process.confined)
    finally:
        process.end()


ESCAPES = {
    "a file is read": "open('/etc/hostname').read()",
    "a file is written": "open('/tmp/escaped', 'w')",
    "a folder is read": "os.listdir('/')",
    "a folder is made": "os.mkdir('/tmp/escaped')",
    "a name is looked up": "socket.getaddrinfo(b'localhost', 80)",
    "a connection": "socket.socket().connect(('127.0.0.1', 80))",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "socket.socketpair()",
    "a process": "os.fork()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a signal to the owner": "os.kill(os.getppid(), 0)",
    "a process is looked into": "os.pidfd_open(os.getppid())",
    "a higher limit": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "another user": "os.setuid(0)",
    "a thread": "_thread.start_new_thread(print, ())",
    "a terminal": "os.openpty()",
    "memory without end": "bytearray(1 << 30)",
    "memory with a name": "os.memfd_create('x')",
}


@LINUX
def test_no_way_out_of_a_confined_process(tmp_path: Path) -> None:
    program = f"""
import _thread, os, resource, socket, sys
out = os.dup(1)
from pocketgem.media.confine import confine
confine(200 << 20)
for name, attempt in {ESCAPES!r}.items():
    try:
        eval(attempt)
    except (OSError, MemoryError, RuntimeError, ValueError):
        continue
    os.write(out, (name + "\\n").encode())
os.write(out, b"end")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": SOURCES})
    assert done.stdout == "end", done


SOURCES = str(Path(pocketgem.media.__path__[0]).parents[1])


def test_a_decoder_that_lies_is_not_believed() -> None:
    """What a taken-over process could send: every answer becomes a result within its limits, or a WireError."""
    random_ = random.Random(7)
    outcomes = {outcome for number in range(3000) for outcome in believed(random_)}
    assert len(outcomes) == 6  # both happened to each


def test_a_decoder_that_claims_a_picture_larger_than_memory() -> None:
    head = json.dumps({"height": LIMITS.picture_pixels, "width": LIMITS.picture_pixels}).encode()
    with pytest.raises(wire.WireError, match="within its limit"):
        collect.picture(iter([(wire.HEADER, head)]), LIMITS)


def believed(random_: random.Random) -> Iterator[tuple[str, bool]]:
    """Which of the three made something of one answer, which is a good one's or nearly."""
    good = {"height": 2, "width": 1, "frames": 1, "duration": 1, "second": 0}
    messages = [(wire.HEADER, good), (wire.HEADER, good), (wire.BYTES, bytes(6))][random_.randrange(4) :]
    messages = messages or [(wire.BYTES, bytes(8))]
    for _ in range(random_.randrange(3)):
        messages[random_.randrange(len(messages))] = lie(random_, good)
    sent = [(kind, body if isinstance(body, bytes) else json.dumps(body).encode()) for kind, body in messages]
    for made in (collect.picture, collect.sound, collect.clip):
        try:
            made(iter(sent), LIMITS)
            yield made.__name__, True
        except wire.WireError:
            yield made.__name__, False


def lie(random_: random.Random, good: dict[str, int]) -> tuple[bytes, object]:
    values = [0, 1, 2, -1, 2**31, 2**63, 1e308, True, None, "1", [1], {}, "x" * 300, 0.5]
    headers = [
        {**good, random_.choice(list(good)): random_.choice(values)},
        {},
        b"[" * 10_000,
        b"{",
        b"\xff",
        b"{}" * 9000,
    ]
    bodies = [bytes(6), bytes(8), b"\0\0\xc0\x7f", bytes(5), b""]
    return random_.choice(
        [(wire.HEADER, random_.choice(headers)), (wire.BYTES, random_.choice(bodies)), (wire.READY, b"{}")]
    )


@pytest.mark.parametrize(
    "raw",
    [b"", b"B", b"B\xff\xff\xff\xff", b"B\0\x10\0\x01" + bytes(9), b"\0" * 100],
    ids=["nothing", "half a head", "4 GiB", "more than a message may be", "no kind"],
)
def test_broken_messages(raw: bytes) -> None:
    try:
        kind, body = wire.receive(io.BytesIO(raw))
    except wire.WireError:
        return
    assert (kind, body) == (b"\0", b"")


# --- M6, M8: what is not on the list, and what it says it is

NOT_TAKEN = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "HTML": b"<!DOCTYPE html><html><script>1</script></html>",
    "PDF": b"%PDF-1.7\n" + bytes(64),
    "Photoshop": b"8BPS\0\1" + bytes(64),
    "TIFF": encoded(noise(8, 8), "TIFF"),
    "BMP": encoded(noise(8, 8), "BMP"),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "EPS": b"\xc5\xd0\xd3\xc6" + bytes(64),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "ICNS": b"icns" + bytes(64),
    "JPEG 2000": encoded(noise(8, 8), "JPEG2000"),
    "AVIF": encoded(noise(8, 8), "AVIF"),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(64),
    "icon": encoded(noise(16, 16), "ICO"),
    "DDS": encoded(noise(8, 8), "DDS"),
    "ZIP": b"PK\3\4" + bytes(64),
    "gzip": b"\x1f\x8b" + bytes(64),
    "program": b"\x7fELF" + bytes(64),
    "AIFF": sound(tone(8000, 0.1), 8000, "AIFF"),
    "AU": sound(tone(8000, 0.1), 8000, "AU"),
    "CAF": sound(tone(8000, 0.1), 8000, "CAF"),
    "AVI": video(2, kind="avi", codec="mpeg4"),
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "unknown": b"P6 1 1 255\n\0\0\0",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "text": b"hello, I am a picture",
    "zeros": bytes(64),
    "font": b"OTTO" + bytes(64),
}


@pytest.mark.parametrize("what", ["picture", "sound", "clip"])
@pytest.mark.parametrize("name", NOT_TAKEN)
def test_other_files_are_refused_by_what_they_are(decoder: Decoder, name: str, what: str) -> None:
    why = refused(getattr(decoder, what), NOT_TAKEN[name])
    assert "are taken" in why
    if sniff.sniff(NOT_TAKEN[name]) != "unknown":
        assert f" {name} file" in why


@pytest.mark.parametrize("what", ["picture", "sound", "clip"])
def test_no_bytes_are_no_file(decoder: Decoder, what: str) -> None:
    assert "0 bytes" in refused(getattr(decoder, what), b"")


def test_each_kind_at_another_kinds_door(decoder: Decoder) -> None:
    files = {"picture": encoded(noise(8, 8), "PNG"), "sound": sound(tone(8000, 0.1), 8000), "clip": video(2)}
    for door in files:
        for name, data in files.items():
            if name == door or (door, name) == ("sound", "clip"):
                continue
            assert "file" in refused(getattr(decoder, door), data)


@pytest.mark.parametrize(
    ("what", "declared"),
    [("picture", "image/jpeg"), ("picture", "image/svg+xml"), ("picture", "text/html"), ("picture", "video/mp4"),
     ("sound", "audio/flac"), ("sound", "audio/mpeg; codecs=opus"), ("clip", "video/webm"), ("clip", "image/png")],
)  # fmt: skip
def test_what_is_declared_must_be_true(decoder: Decoder, what: str, declared: str) -> None:
    data = {"picture": encoded(noise(8, 8), "PNG"), "sound": sound(tone(8000, 0.1), 8000), "clip": video(2)}[what]
    why = refused(lambda file: getattr(decoder, what)(file, declared=declared), data, "was declared as")
    assert declared.split(";")[0] in why


@pytest.mark.parametrize(
    ("what", "declared"),
    [("picture", None), ("picture", "IMAGE/PNG"), ("picture", "application/octet-stream"), ("sound", "audio/x-wav"),
     ("sound", "audio/wav; codecs=1"), ("clip", "video/mp4"), ("clip", "video/quicktime"), ("clip", "")],
)  # fmt: skip
def test_what_is_declared_and_true_is_taken(decoder: Decoder, what: str, declared: str | None) -> None:
    data = {"picture": encoded(noise(8, 8), "PNG"), "sound": sound(tone(8000, 0.1), 8000), "clip": video(2)}[what]
    getattr(decoder, what)(data, declared=declared)


# --- truncated


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_cut_short_anywhere(decoder: Decoder, kind: str) -> None:
    data = encoded(noise(96, 96), kind)
    for share in range(20):
        refused(decoder.picture, data[: len(data) * share // 20])
    refused(decoder.picture, data[:-40])  # its end mark and its last pixels


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_sound_cut_short_anywhere(decoder: Decoder, kind: str) -> None:
    data = sound(tone(16_000, 0.5), 16_000, kind)
    for share in range(20):
        refused(decoder.sound, data[: len(data) * share // 20])


def test_a_flac_that_claims_more_samples_than_it_has(decoder: Decoder) -> None:
    refused(decoder.sound, flac_claiming(3000), "cut short: 2000 of 3000 samples")
    assert decoder.sound(flac_claiming(0)).seconds == 0.125  # one that does not say is right


@pytest.mark.parametrize("kind", ["MP3", "OGG"])
def test_a_stream_cut_short_is_shorter_or_refused(decoder: Decoder, kind: str) -> None:
    """These formats do not say how long they are."""
    data = sound(tone(16_000, 0.5), 16_000, kind)
    for share in range(1, 20):
        why = said(decoder.sound, data[: len(data) * share // 20])
        assert not why or "damaged" in why or "no sound" in why


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx")])
def test_a_video_cut_short_anywhere(decoder: Decoder, kind: str, codec: str) -> None:
    data = video(30, kind=kind, codec=codec, paint=lambda number: noise(48, 64, number))
    for share in range(20):
        part = data[: len(data) * share // 20]
        if kind == "mp4":  # what is in it is told at its end
            refused(decoder.clip, part)
            continue
        why = said(decoder.clip, part)
        assert not why or any(reason in why for reason in ("damaged", "no frame", "no pictures", "empty"))


def test_an_mp4_whose_index_is_first_and_whose_pictures_are_missing(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "first.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise(48, 64, number), format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(decoder.clip(data).frames) == 30
    for share in range(10, 20):
        refused(decoder.clip, data[: len(data) * share // 20], r"is cut short: \d+ of 30 frames are there")


# --- M7: sounds


def test_a_sound_of_no_samples(decoder: Decoder) -> None:
    empty = np.zeros((0, 1), np.float32)
    for data in (wav(b""), *(sound(empty, 16_000, kind) for kind in ("WAV", "FLAC", "OGG")), wav(b"\0")):
        assert refused(decoder.sound, data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7999])
def test_samples_that_are_no_numbers(decoder: Decoder, value: float, place: int) -> None:
    samples = tone(16_000, 0.5)
    samples[place] = value
    refused(decoder.sound, sound(samples, 16_000, coding="FLOAT"), "no numbers")


def test_samples_far_above_full_scale(decoder: Decoder) -> None:
    refused(decoder.sound, sound(tone(16_000, 0.1) * 32_768, 16_000, coding="FLOAT"), "times full scale")
    refused(decoder.sound, wav(struct.pack("<d", 1e300) * 99, coding=3, bits=64, rate=16_000))
    heard = decoder.sound(sound(tone(16_000, 0.1) * 4, 16_000, coding="FLOAT"))  # as some programs mix
    assert heard.samples.max() == pytest.approx(2, abs=0.01)


WAVS = {
    "no channels": wav(bytes(64), channels=0, align=2),
    "65535 channels": wav(bytes(65_535 * 4), channels=65_535),
    "17 channels": wav(bytes(34), channels=17),
    "no rate": wav(bytes(64), rate=0),
    "a rate of 2^31": wav(bytes(64), rate=2**31),
    "a rate of 1": wav(bytes(64), rate=1),
    "no bytes a sample": wav(bytes(64), align=0),
    "no bits": wav(bytes(64), bits=0, align=2),
    "65535 bits": wav(bytes(64), bits=65_535, align=2),
    "more samples than there are": wav(bytes(64), size=65),
    "4 GiB less one": wav(bytes(64), size=0xFFFFFFFE),
    "an unknown coding": wav(bytes(64), coding=0x1234),
    "a chunk that is longer than the file": wav(bytes(64), before=b"junk" + struct.pack("<I", 0x7FFFFFFF)),
    "chunks without end": wav(bytes(64), before=(b"junk" + bytes(4)) * 100_000),
    "samples first": b"RIFF" + bytes(4) + b"WAVEdata" + struct.pack("<I", 8) + bytes(8),
    "nothing": b"RIFF" + bytes(4) + b"WAVE",
}


@pytest.mark.parametrize("name", WAVS)
def test_wav_files_that_make_no_sense(decoder: Decoder, name: str) -> None:
    refused(decoder.sound, WAVS[name])


def test_odd_padding_and_untold_ends_are_right(decoder: Decoder) -> None:
    body = (tone(16_000, 0.1)[:, 0] * 32_767).astype("<i2").tobytes()
    padded = wav(body, before=b"note" + struct.pack("<I", 3) + b"abc\0")
    for data in (padded, wav(body, size=0xFFFFFFFF)):
        assert decoder.sound(data).seconds == pytest.approx(0.1)


@pytest.mark.parametrize("samples", [10 * HOUR, 2**36 - 1])
def test_ten_hours_of_silence_in_a_small_flac(decoder: Decoder, samples: int) -> None:
    data = flac_claiming(samples)
    assert len(data) < 10_000
    refused(decoder.sound, data, "minutes long; sounds may have 30 minutes: cut it")


def test_a_long_sound_that_does_not_say_so(decoder: Decoder) -> None:
    """Its header tells no length: it is stopped at the limit, or by the clock."""
    data = bytearray(sound(np.zeros(((LIMITS.sound_seconds + 60) * 8_000, 1), np.float32), 8_000, "FLAC"))
    word = int.from_bytes(data[18:26], "big")
    data[18:26] = (word >> 36 << 36).to_bytes(8, "big")
    with pytest.raises(MediaError, match=r"longer than 30 minutes|too much work"):
        decoder.sound(bytes(data))


# --- videos without pictures


def test_videos_without_frames(decoder: Decoder) -> None:
    for kind in ("mp4", "webm"):
        refused(decoder.clip, spoken(kind), "no pictures")
    refused(decoder.clip, video(0))
    refused(decoder.clip, video(0, kind="webm", codec="libvpx"))


@pytest.mark.parametrize(
    ("codec", "kind"), [("mjpeg", "mov"), ("rawvideo", "matroska"), ("gif", "mov"), ("ffv1", "matroska")]
)
def test_codecs_that_are_not_on_the_list(decoder: Decoder, codec: str, kind: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise(48, 64, number), format="rgb24")))
        container.mux(stream.encode(None))
    refused(decoder.clip, file.getvalue(), "which is not taken")


# --- all together, and afterwards


def test_files_larger_than_they_may_be() -> None:
    tight = replace(LIMITS, picture_bytes=1000, sound_bytes=1000, clip_bytes=1000)
    with Decoder(limits=tight) as decoder:
        for call in (decoder.picture, decoder.sound, decoder.clip):
            refused(call, bytes(1001), "make it smaller")


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_files(seed: int) -> None:
    with Decoder() as decoder:
        results = [check(decoder, seed, number) for number in range(CASES // 2)]
    assert {"taken", "refused"} <= set(results)  # some changes do not matter


def test_after_all_this_the_same_decoder_still_works(decoder: Decoder) -> None:
    pixels = noise(30, 40)
    np.testing.assert_array_equal(decoder.picture(encoded(pixels, "PNG")).pixels, pixels)
    assert decoder.sound(sound(tone(16_000, 1), 16_000)).seconds == 1
    assert len(decoder.clip(video(40)).frames) == 32
    assert set(seeds()) >= {
        "PNG",
        "JPEG",
        "WebP",
        "GIF",
        "WAV",
        "FLAC",
        "MP3",
        "Ogg",
        "m4a",
        "WebM sound",
        "MP4",
        "WebM",
    }
