"""Where things are in a picture, and when things happen in a video: asked for, kept to a form, read into numbers.

    detect(llm, image, "cats")         boxes, in pixels of the picture
    point(llm, image, "the handle")    points
    caption(llm, video)                what happens, with times
    draw(picture, boxes, points)       the picture with them on it, as PNG

The family is taught to write places as integers from 0 to 1000, down before across: ``{"box_2d": [ymin, xmin, ymax,
xmax], "label": ...}`` and ``{"point": [y, x], "label": ...}``. A grammar keeps the answer to that, so it can always be
read; whether it is right is the model's affair.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketgem.errors import MediaError, PromptError
from pocketgem.media.kinds import Clip, Picture
from pocketgem.subtitles import Line, srt, vtt
from pocketgem.text.shape import JsonSchema

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

    from pocketgem.llm import LLM

SCALE = 1000  # what the model takes for the far edges of a picture
MOST = 64  # places in one answer
MAX_LABEL = 60  # characters
MAX_WHAT = 2000  # characters of what is looked for
COLOURS = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 128, 128))

Tell = Callable[[str], object]
Image = bytes | Path | Picture
Video = bytes | Path | Clip


@dataclass(frozen=True)
class Box:
    """Pixels from the upper left corner: columns ``left`` to ``right``, rows ``top`` to ``bottom``, the last of each
    not in it."""

    left: int
    top: int
    right: int
    bottom: int
    label: str


@dataclass(frozen=True)
class Point:
    """A pixel: column ``x``, row ``y``."""

    x: int
    y: int
    label: str


@dataclass(frozen=True)
class Captions:
    """What happens in a video of so many ``seconds``, in order."""

    lines: tuple[Line, ...]
    seconds: float

    @property
    def srt(self) -> str:
        return srt(self.lines)

    @property
    def vtt(self) -> str:
        return vtt(self.lines)


def _silent(note: str) -> None:
    """Nobody wants to know."""


def detect(llm: LLM, image: Image, what: str, *, tell: Tell = _silent, **options: Any) -> list[Box]:
    """Boxes around everything in a picture that is ``what``.

    image: a file's bytes, its Path, or a decoded picture, to whose pixels the boxes refer. options: those of
    ``LLM.chat``, sampling above all; unless said, the likeliest answer is taken. tell: called with what a person should
    know, such as that the picture was made smaller. Raises MediaError, PromptError.
    """
    picture = llm.senses.picture(image)
    prompt = f"Detect {_checked(what)} in the image. Answer with JSON: a list of a box_2d and a label for each."
    places = _ask(llm, {"type": "image", "image": picture}, prompt, _places("box_2d", 4), tell, options)
    return [box_of(place["box_2d"], place["label"], picture.size) for place in places]


def point(llm: LLM, image: Image, what: str, *, tell: Tell = _silent, **options: Any) -> list[Point]:
    """A point on everything in a picture that is ``what``. Arguments and errors as of ``detect``."""
    picture = llm.senses.picture(image)
    prompt = f"Point to {_checked(what)} in the image. Answer with JSON: a list of a point and a label for each."
    places = _ask(llm, {"type": "image", "image": picture}, prompt, _places("point", 2), tell, options)
    return [point_of(place["point"], place["label"], picture.size) for place in places]


def caption(llm: LLM, video: Video, *, frames: int | None = None, tell: Tell = _silent, **options: Any) -> Captions:
    """What happens in a video, with the times from which to which.

    frames: pictures taken from it; None for 32. The other arguments and errors are as of ``detect``.
    """
    clip = llm.senses.clip(video, frames)
    prompt = "Describe what happens in this video, scene by scene, as JSON: a list of start (MM:SS), end and text."
    scenes = _ask(llm, {"type": "video", "video": clip}, prompt, _SCENES, tell, options)
    return Captions(tuple(_scene(scene, clip.duration) for scene in scenes), clip.duration)


def box_of(box: Sequence[int], label: str, size: tuple[int, int]) -> Box:
    """``[ymin, xmin, ymax, xmax]`` of 0 to 1000 in a picture of height and width ``size``; never empty."""
    height, width = size
    (top, bottom), (left, right) = _span(box[0], box[2], height), _span(box[1], box[3], width)
    return Box(left, top, right, bottom, label)


def point_of(place: Sequence[int], label: str, size: tuple[int, int]) -> Point:
    """``[y, x]`` of 0 to 1000 in a picture of height and width ``size``."""
    height, width = size
    return Point(_pixel(place[1], width), _pixel(place[0], height), label)


def draw(picture: Picture, boxes: Iterable[Box] = (), points: Iterable[Point] = ()) -> bytes:
    """The picture with boxes and points on it, as a PNG file. Raises MediaError where Pillow is not installed.

    A line is wide enough to be seen, and lies inside its box.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise MediaError("drawing needs Pillow: pip install 'pocketgem[media]'") from None
    image = Image.fromarray(picture.pixels.copy())
    pen, width = ImageDraw.Draw(image), max(2, min(picture.size) // 200)
    for index, box in enumerate(boxes):
        colour = COLOURS[index % len(COLOURS)]
        pen.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline=colour, width=width)
        _name(pen, box.left + width, box.top + width, box.label, colour)
    for index, one in enumerate(points):
        colour, around = COLOURS[index % len(COLOURS)], 2 * width
        pen.ellipse((one.x - around, one.y - around, one.x + around, one.y + around), fill=colour, outline=(255,) * 3)
        _name(pen, one.x + around + 2, one.y - around, one.label, colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# ---- asking ----------------------------------------------------------------------------------------------------------


def _places(key: str, count: int) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0, "maximum": SCALE}
    place = {"type": "array", "items": number, "minItems": count, "maxItems": count}
    return _list_of({key: place, "label": {"type": "string", "maxLength": MAX_LABEL}})


