"""Files become pictures, sounds and clips: every form of them, the same as their own libraries say."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from PIL import Image, ImageOps
from transformers.video_utils import VideoMetadata, default_sample_indices_fn, read_video_pyav

from pocketgem.errors import MediaError, RunError
from pocketgem.media import child, collect, decode
from pocketgem.media.decode import Decoder
from pocketgem.media.identity import content_key
from pocketgem.media.kinds import Clip, Picture, Sound
from pocketgem.media.limits import LIMITS
from tests.media_files import encoded, full_png, noise, png, sound, spoken, tone, turned, video
from tests.test_rooms import imports

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def over_white(rgba: Image.Image) -> np.ndarray:
    """Each colour laid over white, in floating point."""
    values = np.asarray(rgba.convert("RGBA"), np.float64)
    alpha = values[..., 3:] / 255
    return values[..., :3] * alpha + 255 * (1 - alpha)


# --- pictures


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3), (90, 70)], ids=str)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pixels_are_those_of_the_file(decoder: Decoder, kind: str, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decoder.picture(encoded(pixels, kind, **options))
    assert picture.size == size
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_modes_without_transparency_are_what_pillow_says(decoder: Decoder, mode: str) -> None:
    image = Image.fromarray(noise(60, 50)).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoder.picture(data).pixels, expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_over_white(decoder: Decoder, mode: str, kind: str) -> None:
    image = Image.fromarray(noise(40, 50)).convert("RGBA")
    image.putalpha(Image.fromarray(noise(40, 50, 1)).convert("L"))
    image = image.convert(mode)
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(decoder.picture(data).pixels - over_white(image)).max() <= 1


def test_a_transparency_that_hides_nothing(decoder: Decoder) -> None:
    pixels = noise(40, 50)
    picture = decoder.picture(encoded(Image.fromarray(pixels).convert("RGBA"), "PNG"))
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_a_colour_that_stands_for_nothing_is_white(decoder: Decoder) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for kind in ("PNG", "GIF"):
        pixels = decoder.picture(encoded(image, kind, transparency=1)).pixels
        assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255], [255, 255, 255]]]


def test_sixteen_bits_become_eight(decoder: Decoder) -> None:
    """The high byte of each: Pillow alone, and so transformers, would make all above 255 white."""
    values = np.array([[0, 255, 256, 4000, 32_768, 65_535]], np.uint16)
    pixels = decoder.picture(encoded(Image.fromarray(values), "PNG")).pixels
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 15, 128, 255]
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_seen(decoder: Decoder, kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (decoder.picture(data).pixels == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_stand_upright(decoder: Decoder, kind: str, orientation: int) -> None:
    data = turned(Image.fromarray(noise(90, 130)), kind, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decoder.picture(data).pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", [3, 5, 7, 8])
def test_large_pictures_are_turned_in_bands(decoder: Decoder, orientation: int) -> None:
    data = turned(Image.fromarray(noise(521, 530)), "PNG", orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decoder.picture(data).pixels, np.asarray(expected))


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff" * 50, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_a_damaged_note_beside_a_picture_is_ignored(decoder: Decoder, exif: bytes) -> None:
    pixels = noise(20, 30)
    assert decoder.picture(encoded(pixels, "JPEG", exif=exif)).size == (20, 30)


def test_a_large_jpeg_is_decoded_at_half_its_size(decoder: Decoder) -> None:
    """What is lost is what a mean of each four pixels loses, within three levels of 255."""
    image = Image.fromarray(noise(350, 350)).resize((5000, 5000), Image.Resampling.BILINEAR)
    data = encoded(image, "JPEG", quality=92)
    seen = decoder.picture(data).pixels
    assert seen.shape == (2500, 2500, 3)
    halved = np.asarray(Image.open(io.BytesIO(data)).reduce(2))
    apart = np.abs(seen[::5].astype(np.int16) - halved[::5])
    assert apart.max() <= 8
    assert apart.mean() <= 0.5


def test_bytes_after_a_picture_are_ignored(decoder: Decoder) -> None:
    pixels = noise(30, 40)
    np.testing.assert_array_equal(decoder.picture(encoded(pixels, "PNG") + b"<svg>PK\3\4" * 100).pixels, pixels)


# --- sounds


def pitch_of(heard: Sound) -> float:
    spectrum = np.abs(np.fft.rfft(heard.samples * np.hanning(len(heard.samples))))
    return float(np.argmax(spectrum)) * 16_000 / len(heard.samples)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_any_rate_and_number_of_channels(decoder: Decoder, rate: int, channels: int) -> None:
    samples = tone(rate, 1.7, channels)
    heard = decoder.sound(sound(samples, rate, coding="FLOAT"))
    expected = samples.mean(axis=1)
    if rate != 16_000:
        expected = soxr.resample(expected, rate, 16_000, quality="HQ")
    assert heard.samples.dtype == np.float32
    np.testing.assert_allclose(heard.samples, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "coding"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "DOUBLE"), ("WAV", "ULAW"),
     ("WAV", "ALAW"), ("WAVEX", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
     ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_every_coding(decoder: Decoder, kind: str, coding: str) -> None:
    samples = tone(48_000, 2, 2)
    heard = decoder.sound(sound(samples, 48_000, kind, coding))
    assert heard.seconds == pytest.approx(2, abs=0.06)
    assert pitch_of(heard) == pytest.approx(440, abs=1)
    assert np.abs(heard.samples).max() == pytest.approx(0.375, abs=0.06)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_what_browsers_and_phones_record(decoder: Decoder, kind: str) -> None:
    heard = decoder.sound(spoken(kind, 1.5))
    assert heard.seconds == pytest.approx(1.5, abs=0.1)
    assert pitch_of(heard) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_the_sound_of_a_video(decoder: Decoder, kind: str) -> None:
    codec = "libvpx" if kind == "webm" else "libx264"
    assert decoder.sound(video(10, kind=kind, codec=codec, loud=True)).seconds == pytest.approx(1, abs=0.1)
    with pytest.raises(MediaError, match="the sound has no sound in it"):
        decoder.sound(video(10, kind=kind, codec=codec))


# --- videos


def as_transformers(path: Path, **options: object) -> tuple[np.ndarray, list[float]]:
    """Frames ``[n, height, width, 3]`` and seconds, by the choice that its Gemma 4 processor makes and its reader.

    (The processor itself needs torchvision to be imported.)
    """

    def choose(metadata: VideoMetadata, **_: object) -> np.ndarray:
        return default_sample_indices_fn(metadata, **options)

    frames, metadata = read_video_pyav(str(path), choose)
    return frames, metadata.timestamps


def clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def moving(number: int) -> np.ndarray:
    return np.roll(noise(48, 64, 3), 3 * number, axis=1)


@pytest.mark.parametrize(
    ("frames", "rate", "options"),
    [
        (32, 30, {}),
        (33, 30, {}),
        (100, 24, {}),
        (90, 30, {"frames": 7}),
        (90, 30, {"fps": 2.0}),
        (50, 25, {"fps": 0.1}),
    ],
    ids=str,
)
def test_frames_and_seconds_are_those_of_transformers(
    decoder: Decoder, tmp_path: Path, frames: int, rate: int, options: dict[str, float]
) -> None:
    data = video(frames, rate=rate, paint=moving)
    (tmp_path / "v.mp4").write_bytes(data)
    count = (
        {"num_frames": None, "fps": options["fps"]} if "fps" in options else {"num_frames": options.get("frames", 32)}
    )
    expected, seconds = as_transformers(tmp_path / "v.mp4", **count)
    clip = decoder.clip(data, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.stack([frame.pixels for frame in clip.frames]), expected)
    np.testing.assert_allclose(clip.seconds, seconds, atol=1e-6)
    assert [clock(second) for second in clip.seconds] == [clock(second) for second in seconds]
    assert clip.duration == pytest.approx(frames / rate, abs=1 / rate)


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("mov", "libx264"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
    ],
)
def test_every_container_and_codec(decoder: Decoder, kind: str, codec: str) -> None:
    clip = decoder.clip(video(40, kind=kind, codec=codec), frames=10)
    levels = [round(frame.pixels.mean() / 16) for frame in clip.frames]  # every fourth, 16 brighter
    assert levels == list(range(10))
    assert clip.seconds == pytest.approx([4 * place / 30 for place in range(10)], abs=0.001)
    assert not clip.has_sound


def test_fewer_frames_than_were_asked_for_are_all_there_are(decoder: Decoder) -> None:
    assert len(decoder.clip(video(5)).frames) == 5
    assert len(decoder.clip(video(1)).frames) == 1


def test_sound_is_told_and_the_rest_of_a_long_video_too(decoder: Decoder) -> None:
    clip = decoder.clip(video(100, rate=10, loud=True), seconds=4, frames=8)
    assert clip.has_sound
    assert clip.duration == pytest.approx(10, abs=0.1)
    assert clip.seconds == pytest.approx([place / 2 for place in range(8)], abs=0.001)


def test_large_frames_are_made_smaller(decoder: Decoder) -> None:
    picture = noise(720, 1280)
    data = video(4, size=(1280, 720), paint=lambda number: picture, preset="ultrafast")
    clip = decoder.clip(data, frames=4)
    assert clip.frames[0].size == (720, 1280)
    many = video(32, size=(1280, 720), paint=lambda number: picture, preset="ultrafast")
    small = decoder.clip(many, frames=32)
    height, width = small.frames[0].size
    assert 0.9 * LIMITS.clip_pixels / 32 <= height * width <= LIMITS.clip_pixels / 32
    assert width / height == pytest.approx(16 / 9, abs=0.01)
    expected = np.asarray(Image.fromarray(clip.frames[0].pixels).resize((width, height), Image.Resampling.BICUBIC))
    assert np.abs(small.frames[0].pixels.astype(int) - expected).mean() < 1


def test_seconds_are_those_of_the_file_where_its_rate_varies(decoder: Decoder) -> None:
    shown = [0, 10, 500, 510, 2000, 2400]  # milliseconds
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, when in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(moving(number), format="rgb24")
            frame.pts, frame.time_base = when, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert decoder.clip(file.getvalue()).seconds == pytest.approx([when / 1000 for when in shown], abs=0.001)
    assert len(decoder.clip(file.getvalue(), seconds=1).frames) == 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_videos_stand_upright(decoder: Decoder, degrees: int) -> None:
    """As phones write them: the pictures lie, and the track's matrix says how to turn them."""
    plain = video(3, paint=moving, size=(64, 48))
    data = bytearray(plain)
    matrices = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = (value * 65_536 for value in matrices[degrees])
    place = data.index(b"tkhd") + 4 + 40  # after version, times, track, length, layer, group, volume
    for offset, value in ((0, a), (4, b), (12, c), (16, d)):
        data[place + offset : place + offset + 4] = (value % 2**32).to_bytes(4, "big")
    lying, upright = decoder.clip(plain).frames[0].pixels, decoder.clip(bytes(data)).frames[0].pixels
    np.testing.assert_array_equal(upright, np.rot90(lying, -degrees // 90))  # the matrix turns clockwise


@pytest.mark.parametrize(
    ("options", "told"),
    [({"frames": 0}, "frames is 0"), ({"frames": 10**9}, "frames is"), ({"fps": 0.0}, "fps is"),
     ({"fps": float("nan")}, "fps"), ({"seconds": 61.0}, "seconds is"), ({"seconds": float("inf")}, "seconds is"),
     ({"seconds": -1.0}, "seconds is")],
)  # fmt: skip
def test_wishes_about_a_clip_are_bounded(decoder: Decoder, options: dict[str, float], told: str) -> None:
    with pytest.raises(MediaError, match=told):
        decoder.clip(b"", **options)  # type: ignore[arg-type]


# --- the processes


def test_many_threads_at_once() -> None:
    pictures = [noise(50 + number, 70) for number in range(24)]
    seen: dict[int, Picture] = {}
    with Decoder(at_once=2) as decoder:

        def look(number: int) -> None:
            seen[number] = decoder.picture(encoded(pictures[number], "PNG"))

        threads = [threading.Thread(target=look, args=(number,)) for number in range(len(pictures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(idle) for idle in decoder._idle.values()) <= 2
    for number, pixels in enumerate(pictures):
        np.testing.assert_array_equal(seen[number].pixels, pixels)


def process_of(decoder: Decoder, room: str = "picture") -> child.Child:
    (found,) = decoder._idle[room]
    return found


def test_a_process_serves_many_and_is_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REQUESTS", 3)
    with Decoder() as decoder:
        pids = []
        for _ in range(5):
            decoder.picture(png_of_noise())
            pids += [process.pid for process in decoder._idle["picture"]]
    assert pids[0] == pids[1]
    assert len(pids) == 4  # after the third nobody was left
    assert pids[2] == pids[3] != pids[0]


def png_of_noise() -> bytes:
    return encoded(noise(40, 30), "PNG")


def test_a_refusal_costs_no_process(decoder: Decoder) -> None:
    decoder.picture(png_of_noise())
    before = process_of(decoder).pid
    with pytest.raises(MediaError, match="damaged or cut short"):
        decoder.picture(png_of_noise()[:-60])
    assert process_of(decoder).pid == before


def test_one_that_died_while_it_waited_is_replaced_unseen() -> None:
    with Decoder() as decoder:
        decoder.picture(png_of_noise())
        process = process_of(decoder)
        os.kill(process.pid, signal.SIGKILL)
        process._process.wait()
        assert decoder.picture(png_of_noise()).size == (40, 30)
        assert process_of(decoder).pid != process.pid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_death_in_the_middle_costs_one_request(how: signal.Signals) -> None:
    data = full_png(3000, 3000)
    with Decoder(limits=replace(LIMITS, seconds=1.0 if how == signal.SIGSTOP else 10.0)) as decoder:
        decoder.picture(png_of_noise())
        pid = process_of(decoder).pid

        def struck(messages: collect.Messages, limits: object) -> Picture:
            next(messages)  # the header: it is at work
            os.kill(pid, how)
            for _ in messages:
                pass
            raise AssertionError("it lived")

        with pytest.raises(MediaError, match="too much work" if how == signal.SIGSTOP else "broke its decoder"):
            decoder._ask("picture", "picture", {"format": "PNG"}, data, struck)
        assert decoder.picture(png_of_noise()).size == (40, 30)
        assert process_of(decoder).pid != pid


def test_whoever_stops_asking_leaves_no_half_answer_behind(decoder: Decoder) -> None:
    decoder.picture(png_of_noise())
    pid = process_of(decoder).pid

    def impatient(messages: collect.Messages, limits: object) -> Picture:
        next(messages)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder._ask("picture", "picture", {"format": "PNG"}, full_png(3000, 3000), impatient)
    assert decoder.picture(png_of_noise()).size == (40, 30)
    assert process_of(decoder).pid != pid


def test_after_close_nothing_runs_and_nothing_is_decoded() -> None:
    decoder = Decoder()
    decoder.picture(png_of_noise())
    process = process_of(decoder)
    decoder.close()
    assert not process.alive
    with pytest.raises(RunError, match="closed"):
        decoder.picture(png_of_noise())
    decoder.close()


def test_a_decoder_that_nobody_closes_ends_with_its_last_user() -> None:
    decoder = Decoder()
    decoder.picture(png_of_noise())
    process = process_of(decoder)._process
    del decoder
    gc.collect()
    assert process.poll() is not None


@ON_LINUX
def test_what_holds_is_told(decoder: Decoder) -> None:
    for room in ("picture", "sound", "spoken", "clip"):
        assert {"no files", "no network", "no new privileges", "limit AS", "limit FSIZE"} <= set(decoder.confined(room))


@ON_LINUX
def test_a_decoder_ends_when_its_owner_is_gone(tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(decode.__file__).parents[2])!r})
from pocketgem.media.decode import Decoder
decoder = Decoder()
decoder.picture(open({str(tmp_path / "a.png")!r}, "rb").read())
print(decoder._idle["picture"][0].pid, flush=True)
os.kill(os.getpid(), 9)
"""
    (tmp_path / "a.png").write_bytes(png_of_noise())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        threading.Event().wait(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the decoder lives on alone")


@pytest.mark.parametrize("room", ["picture", "sound", "spoken", "clip"])
def test_a_decoder_never_has_torch(room: str) -> None:
    program = f"""
import sys
from importlib import import_module
from pocketgem.media.worker import READERS
import_module("pocketgem.media." + READERS[{room!r}])
print(sorted({{"torch", "transformers", "tokenizers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_the_package_works_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    webm = b"\x1aE\xdf\xa3"
    with Decoder() as decoder:
        for call, data, needed in (
            (decoder.picture, b"\x89PNG\r\n\x1a\n", "PIL"),
            (decoder.sound, b"fLaC", "soundfile and soxr"),
            (decoder.sound, webm, "av and soxr"),
            (decoder.clip, webm, "av"),
        ):
            with pytest.raises(MediaError, match=rf"needs {needed}: pip install 'pocketgem\[media\]'"):
                call(data)


def test_only_the_decoders_processes_import_what_the_extra_brings() -> None:
    house = Path(decode.__file__).parents[1]
    inside = {
        f"media/{name}.py" for name in ("read_image", "read_sound", "read_track", "read_video", "samples", "streams")
    } | {"media/patches.py", "pointing.py"}  # these resize and draw on pixels that were decoded there
    for path in house.rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path)} & {"PIL", "soundfile", "soxr", "av"}
        name = str(path.relative_to(house))
        assert not found or name in inside, f"{name} imports {found}"


# --- names of content


def test_equal_bytes_in_another_form_have_another_name() -> None:
    values = np.arange(24, dtype=np.uint8)
    forms: list[object] = [
        values, values.reshape(4, 6), values.reshape(6, 4), values.reshape(4, 6).T, values.view(np.int8),
        values.view(np.uint16), values.tobytes(), values[:12], (values[:12], values[12:]), (values[12:], values[:12]),
        (values[:12], (values[12:],)), Picture(values.reshape(2, 4, 3)), Picture(values.reshape(4, 2, 3)),
        Clip((Picture(values.reshape(2, 4, 3)),), (0.0,), 1.0, False),
        Clip((Picture(values.reshape(2, 4, 3)),), (0.0,), 1.0, True),
        Clip((Picture(values.reshape(2, 4, 3)),), (1.0,), 1.0, False),
        "ab", b"ab", ("a", "b"), ("ab", ""), 1, True, "1", 1.0, None, (), ((),),
    ]  # fmt: skip
    names = [content_key(form) for form in forms]
    assert len(set(names)) == len(forms)
    assert all(len(name) == 32 for name in names)
    assert content_key(forms[1], 280) != content_key(forms[1], 560)
    assert content_key(values.reshape(4, 6).copy(), "tower") == content_key(values.reshape(4, 6), "tower")


def test_the_name_of_a_view_is_that_of_its_content() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert content_key(values[::2, ::3]) == content_key(values[::2, ::3].copy())
    assert content_key(values.T) == content_key(np.ascontiguousarray(values.T))


@pytest.mark.parametrize("part", [object(), {1, 2}, {"a": 1}, np.array([object()]), int])
def test_what_has_no_content_has_no_name(part: object) -> None:
    with pytest.raises(TypeError):
        content_key(part)


def test_a_png_of_no_pixels_is_none(decoder: Decoder) -> None:
    for width, height in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(MediaError, match="the picture "):
            decoder.picture(png(width, height))
