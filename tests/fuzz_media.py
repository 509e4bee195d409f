"""Pictures, sounds and videos, mutated where their formats have numbers and pieces, and what must hold for each.

The tests run a fixed number of cases; ``python -m tests.fuzz_media --cases 10000`` runs more and prints what came of
them and the first one that breaks a promise. A case is ``(seed, number)``, so it can be run again.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from pocketgem.errors import MediaError
from pocketgem.media.decode import Decoder
from pocketgem.media.kinds import Clip, Picture, Sound
from pocketgem.media.limits import LIMITS
from tests.media_files import encoded, noise, sound, spoken, tone, turned, video

ABSURD = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
SLACK = 1.0  # seconds beyond a file's time, for a machine on which other tests run
# What a confined decoder says when it wanted something that should have been there before, or could not be asked for.
# (FFmpeg has an error of its own that PyAV calls PermissionError; it says in which function.)
OWN_FAULT = re.compile(r"(Import|ModuleNotFound|Name|Attribute)Error|PermissionError(?!.*: 'av)|EPERM")


@dataclass(frozen=True)
class Number:
    """``width`` bytes of a file that count or measure something."""

    start: int
    width: int
    big: bool

    def put(self, data: bytearray, value: int) -> None:
        raw = (value % (1 << 8 * self.width)).to_bytes(self.width, "big" if self.big else "little")
        data[self.start : self.start + self.width] = raw


@dataclass(frozen=True)
class Form:
    """Where a file's pieces begin and end, and its numbers."""

    pieces: tuple[tuple[int, int], ...]
    numbers: tuple[Number, ...]


# --- forms


def png_form(data: bytes) -> Form:
    pieces, numbers, place = (
        [],
        [Number(at, 4, True) for at in (16, 20)] + [Number(at, 1, True) for at in range(24, 29)],
        8,
    )
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        pieces.append((place, end))
        numbers.append(Number(place, 4, True))
        place = end
    return Form(tuple(pieces), tuple(numbers))


def jpeg_form(data: bytes) -> Form:
    pieces, numbers, place = [], [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        pieces.append((place, end))
        numbers += [Number(at, 2, True) for at in range(place + 2, min(end, place + 12), 2)]
        numbers += [Number(at, 1, True) for at in range(place + 4, min(end, place + 24))]
        place = end
    return Form((*pieces, (place, len(data))), tuple(numbers))


def riff_form(data: bytes) -> Form:
    pieces, numbers, place = [], [Number(4, 4, False)], 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + length + length % 2
        pieces.append((place, end))
        numbers.append(Number(place + 4, 4, False))
        numbers += [Number(at, width, False) for width in (2, 3, 4) for at in range(place + 8, min(end, place + 32), 2)]
        place = end
    return Form(tuple(pieces), tuple(numbers))


def gif_form(data: bytes) -> Form:
    frame = data.index(b"\x2c")
    numbers = [Number(at, 2, False) for at in (6, 8, frame + 1, frame + 3, frame + 5, frame + 7)]
    numbers += [Number(at, 1, False) for at in (10, 11, 12, frame + 9, frame + 10, frame + 11)]
    return Form(((0, 13), (13, frame), (frame, len(data))), tuple(numbers))


def flac_form(data: bytes) -> Form:
    pieces, numbers, place, last = [], [Number(at, width, True) for at in range(8, 26) for width in (1, 2, 4)], 4, False
    while not last and place + 4 <= len(data):
        last = data[place] >= 0x80
        end = place + 4 + int.from_bytes(data[place + 1 : place + 4], "big")
        pieces.append((place, end))
        numbers.append(Number(place + 1, 3, True))
        place = end
    return Form((*pieces, (place, len(data))), tuple(numbers))


def ogg_form(data: bytes) -> Form:
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    pieces = tuple(zip(starts, [*starts[1:], len(data)], strict=True))
    numbers = [
        Number(at + offset, width, False) for at in starts for offset, width in ((5, 1), (6, 8), (18, 4), (26, 1))
    ]
    numbers += [Number(at, 4, False) for at in range(starts[0] + 28, starts[0] + 56, 2)]
    return Form(pieces, tuple(numbers))


def mp3_form(data: bytes) -> Form:
    starts = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] & 0xE0 == 0xE0]
    pieces = tuple(zip(starts, [*starts[1:], len(data)], strict=True))
    numbers = [Number(at, 4, True) for at in starts[:40]] + [Number(at, 4, True) for at in range(0, min(len(data), 64))]
    return Form(pieces, tuple(numbers))


BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf")


def mp4_form(data: bytes, start: int = 0, end: int | None = None) -> Form:
    """Boxes, and boxes inside them."""
    pieces: list[tuple[int, int]] = []
    numbers: list[Number] = []
    place, end = start, len(data) if end is None else end
    while place + 8 <= end:
        stop = min(end, place + max(8, int.from_bytes(data[place : place + 4], "big")))
        pieces.append((place, stop))
        numbers.append(Number(place, 4, True))
        if data[place + 4 : place + 8] in BOXES:
            inner = mp4_form(data, place + 8, stop)
            pieces += inner.pieces
            numbers += inner.numbers
        elif data[place + 4 : place + 8] != b"mdat":
            numbers += [Number(at, 4, True) for at in range(place + 8, min(stop - 3, place + 160), 4)]
            numbers += [Number(at, 2, True) for at in range(place + 8, min(stop - 1, place + 160), 2)]
        place = stop
    return Form(tuple(pieces), tuple(numbers))


EBML = (
    b"\x1a\x45\xdf\xa3",
    b"\x18\x53\x80\x67",
    b"\x16\x54\xae\x6b",
    b"\x1f\x43\xb6\x75",
    b"\x15\x49\xa9\x66",
    b"\x1c\x53\xbb\x6b",
)


def webm_form(data: bytes) -> Form:
    """The elements that hold others, and every byte of the first kilobyte, where the small ones lie."""
    starts = sorted(at for name in EBML for at in _all(data, name))
    pieces = tuple(zip(starts, [*starts[1:], len(data)], strict=True))
    numbers = [Number(at + 4, width, True) for at in starts for width in (1, 8)]
    numbers += [Number(at, width, True) for at in range(min(600, len(data))) for width in (1, 2)]
    return Form(pieces, tuple(numbers))


def _all(data: bytes, part: bytes) -> list[int]:
    return [at for at in range(len(data)) if data.startswith(part, at)]


# --- seeds


@dataclass(frozen=True)
class Seed:
    """A good file. door: which of Decoder's calls takes it."""

    door: str
    data: bytes
    form: Form
    repair: Callable[[bytearray], None] = lambda data: None


def repair_png(data: bytearray) -> None:
    """The sums that a PNG carries are made right again, so that changes are looked at."""
    place = 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            return
        struct.pack_into(">I", data, end - 4, zlib.crc32(data[place + 4 : end - 4]))
        place = end


@cache
def _ogg_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(value)
    return tuple(table)


def repair_ogg(data: bytearray) -> None:
    for start, end in ogg_form(bytes(data)).pieces if b"OggS" in data[:60] else ():
        if end - start < 27:
            continue
        data[start + 22 : start + 26] = bytes(4)
        value = 0
        for byte in data[start:end]:
            value = (value << 8 & 0xFFFFFFFF) ^ _ogg_table()[value >> 24 ^ byte]
        struct.pack_into("<I", data, start + 22, value)


