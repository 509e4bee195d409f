"""``pocketgem transcribe`` and ``translate``: speech as text, with times where they are wanted."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import pocketgem.cli.media as m
import pocketgem.cli.options as o
from pocketgem.cli.common import harmless

if TYPE_CHECKING:
    from pocketgem.speech import Transcript

Audio = Annotated[Path, typer.Argument(metavar="AUDIO", help="A recording of any length: WAV, FLAC, MP3 or OGG.")]
Spoken = Annotated[
    str | None, typer.Option("--language", metavar="LANGUAGE", help="What is spoken: de, German, ...; else found out.")
]
Source = Annotated[
    str | None, typer.Option("--from", metavar="LANGUAGE", help="What is spoken: de, German, ...; else found out.")
]
Target = Annotated[str, typer.Option("--to", metavar="LANGUAGE", help="What to translate it to.")]


def transcribe_file(
    model: o.Model,
    audio: Audio,
    language: Spoken = None,
    format: m.Format = m.Form.TEXT,
    mmproj: m.Mmproj = None,
    context: o.Context = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write down what a recording says."""
    from pocketgem.speech import Task, transcribe

    Task.of(language)  # a wrong language is said before a model is loaded
    llm, sound, _ = m.ready(
        "audio", model, audio, quiet=quiet, as_json=as_json, offline=offline, mmproj=mmproj, context=context,
        threads=threads, memory=o.size(memory),
    )  # fmt: skip
    _write(transcribe(llm, sound, language), format, as_json=as_json)


def translate_file(
    model: o.Model,
    audio: Audio,
    source: Source = None,
    target: Target = "English",
    format: m.Format = m.Form.TEXT,
    mmproj: m.Mmproj = None,
    context: o.Context = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write down what a recording says in another language."""
    from pocketgem.speech import Task, translate

    Task.of(source, target)
    llm, sound, _ = m.ready(
        "audio", model, audio, quiet=quiet, as_json=as_json, offline=offline, mmproj=mmproj, context=context,
        threads=threads, memory=o.size(memory),
    )  # fmt: skip
    _write(translate(llm, sound, source, target), format, as_json=as_json)


def _write(found: Transcript, format: m.Form, *, as_json: bool) -> None:
    if as_json:
        lines = [asdict(line) for line in found.lines]
        told = {"text": found.text, "said": found.said, "seconds": found.seconds, "lines": lines}
        print(json.dumps(told | ({"notes": found.notes} if found.notes else {})))
    else:
        for note in found.notes:
            print(note, file=sys.stderr)
        print(harmless({m.Form.TEXT: found.text, m.Form.SRT: found.srt, m.Form.VTT: found.vtt}[format]))
