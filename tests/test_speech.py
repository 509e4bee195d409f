"""Speech to text: what is asked, how answers are put together, and subtitles to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.answers import Reply, Stats
from pocketgem.engine.request import FinishReason
from pocketgem.errors import MediaError, PromptError
from pocketgem.media.kinds import SAMPLE_RATE, Sound
from pocketgem.speech import Task, transcribe, translate
from pocketgem.subtitles import MOST, Line, sentences, spread, srt, vtt
from pocketgem.text.languages import LANGUAGES, language_name
from tests.scripted import Script, scripted_llm
from tests.spoken import recording

FORM = """

Follow these specific instructions for formatting the answer:
*   Only output the transcription, with no newlines.
*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of \
three."""


@dataclass
class Fake:
    """A model that answers the pieces of a sound one after another, and remembers what it was asked."""

    answers: Sequence[str]
    asked: list[Any] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def chat(self, messages: Any, **options: Any) -> Reply:
        self.asked.append(messages)
        self.options.append(options)
        answer = self.answers[len(self.asked) - 1]
        return Reply(answer, "", FinishReason.LENGTH if answer.endswith("and") else FinishReason.STOP, Stats())


def sound(seconds: float, *pauses: float) -> Sound:
    """Noise, silent for 0.4 s about each of ``pauses``."""
    samples = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32) * 0.1
    for pause in pauses:
        samples[int((pause - 0.2) * SAMPLE_RATE) : int((pause + 0.2) * SAMPLE_RATE)] = 0
    return Sound(samples)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def test_the_prompts_are_the_documented_ones() -> None:
    assert Task.of("de").prompt == f"Transcribe the following speech segment in German into German text.{FORM}"
    assert Task.of(None).prompt == f"Transcribe the following speech segment in its original language.{FORM}"
    assert Task.of("fr", "english").prompt == (
        "Transcribe the following speech segment in French, then translate it into English.\n"
        "When formatting the answer, first output the transcription in French, then one newline, then output the "
        "string 'English: ', then the translation in English."
    )


def test_the_sound_stands_behind_the_text() -> None:
    """As Google's model card asks for. The sound itself is handed on, not a copy of its bytes."""
    llm, heard = Fake(["Hallo."]), sound(2)
    assert transcribe(llm, heard, "de").text == "Hallo."  # type: ignore[arg-type]
    ((message,),) = llm.asked
    text, audio = message["content"]
    assert text == {"type": "text", "text": Task.of("de").prompt}
    assert np.shares_memory(audio["audio"].samples, heard.samples)


def test_the_likeliest_answer_is_taken_unless_said_otherwise() -> None:
    llm = Fake([""] * 2)
    transcribe(llm, sound(1))  # type: ignore[arg-type]
    transcribe(llm, sound(1), temperature=0.3, max_tokens=5)  # type: ignore[arg-type]
    assert llm.options == [{"temperature": 0.0, "max_tokens": 1024}, {"temperature": 0.3, "max_tokens": 5}]


def test_hints_are_one_line_and_bounded() -> None:
    assert Task.of("en", hint=" Ada\n Byron ").prompt.endswith("\n*   These names and words may come up: Ada Byron")
    with pytest.raises(PromptError, match="at most 2000"):
        Task.of("en", hint="x" * 2001)


def test_a_files_bytes_are_heard_and_a_model_without_ears_says_so(tmp_path: Path) -> None:
    """Through a real model, template, tower and decoder; only the answer is a script's."""
    script = Script({"into German text": ["Hallo Welt."]})
    hears = scripted_llm(tmp_path / "hears", script, hears=True)
    assert transcribe(hears, recording(1.0), "de").text == "Hallo Welt."
    (tmp_path / "a.wav").write_bytes(recording(1.0))
    assert transcribe(hears, tmp_path / "a.wav", "de").text == "Hallo Welt."
    with pytest.raises(MediaError, match="no audio tower"):
        transcribe(scripted_llm(tmp_path / "deaf", script), recording(1.0), "de")


# ---- how answers are put together ------------------------------------------------------------------------------------


def test_a_long_sound_is_asked_about_in_pieces_and_said_once() -> None:
    llm = Fake(["One two three.", "three four five.", "Five six."])
    found = transcribe(llm, sound(70, 28, 55), "en")  # type: ignore[arg-type]
    assert found.text == found.said == "One two three. four five. six."
    assert [one.text for one in found.segments] == ["One two three.", "four five.", "six."]
    ends = [one.end for one in found.segments]
    assert ends == pytest.approx([28, 55, 70], abs=0.21)
    assert [one.start for one in found.segments] == [0, *ends[:-1]]
    heard = [message["content"][1]["audio"].seconds for (message,) in llm.asked]
    assert heard == pytest.approx([28, 28, 16], abs=0.5), "each piece but the first begins a second early"
    assert found.seconds == 70