@cache
def seeds() -> dict[str, Seed]:
    picture, small = noise(48, 64), tone(16_000, 0.4, 2)
    clear = Image.fromarray(picture).convert("RGBA")
    moves = {"paint": lambda number: np.roll(picture, number, axis=1)}
    plain = {
        "PNG": ("picture", encoded(picture, "PNG"), png_form),
        "PNG palette": ("picture", encoded(Image.fromarray(picture).convert("P"), "PNG", transparency=3), png_form),
        "PNG 16": ("picture", encoded(Image.fromarray(picture[..., 0].astype(np.uint16) * 257), "PNG"), png_form),
        "APNG": ("picture", encoded(clear, "PNG", save_all=True, append_images=[clear.rotate(90)]), png_form),
        "JPEG": ("picture", turned(Image.fromarray(picture), "JPEG", 6), jpeg_form),
        "JPEG progressive": ("picture", encoded(picture, "JPEG", progressive=True), jpeg_form),
        "JPEG CMYK": ("picture", encoded(Image.fromarray(picture).convert("CMYK"), "JPEG"), jpeg_form),
        "WebP": ("picture", encoded(picture, "WEBP"), riff_form),
        "WebP lossless": ("picture", turned(clear, "WEBP", 5), riff_form),
        "WebP moving": ("picture", encoded(clear, "WEBP", save_all=True, append_images=[clear.rotate(90)]), riff_form),
        "GIF": ("picture", encoded(picture, "GIF"), gif_form),
        "GIF moving": ("picture", encoded(clear, "GIF", save_all=True, append_images=[clear.rotate(90)]), gif_form),
        "WAV": ("sound", sound(small, 16_000), riff_form),
        "WAV float": ("sound", sound(small, 44_100, "WAVEX", "FLOAT"), riff_form),
        "FLAC": ("sound", sound(small, 16_000, "FLAC"), flac_form),
        "MP3": ("sound", sound(small, 16_000, "MP3"), mp3_form),
        "Ogg": ("sound", sound(small, 16_000, "OGG"), ogg_form),
        "Ogg Opus": ("sound", sound(small, 16_000, "OGG", "OPUS"), ogg_form),
        "m4a": ("sound", spoken("mp4", 0.3), mp4_form),
        "WebM sound": ("sound", spoken("webm", 0.3), webm_form),
        "MP4": ("clip", video(12, loud=True, **moves), mp4_form),
        "MP4 mpeg4": ("clip", video(12, codec="mpeg4", **moves), mp4_form),
        "MP4 H.265": ("clip", video(12, codec="libx265", **moves, **{"x265-params": "log-level=none"}), mp4_form),
        "WebM": ("clip", video(12, kind="webm", codec="libvpx", loud=True, **moves), webm_form),
        "WebM VP9": ("clip", video(12, kind="webm", codec="libvpx-vp9", **moves), webm_form),
    }  # fmt: skip
    repairs = {"PNG": repair_png, "APNG": repair_png, "Ogg": repair_ogg}
    made = {}
    for name, (door, data, form) in plain.items():
        made[name] = Seed(door, data, form(data), repairs.get(name.split()[0], lambda data: None))
    return made


# --- mutations


def _numbers(data: bytearray, seed: Seed, random_: random.Random) -> None:
    for _ in range(random_.choice((1, 1, 2, 4))):
        number = random_.choice(seed.form.numbers)
        if number.start + number.width <= len(data):
            old = int.from_bytes(data[number.start : number.start + number.width], "big" if number.big else "little")
            number.put(data, random_.choice((*ABSURD, old + 1, old - 1, old * 2, random_.getrandbits(64))))


def _bits(data: bytearray, seed: Seed, random_: random.Random) -> None:
    for _ in range(random_.choice((1, 1, 3, 20))):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _bytes(data: bytearray, seed: Seed, random_: random.Random) -> None:
    start = random_.randrange(len(data))
    data[start : start + random_.randrange(1, 64)] = random_.randbytes(random_.randrange(64))


def _cut(data: bytearray, seed: Seed, random_: random.Random) -> None:
    del data[random_.randrange(len(data)) :]


