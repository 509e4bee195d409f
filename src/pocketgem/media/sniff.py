"""What a file is, from its first bytes. Names, extensions and declared types are believed only if these agree."""

from __future__ import annotations

import re

from pocketgem.errors import MediaError

PICTURES = ("PNG", "JPEG", "WebP", "GIF")
SOUNDS = ("WAV", "FLAC", "MP3", "Ogg", "MP4", "WebM")  # MP4: m4a too. WebM: what browsers record, too
CLIPS = ("MP4", "WebM")

_START: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"fLaC", "FLAC"), (b"ID3", "MP3"), (b"OggS", "Ogg"), (b"\x1aE\xdf\xa3", "WebM"),
    (b"BM", "BMP"), (b"8BPS", "Photoshop"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"), (b"SIMPLE  =", "FITS"), (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"icns", "ICNS"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\x01\0", "icon"), (b"\0\0\x02\0", "cursor"), (b"qoif", "QOI"), (b"DDS ", "DDS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"), (b"\x76\x2f\x31\x01", "OpenEXR"), (b"AT&TFORM", "DjVu"), (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"), (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"7z\xbc\xaf", "7-Zip"),
    (b"Rar!", "RAR"), (b"\x7fELF", "program"), (b"MZ", "program"), (b"GGUF", "GGUF model"),
    (b"FORM", "AIFF"), (b".snd", "AU"), (b"RF64", "RF64"), (b"caff", "CAF"), (b"MThd", "MIDI"), (b"#!AMR", "AMR"),
    (b"\x30\x26\xb2\x75", "ASF (WMA, WMV)"), (b"FLV", "Flash video"), (b"#EXTM3U", "playlist"),
    (b"\0\0\x01\xba", "MPEG program stream"), (b"\0\0\x01\xb3", "MPEG video"), (b"OTTO", "font"), (b"wOF", "font"),
    (b"\0\x01\0\0\0", "font"), (b"ttcf", "font"),
)  # fmt: skip
_RIFF = {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI"}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "HEIC")
_TEXT = (("SVG", rb"<svg[\s>]"), ("HTML", rb"<(!doctype html|html|head|body|script)[\s>]"), ("XML", rb"<\?xml"))
_MIMES: dict[str, tuple[str, ...]] = {
    "PNG": ("image/png", "image/apng", "image/x-png"),
    "JPEG": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "WebP": ("image/webp",),
    "GIF": ("image/gif",),
    "WAV": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "FLAC": ("audio/flac", "audio/x-flac"),
    "MP3": ("audio/mpeg", "audio/mp3", "audio/x-mp3"),
    "Ogg": ("audio/ogg", "application/ogg", "audio/opus", "audio/vorbis"),
    "MP4": ("audio/mp4", "audio/m4a", "audio/x-m4a", "audio/aac", "video/mp4", "video/quicktime", "video/x-m4v"),
    "WebM": ("audio/webm", "video/webm", "video/x-matroska", "audio/x-matroska"),
}
_UNSAID = ("", "application/octet-stream")


def sniff(data: bytes | memoryview) -> str:
    """A name for what these bytes begin like; ``unknown`` where nothing here fits."""
    start = bytes(data[:1024])
    if start[:4] == b"RIFF":
        return _RIFF.get(start[8:12], "RIFF")
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "MP4")
    if start[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "MP4"  # QuickTime's, older than ftyp
    known = next((name for magic, name in _START if start.startswith(magic)), None)
    return known or _frames(start) or _text(start) or "unknown"


def _frames(start: bytes) -> str | None:
    """MPEG sound without a header: each frame starts with eleven ones, a version and a layer."""
    if len(start) < 4 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    layer = start[1] >> 1 & 3
    return "ADTS (bare AAC)" if layer == 0 else "MP3"


def _text(start: bytes) -> str | None:
    lowered = start.lower()
    return next((name for name, pattern in _TEXT if re.search(pattern, lowered)), None)


def expect(data: bytes | memoryview, kinds: tuple[str, ...], what: str, declared: str | None = None) -> str:
    """Which of ``kinds`` the bytes are. ``declared``: a media type that came with them.

    Raises MediaError for every other kind, by its name, and where the declared type is another's.
    """
    if not len(data):
        raise MediaError(f"the {what} is empty: 0 bytes")
    found = sniff(data)
    if found not in kinds:
        known = "is of no kind that is known here" if found == "unknown" else f"is {_article(found)} file"
        raise MediaError(f"the {what} {known}; {', '.join(kinds[:-1])} and {kinds[-1]} are taken")
    _agree(found, what, declared)
    return found


def _agree(found: str, what: str, declared: str | None) -> None:
    mime = (declared or "").split(";")[0].strip().lower()
    if mime not in _UNSAID and mime not in _MIMES[found]:
        raise MediaError(f"the {what} was declared as {mime[:80]!r}, but its bytes are {_article(found)} file's")


def _article(name: str) -> str:
    """With "a" or "an", as the name is spoken."""
    vowel = name[0] in "AEIO" or name.startswith(("MP", "HTML", "SVG", "XML", "RF"))
    return f"{'an' if vowel else 'a'} {name}"
