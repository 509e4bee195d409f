"""Images, sounds and videos in requests, as each dialect writes them, become parts of messages (``text/media.py``).

Nothing is decoded here, and nothing fetched: what has an http address becomes a ``Remote``, for ``chats.py`` to refuse
or to fetch.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pocketgem.serve.fields import MAX_NAME, FieldError, Fields, shown, text_of
from pocketgem.serve.history import MAX_PARTS, Message, part_text

# How much of an image the model sees, by OpenAI's words. None: as the server is set, "auto": all that there is.
DETAILS: dict[str, int | str | None] = {"low": 70, "high": 1120, "auto": None, "original": "auto"}
KINDS = ("image", "audio", "video")
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*);base64,", re.ASCII | re.IGNORECASE)
_HTTP = re.compile(r"https?://", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Remote:
    """A medium that lies elsewhere. ``field`` is where the request names it."""

    url: str
    field: str


Reader = Callable[[Fields], Message]
Readers = Mapping[str, Reader]


def content(fields: Fields, key: str, kinds: Collection[str], media: Readers) -> str | list[Message]:
    """Content that is a text or a list of parts: texts of these kinds, and media. Raises FieldError."""
    value = fields.raw(key)
    if isinstance(value, str):
        return text_of(value, fields.at(key))
    if not isinstance(value, list):
        fields.refuse(key, f"must be a text or a list of parts, not {shown(value)}")
    return together(part(one, kinds, media) for one in fields.sections(key, most=MAX_PARTS))


def part(fields: Fields, kinds: Collection[str], media: Readers) -> Message:
    """A text or a medium as a part of a message. Raises FieldError."""
    kind = fields.text("type", most=MAX_NAME)
    if kind in media:
        return media[kind](fields)
    return {"type": "text", "text": part_text(fields, (*kinds, *media))}


def together(parts: Iterable[Message]) -> str | list[Message]:
    """Parts as content: texts alone are one text."""
    whole = list(parts)
    texts = [str(one["text"]) for one in whole if one["type"] == "text"]
    return whole if len(texts) < len(whole) else "".join(texts)


def media_in(messages: Iterable[Mapping[str, object]]) -> list[Message]:
    """The media parts of messages that were read here."""
    lists = (message.get("content") for message in messages)
    return [one for parts in lists if isinstance(parts, list) for one in parts if one["type"] in KINDS]


# ---- the dialects ----------------------------------------------------------------------------------------------------


def image_url(fields: Fields) -> Message:
    """Chat completions: ``{"image_url": {"url", "detail"}}``, or the url alone."""
    fields.raw("image_url")
    if isinstance(fields.data["image_url"], str):
        return _medium("image", _from_url(fields, "image_url"))
    given = fields.section("image_url")
    return _medium("image", _from_url(given, "url"), _budget(given))


def url_of(kind: str) -> Reader:
    """Chat completions: ``{"video_url": {"url"}}`` and ``audio_url``, as other servers have them."""

    def read(fields: Fields) -> Message:
        fields.raw(f"{kind}_url")
        return _medium(kind, _from_url(fields.section(f"{kind}_url"), "url"))

    return read


def input_audio(fields: Fields) -> Message:
    """``{"input_audio": {"data", "format"}}``. The format is what its file says, whatever stands here."""
    fields.raw("input_audio")
    given = fields.section("input_audio")
    if given.has("format"):
        given.text("format", most=MAX_NAME)
    return _medium("audio", _base64(given.text("data"), given.at("data")))


def file(fields: Fields) -> Message:
    """Chat completions: ``{"file": {"file_data", "filename"}}``; the data url says what it is."""
    fields.raw("file")
    return _of_file(fields.section("file"), "file_data")


def input_image(fields: Fields) -> Message:
    """Responses: ``{"image_url", "detail"}``."""
    _no_ids(fields)
    return _medium("image", _from_url(fields, "image_url"), _budget(fields))


def input_file(fields: Fields) -> Message:
    """Responses: ``{"file_data", "filename"}``."""
    if fields.has("file_url"):
        fields.refuse(
            "file_url", "is not taken: an address does not say what lies there; use input_image, or file_data"
        )
    return _of_file(fields, "file_data")


def image(fields: Fields) -> Message:
    """Anthropic: ``{"source": {"type": "base64", "media_type", "data"}}``, or an url."""
    fields.raw("source")
    source = fields.section("source")
    if source.one_of("type", ("base64", "url")) == "url":
        return _medium("image", _from_url(source, "url"))
    declared = source.text("media_type", most=MAX_NAME)
    return _medium("image", (_base64(source.text("data"), source.at("data"))[0], declared))


CHAT: Readers = {
    "image_url": image_url,
    "input_audio": input_audio,
    "audio_url": url_of("audio"),
    "video_url": url_of("video"),
    "file": file,
}
RESPONSES: Readers = {"input_image": input_image, "input_audio": input_audio, "input_file": input_file}
ANTHROPIC: Readers = {"image": image}

# ---- pieces ----------------------------------------------------------------------------------------------------------

Content = tuple[bytes | Remote, str | None]  # and the media type that came with it


def _medium(kind: str, found: Content, budget: int | str | None = None) -> Message:
    content, declared = found
    options = {"budget": budget, "media_type": declared}
    return {"type": kind, kind: content, **{name: value for name, value in options.items() if value is not None}}


def _from_url(fields: Fields, key: str) -> Content:
    url, path = fields.text(key), fields.at(key)
    if _HTTP.match(url):
        return Remote(text_of(url, path, 4096), path), None
    return _from_data(url, path)


def _from_data(url: str, path: str) -> Content:
    head = _DATA.match(url)
    if head is None:
        raise FieldError(path, "must be a data url with base64, such as data:image/png;base64,..., or an http address")
    return _base64(url[head.end() :], path)[0], (head[1] or None) and head[1].lower()


def _base64(text: str, path: str) -> Content:
    try:
        return base64.b64decode(text, validate=True), None
    except (binascii.Error, ValueError):
        raise FieldError(path, "is not base64") from None


def _of_file(fields: Fields, key: str) -> Message:
    _no_ids(fields)
    content, declared = _from_data(fields.text(key), fields.at(key))
    kind = (declared or "").partition("/")[0]
    if kind not in KINDS:
        fields.refuse(key, f"is of type {shown(declared)}; files can be images, audio and video, not documents")
    return _medium(kind, (content, declared))


def _no_ids(fields: Fields) -> None:
    if fields.has("file_id"):
        fields.refuse("file_id", "names a file that was uploaded before; this server keeps none: send the data itself")


def _budget(fields: Fields) -> int | str | None:
    return DETAILS[fields.one_of("detail", tuple(DETAILS), "auto")]


def with_text_first(content: str | Sequence[Message], text: str) -> str | list[Message]:
    """Content behind a text."""
    if isinstance(content, str):
        return f"{text}{content}"
    return [{"type": "text", "text": text}, *content]