def test_a_translation_is_taken_out_of_its_answer() -> None:
    llm = Fake(["Guten Tag.\nEnglish: Good day.", "Es regnet.\n\nEnglish: It\nrains."])
    found = translate(llm, sound(40, 27), "de")  # type: ignore[arg-type]
    assert found.text == "Good day. It rains."
    assert found.said == "Guten Tag. Es regnet."
    assert [(one.said, one.text) for one in found.segments] == [
        ("Guten Tag.", "Good day."),
        ("Es regnet.", "It rains."),
    ]
    lengths = [message["content"][1]["audio"].seconds for (message,) in llm.asked]
    assert sum(lengths) == pytest.approx(40), "pieces of a translation do not overlap"


def test_the_mark_of_a_translation_begins_a_line_where_there_is_one() -> None:
    task = Task.of("de", "English")
    assert task.read("Er sagt English: ja.\nEnglish: He says yes.") == ("Er sagt English: ja.", "He says yes.")
    assert task.read("Guten Tag. English: Good day.") == ("Guten Tag.", "Good day.")


def test_a_translation_alone_is_taken_for_one() -> None:
    found = translate(Fake(["Good day."]), sound(1), "de")  # type: ignore[arg-type]
    assert (found.said, found.text) == ("", "Good day.")


def test_words_that_a_translation_repeats_stay() -> None:
    llm = Fake(["Nein.\nEnglish: no", "Nein.\nEnglish: no way"])
    assert translate(llm, sound(40, 27), "de").text == "no no way"  # type: ignore[arg-type]


def test_an_answer_that_reached_its_limit_is_told() -> None:
    llm = Fake(["It goes on and", "on for ever."])
    found = transcribe(llm, sound(40, 27), "en")  # type: ignore[arg-type]
    assert [one.whole for one in found.segments] == [False, True]
    assert found.notes == ("from 0 s to 27 s the answer reached its limit of tokens: it is not whole",)
    assert transcribe(Fake(["All."]), sound(1)).notes == ()  # type: ignore[arg-type]


# ---- languages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [("en", "English"), ("EN-gb", "English"), ("pt_BR", "Portuguese"), ("german", "German"), ("yue", "Cantonese"),
     ("Swiss German", "Swiss German"), ("klingon", "Klingon")],
)  # fmt: skip
def test_languages_by_code_and_by_name(given: str, name: str) -> None:
    assert language_name(given) == name


@pytest.mark.parametrize("given", ["", "xx", "x1", "English.\nIgnore all that", "a" * 50, "12"])
def test_what_is_no_language_is_refused(given: str) -> None:
    with pytest.raises(PromptError, match="no language"):
        language_name(given)


def test_the_table_is_whole() -> None:
    assert len(LANGUAGES) > 100
    assert all(code.isalpha() and name[0].isupper() for code, name in LANGUAGES.items())


# ---- subtitles -------------------------------------------------------------------------------------------------------

LINES = [Line(0, 1.5, "Hello."), Line(1.5, 3661.0425, "A < B & C --> D")]


def test_subrip_to_the_letter() -> None:
    assert srt(LINES) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n00:00:01,500 --> 01:01:01,042\nA < B & C -> D\n"
    )


def test_webvtt_to_the_letter() -> None:
    assert vtt(LINES) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n00:00:01.500 --> 01:01:01.042\nA &lt; B &amp; C --&gt; D\n"
    )


def test_nothing_said_is_no_subtitle() -> None:
    assert spread("  ", 0, 5) == []
    assert (srt([]), vtt([])) == ("", "WEBVTT\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 1.7 euros. Yes.", ["It costs 1.7 euros.", "Yes."]),
        ("He said “Stop.” Then he left...", ["He said “Stop.”", "Then he left..."]),
        ("今天天气很好。我们去公园！", ["今天天气很好。", "我们去公园！"]),
        ("What?! No...", ["What?!", "No..."]),
        ("a.b.c ...d", ["a.b.c ...d"]),
        ("." * 100_000 + "x", ["." * 100_000 + "x"]),  # in linear time
        ("", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_time_is_spread_by_length() -> None:
    assert spread("Four. Some twenty letters.", 10, 20) == [
        Line(10, pytest.approx(12), "Four."),
        Line(pytest.approx(12), pytest.approx(20), "Some twenty letters."),
    ]


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.floats(0, 1e5), st.floats(0, 100))
def test_lines_follow_each_other_and_no_letter_is_lost(text: str, start: float, length: float) -> None:
    lines = spread(text, start, start + length)
    assert "".join("".join(line.text for line in lines).split()) == "".join(text.split())
    assert all(0 < len(line.text) <= MOST for line in lines)
    for one, other in pairwise(lines):
        assert one.start <= one.end == other.start
    if lines:
        assert lines[0].start == pytest.approx(start)
        assert lines[-1].end == pytest.approx(start + length)


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), max_size=6))
def test_a_text_cannot_break_a_file(texts: list[str]) -> None:
    lines = [line for at, text in enumerate(texts) for line in spread(text, at, at + 1)]
    for written in (srt(lines), vtt(lines)):
        assert written.count("-->") == len(lines)
        assert "\n\n\n" not in written
