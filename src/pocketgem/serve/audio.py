"""OpenAI's ``/v1/audio/transcriptions`` and ``/v1/audio/translations``: a recording as text, with times or without.

The recording is cut in pieces that a model hears at once (``speech.py``), each a request like any other. Times are
those of the cuts, spread over sentences: there are none of words. What is no part of OpenAI's API: ``language`` and
``target_language`` of a translation, ``notes``, ``segments`` without the numbers that only Whisper has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.responses import PlainTextResponse, Response

from pocketgem.answers import Stats
from pocketgem.engine.request import FinishReason
from pocketgem.media.kinds import Sound
from pocketgem.media.pieces import cut
from pocketgem.serve.answering import Desk
from pocketgem.serve.call import Call
from pocketgem.serve.fields import MAX_NAME, FieldError, Fields
from pocketgem.serve.job import ChatJob
from pocketgem.serve.multipart import Form, Upload
from pocketgem.serve.prepared import ready
from pocketgem.serve.replies import json_reply
from pocketgem.serve.said import Said, said
from pocketgem.serve.wiring import Serving
from pocketgem.speech import MAX_HINT, MAX_TOKENS, Answer, Task, Transcript, assembled

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
MAX_TEMPERATURE = 2.0
LISTS = ("timestamp_granularities[]", "timestamp_granularities", "include[]", "include")  # fields that may come twice
REFUSED = {
    "chunking_strategy": "recordings are cut at the quietest place before 30 s; there is no other way",
    "include[]": "log-probabilities are not given for recordings",
    "include": "log-probabilities are not given for recordings",
    "known_speaker_names[]": "the model does not tell speakers apart",
    "known_speaker_references[]": "the model does not tell speakers apart",
}


@dataclass(frozen=True)
class Wanted:
    """A request that was read. ``task``: what to ask; ``form``: how to write the answer."""

    model: str | None
    task: Task
    file: Upload
    form: str
    temperature: float

    @classmethod
    def read(cls, form: Form, *, translating: bool) -> Wanted:
        """Raises FieldError, and PromptError for a language that is none."""
        fields = Fields.of(_once(form))
        for name in form.files:
            if name != "file":
                raise FieldError(name[:MAX_NAME], "is a file; only 'file' may be one")
        fields.refuse_any(REFUSED)
        if _is_on(fields, "stream"):
            fields.refuse("stream", "is not done for recordings: the text comes whole")
        _check_granularities(form)
        target = fields.text("target_language", "en", most=MAX_NAME) if translating else None
        source = fields.text("language", "", most=MAX_NAME) or None
        return cls(
            fields.text("model", "", most=MAX_NAME) or None,
            Task.of(source, target, hint=fields.text("prompt", "", most=MAX_HINT)),
            _file(form),
            fields.one_of("response_format", FORMATS, "json"),
            _temperature(fields),
        )


async def transcribe(serving: Serving, call: Call, form: Form) -> Response:
    """What was said."""
    return await _answer(serving, call, Wanted.read(form, translating=False))


async def translate(serving: Serving, call: Call, form: Form) -> Response:
    """What was said, in English unless ``target_language`` says else."""
    return await _answer(serving, call, Wanted.read(form, translating=True))


async def _answer(serving: Serving, call: Call, wanted: Wanted) -> Response:
    async with AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(serving.registry.use(wanted.model))
        call.note["model"] = loaded.name
        loaded.llm.senses.check("audio")  # before the recording of a model without ears is looked at
        sound = await serving.media.prepare(lambda proceed: serving.media.decoder.sound(wanted.file.content))
        call.note["sound_seconds"] = round(sound.seconds, 2)
        desk = Desk(loaded, serving.metrics, stack, call)
        pieces = cut(sound, overlap=wanted.task.overlap)
        answers = [await _ask(serving, desk, wanted, piece.of(sound)) for piece in pieces]
        told = [Answer(one.text, one.done.finish is not FinishReason.LENGTH) for one in answers]
        found = assembled(wanted.task, sound, pieces, told)
        return _written(wanted, found, [one.done.stats for one in answers])


async def _ask(serving: Serving, desk: Desk, wanted: Wanted, sound: Sound) -> Said:
    """One piece through the engine. Its client leaving ends it. Raises MediaError, PromptError, RunError."""
    sampling = {"temperature": wanted.temperature, "max_tokens": MAX_TOKENS}
    loaded, messages = desk.loaded, tuple(wanted.task.messages(sound))
    job = ChatJob(loaded.name, messages, sampling=sampling, thinking=False, adapter=loaded.adapter)
    made = await ready(serving, desk.call, desk.loaded.llm, job)
    run = desk.submit(made.request)
    return said([update async for update in desk.updates(run, job.shape)])


# ---- reading ---------------------------------------------------------------------------------------------------------


def _once(form: Form) -> Mapping[str, object]:
    """Each field's one text. Empty ones are absent: programs send what they left out so. Raises FieldError."""
    for name, texts in form.texts.items():
        if len(texts) > 1 and name not in LISTS:
            raise FieldError(name[:MAX_NAME], "is there more than once")
    return {name: texts[0] for name, texts in form.texts.items() if texts[0]}


