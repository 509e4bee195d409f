"""Speech becomes text: what was said, or a translation of it, with times.

    transcribe(llm, sound)                        as it was said
    translate(llm, sound, target="English")       in another language, and as it was said

A sound longer than a model hears at once is cut in pieces (``media/pieces.py``), each is asked about by itself, and
what two of them both say is kept once. Prompts are those of Google's documentation, sound behind the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketgem.engine.request import FinishReason
from pocketgem.errors import PromptError
from pocketgem.media.kinds import Sound
from pocketgem.media.pieces import OVERLAP, Piece, cut, glued, own_parts
from pocketgem.subtitles import Line, spread, srt, vtt
from pocketgem.text.languages import language_name

if TYPE_CHECKING:
    from pocketgem.llm import LLM

MAX_TOKENS = 1024  # of the answer to one piece: fast speech is 6 tokens a second, written twice for a translation
MAX_HINT = 2000  # characters
_FORM = (
    "\n\nFollow these specific instructions for formatting the answer:\n"
    "*   Only output the transcription, with no newlines.\n"
    "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of "
    "three."
)
Messages = list[dict[str, object]]


@dataclass(frozen=True)
class Task:
    """What is asked about a sound.

    source: the language that is spoken, None if it is not known. target: the language to translate to, None to write
    what was said. hint: names and words that may come up.
    """

    source: str | None = None
    target: str | None = None
    hint: str = ""

    @classmethod
    def of(cls, source: str | None, target: str | None = None, hint: str = "") -> Task:
        """Languages by code or name. Raises PromptError for one that is none, and for a long hint."""
        if len(hint) > MAX_HINT:
            raise PromptError(f"the hint has {len(hint)} characters; at most {MAX_HINT} are taken")
        source, target = (None if language is None else language_name(language) for language in (source, target))
        return cls(source, target, _line(hint))

    @property
    def overlap(self) -> float:
        """Seconds that two pieces share. None for translations: what both say is not the same words in both."""
        return OVERLAP if self.target is None else 0.0

    @property
    def prompt(self) -> str:
        spoken = f"in {self.source}" if self.source else "in its original language"
        if self.target is None:
            written = f"{spoken} into {self.source} text" if self.source else spoken
            return f"Transcribe the following speech segment {written}.{_FORM}{self._hinted}"
        return (
            f"Transcribe the following speech segment {spoken}, then translate it into {self.target}.\n"
            f"When formatting the answer, first output the transcription {spoken}, then one newline, then output the "
            f"string '{self.target}: ', then the translation in {self.target}."
            f"{self._hinted}"
        )

    @property
    def _hinted(self) -> str:
        return f"\n*   These names and words may come up: {self.hint}" if self.hint else ""

    def messages(self, sound: Sound) -> Messages:
        """What to ask a chat about one piece."""
        content = [{"type": "text", "text": self.prompt}, {"type": "audio", "audio": sound}]
        return [{"role": "user", "content": content}]

    def read(self, answer: str) -> tuple[str, str]:
        """An answer -> what was said, and what was asked for: the same, or its translation."""
        if self.target is None:
            return _line(answer), _line(answer)
        mark = re.search(rf"^\s*{re.escape(self.target)}:", answer, re.MULTILINE) or re.search(
            rf"{re.escape(self.target)}:", answer
        )
        if mark is None:
            return "", _line(answer)  # the translation came alone
        return _line(answer[: mark.start()]), _line(answer[mark.end() :])


@dataclass(frozen=True)
class Answer:
    """What the model wrote about one piece. ``whole``: it ended by itself, and not for its limit of tokens."""

    text: str
    whole: bool = True


@dataclass(frozen=True)
class Segment:
    """What is new in one piece. ``start`` and ``end``, in seconds, are those of its cuts.

    said: as it was said. text: what was asked for, which is ``said`` or its translation. whole: as in ``Answer``.
    """

    start: float
    end: float
    said: str
    text: str
    whole: bool = True


@dataclass(frozen=True)
class Transcript:
    """What a sound says. ``text`` is what was asked for, ``said`` as it was said; ``seconds``: how long it lasts."""

    text: str
    said: str
    segments: tuple[Segment, ...]
    seconds: float
    language: str | None

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Subtitles. A segment's time is spread over its sentences by their length: the model gives no times."""
        return tuple(line for one in self.segments for line in spread(one.text, one.start, one.end))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: where an answer reached its limit, so that text is missing or goes in circles."""
        return tuple(
            f"from {one.start:.0f} s to {one.end:.0f} s the answer reached its limit of tokens: it is not whole"
            for one in self.segments
            if not one.whole
        )

    @property
    def srt(self) -> str:
        return srt(self.lines)

    @property
    def vtt(self) -> str:
        return vtt(self.lines)


def transcribe(llm: LLM, sound: Sound | bytes | Path, language: str | None = None, **options: Any) -> Transcript:
    """What was said.

    Args:
        sound: decoded, or a file's bytes or Path (WAV, FLAC, MP3, Ogg, the sound of MP4 and WebM).
        language: spoken, by code or English name; None lets the model find out.
        options: those of ``LLM.chat``, sampling above all. Unless said, the likeliest answer is taken.
    Raises MediaError for a file that is no sound and for a model that does not hear, PromptError for no language.
    """
    return _asked(llm, sound, Task.of(language), options)


def translate(
    llm: LLM, sound: Sound | bytes | Path, source: str | None = None, target: str = "English", **options: Any
) -> Transcript:
    """What was said, in another language: ``Transcript.text`` is the translation. Arguments as of ``transcribe``."""
    return _asked(llm, sound, Task.of(source, target), options)


def assembled(task: Task, sound: Sound, pieces: Sequence[Piece], answers: Sequence[Answer]) -> Transcript:
    """The answers about the pieces of a sound, as one."""
    read = [task.read(answer.text) for answer in answers]
    said, texts = [said for said, _ in read], [text for _, text in read]
    if any(piece.start < piece.own for piece in pieces):
        said, texts = own_parts(said), own_parts(texts)
    rows = zip(pieces, said, texts, answers, strict=True)
    segments = tuple(Segment(*piece.seconds, one, text, answer.whole) for piece, one, text, answer in rows)
    return Transcript(glued(texts), glued(said), segments, sound.seconds, task.source)


def _asked(llm: LLM, sound: Sound | bytes | Path, task: Task, options: Mapping[str, Any]) -> Transcript:
    heard = sound if isinstance(sound, Sound) else llm.senses.sound(sound)
    pieces = cut(heard, overlap=task.overlap)
    wanted = options if "params" in options else {"temperature": 0.0, "max_tokens": MAX_TOKENS, **options}
    replies = [llm.chat(task.messages(piece.of(heard)), **wanted) for piece in pieces]
    answers = [Answer(reply.content, reply.finish is not FinishReason.LENGTH) for reply in replies]
    return assembled(task, heard, pieces, answers)


def _line(text: str) -> str:
    return " ".join(text.split())