def _list_of(properties: Mapping[str, object]) -> dict[str, Any]:
    one = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": one, "maxItems": MOST}


_TIME = {"type": "string", "pattern": r"^[0-9]{2}:[0-5][0-9]$"}
_SCENES = _list_of({"start": _TIME, "end": _TIME, "text": {"type": "string", "maxLength": 300}})


def _ask(
    llm: LLM,
    medium: Mapping[str, object],
    prompt: str,
    schema: Mapping[str, object],
    tell: Tell,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    wanted = options if "params" in options else {"temperature": 0.0, **options}
    messages = [{"role": "user", "content": [medium, {"type": "text", "text": prompt}]}]
    reply = llm.chat(messages, format=JsonSchema(schema), **wanted)
    for note in reply.notes:
        tell(note)
    try:
        found: list[dict[str, Any]] = json.loads(reply.content)
    except ValueError as error:
        count = reply.stats.completion_tokens
        raise PromptError(f"the answer was cut after {count} tokens; allow more, or ask for less") from error
    return found


def _checked(what: str) -> str:
    if not what.strip() or len(what) > MAX_WHAT:
        raise PromptError(f"say what to look for, in at most {MAX_WHAT} characters")
    return what.strip()


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _span(one: int, other: int, length: int) -> tuple[int, int]:
    """From and to, in pixels. Models sometimes say the far edge first."""
    start = min(round(min(one, other) * length / SCALE), length - 1)
    return start, max(round(max(one, other) * length / SCALE), start + 1)


def _pixel(place: int, length: int) -> int:
    return min(place * length // SCALE, length - 1)


def _scene(scene: Mapping[str, str], duration: float) -> Line:
    start, end = (min(_seconds(scene[name]), duration) for name in ("start", "end"))
    return Line(min(start, end), max(start, end), scene["text"])


def _seconds(stamp: str) -> float:
    minutes, seconds = stamp.split(":")
    return int(minutes) * 60 + float(seconds)


def _name(pen: ImageDraw, x: int, y: int, label: str, colour: tuple[int, int, int]) -> None:
    """A label on a patch of its colour. What the small built-in letters do not have becomes a question mark."""
    text = label.encode("latin-1", "replace").decode("latin-1")
    if text:
        pen.rectangle(pen.textbbox((x, y), text), fill=colour)
        pen.text((x, y), text, fill=(255, 255, 255))