def _file(form: Form) -> Upload:
    files = form.files.get("file", [])
    if not files:
        raise FieldError("file", "is missing; it must be a recording, with a file name")
    if len(files) > 1:
        raise FieldError("file", "is there more than once")
    return files[0]


def _is_on(fields: Fields, name: str) -> bool:
    return fields.one_of(name, ("true", "false", "True", "False", "1", "0"), "false") in ("true", "True", "1")


def _temperature(fields: Fields) -> float:
    text = fields.text("temperature", "0", most=40)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_TEMPERATURE:  # also refuses NaN
        fields.refuse("temperature", f"must be a number from 0 to {MAX_TEMPERATURE:g}")
    return value


def _check_granularities(form: Form) -> None:
    for name in LISTS[:2]:
        for text in form.texts.get(name, []):
            if text == "word":
                raise FieldError(name, "words have no times: the model gives none; 'segment' has them")
            if text not in ("", "segment"):
                raise FieldError(name, "must be 'segment'")


# ---- writing ---------------------------------------------------------------------------------------------------------


def _written(wanted: Wanted, found: Transcript, counts: list[Stats]) -> Response:
    if wanted.form == "json":
        return json_reply({"text": found.text, "usage": _usage(counts)} | _notes(found))
    if wanted.form == "verbose_json":
        return json_reply(_verbose(wanted.task, found) | _notes(found))
    texts = {"text": f"{found.text}\n", "srt": found.srt, "vtt": found.vtt}
    return PlainTextResponse(texts[wanted.form])


def _verbose(task: Task, found: Transcript) -> dict[str, object]:
    segments = [
        {"id": id, "start": round(line.start, 3), "end": round(line.end, 3), "text": line.text}
        for id, line in enumerate(found.lines)
    ]
    return {
        "task": "transcribe" if task.target is None else "translate",
        "language": (task.target or task.source or "unknown").lower(),
        "duration": round(found.seconds, 3),
        "text": found.text,
        "segments": segments,
        "usage": {"type": "duration", "seconds": round(found.seconds)},
    }


def _notes(found: Transcript) -> dict[str, object]:
    """An extension."""
    return {"notes": list(found.notes)} if found.notes else {}


def _usage(counts: list[Stats]) -> dict[str, object]:
    """Of all pieces together."""
    read, made = sum(one.prompt_tokens for one in counts), sum(one.completion_tokens for one in counts)
    heard = sum(one.audio_tokens for one in counts)
    details = {"audio_tokens": heard, "text_tokens": read - heard}
    counted = {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}
    return {"type": "tokens", **counted, "input_token_details": details}