def _pieces(data: bytearray, seed: Seed, random_: random.Random) -> None:
    """One is left out, doubled, or put elsewhere."""
    start, end = random_.choice(seed.form.pieces)
    piece = bytes(data[start:end])
    what = random_.randrange(3)
    if what != 1:
        del data[start:end]
    if what:
        place = random_.choice(seed.form.pieces)[0]
        data[place:place] = piece


def _strangers(data: bytearray, seed: Seed, random_: random.Random) -> None:
    """A piece of another file takes the place of one."""
    other = random_.choice([found for found in seeds().values() if found.door == seed.door])
    start, end = random_.choice(other.form.pieces)
    at, to = random_.choice(seed.form.pieces)
    data[at:to] = other.data[start:end]


def _much(data: bytearray, seed: Seed, random_: random.Random) -> None:
    start, end = random_.choice(seed.form.pieces)
    data[start:start] = bytes(data[start : min(end, start + 400)]) * random_.choice((10, 100, 1000))


MUTATIONS = (_numbers, _numbers, _numbers, _bits, _bits, _bytes, _cut, _pieces, _strangers, _much)


def mutated(seed: int, number: int) -> tuple[str, str, bytes]:
    """A seed's name, its door and a file that came of it."""
    random_ = random.Random(f"{seed} {number}")
    name = random_.choice(list(seeds()))
    found = seeds()[name]
    data = bytearray(found.data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        if data:
            random_.choice(MUTATIONS)(data, found, random_)
    if random_.random() < 0.8:
        found.repair(data)
    return name, found.door, bytes(data)


# --- what must hold


def check(decoder: Decoder, seed: int, number: int) -> str:
    """``taken``, ``refused``, ``late`` or ``died``. Raises AssertionError where a promise is broken."""
    name, door, data = mutated(seed, number)
    start = time.monotonic()
    why = ""
    try:
        _check_result(getattr(decoder, door)(data))
    except MediaError as error:
        why = str(error)
    assert why == "" or (why.isprintable() and len(why) < 600)
    assert not OWN_FAULT.search(why), f"{name} {seed} {number}: {why}"
    seconds = time.monotonic() - start
    assert seconds <= LIMITS.time(door, len(data)) + SLACK, f"{name} {seed} {number}: {seconds:.1f} s"
    return "late" if "too much work" in why else "died" if "broke its" in why else "refused" if why else "taken"


def _check_result(result: Picture | Sound | Clip) -> None:
    if isinstance(result, Sound):
        assert result.samples.dtype == np.float32
        assert np.isfinite(result.samples).all()
        assert 0 < len(result.samples) <= (LIMITS.sound_seconds + 1) * 16_000
        return
    pictures = [result] if isinstance(result, Picture) else list(result.frames)
    assert pictures
    for picture in pictures:
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape == (*picture.size, 3)
        assert 0 < picture.pixels.size <= 3 * LIMITS.picture_pixels


def _largest(decoder: Decoder) -> int:
    """MiB of the processes at their largest, so far."""
    pids = [child.pid for idle in decoder._idle.values() for child in idle]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest, largest, start = 0.0, 0, time.monotonic()
    with Decoder() as decoder:
        for number in range(options.cases):
            began = time.monotonic()
            outcome = check(decoder, options.seed, number)
            slowest = max(slowest, time.monotonic() - began)
            largest = max(largest, _largest(decoder))
            outcomes[mutated(options.seed, number)[0], outcome] += 1
            if outcome in ("late", "died"):
                print(f"{outcome}: {mutated(options.seed, number)[0]}, case {options.seed} {number}", file=sys.stderr)
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{name:18} {outcome:8} {count}")
    totals = dict(Counter(outcome for _, outcome in outcomes.elements()))
    print(f"seed {options.seed}: {totals} in {time.monotonic() - start:.0f} s; slowest {slowest:.2f} s; ", end="")
    print(f"largest process {largest} MiB")


if __name__ == "__main__":
    main()
