"""A form with a file in it (multipart/form-data), as the official clients send recordings. All of it stays in memory:
nobody's voice is written to a disk on its way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pocketgem.serve.faults import Fault

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
MAX_PARTS = 64
MAX_TEXT = 64 << 10  # bytes of a field that is no file
MAX_HEADERS = 8  # of a part
MAX_HEADER = 4 << 10  # bytes of one
MAX_NAME = 256  # bytes of a field's name; a file's is cut there


@dataclass(frozen=True)
class Upload:
    """A file of a form. Its name and type are what its sender says."""

    content: bytes
    name: str
    media_type: str | None = None


@dataclass
class Form:
    """Fields in order, by name. A name may come more than once."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[Upload]] = field(default_factory=dict)


async def read_form(body: bytes, content_type: str) -> Form:
    """Raises Fault 400 for what is no form, or one of too many or too large parts."""
    return await asyncio.to_thread(parse, body, content_type)


def parse(body: bytes, content_type: str) -> Form:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != FORM.encode() or not boundary:
        raise _broken("its Content-Type names no boundary")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks, max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _broken(str(error)[:200]) from None
    if not reader.ended:
        raise _broken("it is cut short")
    return reader.form


def _broken(why: str) -> Fault:
    return Fault(400, f"the body is no good form: {why}", code="invalid_multipart")


class _Reader:
    """What the parser found, put together part by part."""

    def __init__(self) -> None:
        self.form, self.ended, self.parts = Form(), False, 0
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._name, self._filename = "", None  # type: str, str | None

    @property
    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._described,
            "on_part_data": self._more,
            "on_part_end": self._part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise _broken(f"it has more than {MAX_PARTS} parts")
        self._headers, self._data = {}, bytearray()

    def _header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _described(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if name is None or len(name) > MAX_NAME:
            raise _broken("a part has no name, or a long one")
        self._name = name.decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._filename = None if filename is None else filename[:MAX_NAME].decode("utf-8", "replace")

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if self._filename is None and len(self._data) > MAX_TEXT:
            raise _broken(f"the field {self._name!r} has more than {MAX_TEXT} bytes")

    def _part(self) -> None:
        data, self._data = self._data, bytearray()
        if self._filename is None:
            self.form.texts.setdefault(self._name, []).append(self._text(data))
            return
        media_type = self._headers.get(b"content-type")
        told = None if media_type is None else media_type.decode("latin-1")
        self.form.files.setdefault(self._name, []).append(Upload(bytes(data), self._filename, told))

    def _text(self, data: bytearray) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise _broken(f"the field {self._name!r} is not UTF-8") from None

    def _end(self) -> None:
        self.ended = True
