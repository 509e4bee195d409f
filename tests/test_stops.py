"""Stop strings: cut at the first, never shown in part, the same for every way the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.errors import PromptError
from pocketgem.text.stops import StopStrings

TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def fed(stops: list[str], pieces: list[str]) -> tuple[str, bool, list[str]]:
    """All the text shown, whether it stopped, and what had been shown after each piece."""
    parser, shown, stopped, steps = StopStrings(stops), "", False, []
    for piece in pieces:
        ready, stopped = parser.push(piece)
        shown += ready
        steps.append(shown)
    return shown + parser.finish(), stopped, steps


def first_complete(stops: list[str], text: str) -> str | None:
    """The text before the stop that is complete first, by looking at every beginning of the text: the oracle."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return None


def cuts(data: st.DataObject, text: str) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(stops=STOPS, text=TEXT, data=st.data())
@settings(deadline=None)
def test_any_cutting_of_the_text_gives_the_same(stops: list[str], text: str, data: st.DataObject) -> None:
    expected = first_complete(stops, text)
    shown, stopped, _ = fed(stops, cuts(data, text))
    assert (shown, stopped) == (text if expected is None else expected, expected is not None)


@given(stops=STOPS, text=TEXT)
@settings(deadline=None)
def test_nothing_is_shown_that_is_taken_back(stops: list[str], text: str) -> None:
    shown, _, steps = fed(stops, list(text))
    assert all(shown.startswith(step) for step in steps)


@given(stops=STOPS, text=TEXT)
@settings(deadline=None)
def test_only_what_may_begin_a_stop_is_held_back(stops: list[str], text: str) -> None:
    _, _, steps = fed(stops, list(text))
    for at, step in enumerate(steps, start=1):
        if first_complete(stops, text[:at]) is None:
            held = text[len(step) : at]
            assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["</s>"], ["a<", "/", "s>b"], "a"),
        (["</s>"], ["a<", "/", "b>"], "a</b>"),
        (["abcd", "bc"], ["abcd"], "a"),  # "bc" is complete before "abcd" is
        (["abc", "bc"], ["xabc"], "x"),  # complete together: the longer
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        (["aab"], ["aaab"], "a"),
        ([], ["anything"], "anything"),
    ],
)
def test_examples(stops: list[str], pieces: list[str], shown: str) -> None:
    assert fed(stops, pieces)[0] == shown


def test_after_a_stop_nothing_is_shown() -> None:
    parser = StopStrings(["x"])
    assert parser.push("axb") == ("a", True)
    assert parser.push("more") == ("", True)
    assert parser.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc", [1], ["x"] * 65, ["x" * 1025]])
def test_bad_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(PromptError, match=r"^stop "):
        StopStrings(stops)
