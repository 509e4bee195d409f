"""Calls of tools: both corpora however they are cut, and values there and back."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.text.calls import Body, read_calls
from pocketgem.text.events import Content, FailedCall, Marker, ToolCall
from pocketgem.text.markers import Mark
from pocketgem.text.parse import OutputParser
from pocketgem.text.toolbox import Toolbox
from tests import call_corpus as corpus
from tests import text_fixtures as fixtures

OWN, SHARED = corpus.lines(corpus.OWN), corpus.lines(corpus.SHARED)

# Lines whose expected result is another than ours, and why. Everything else must be as expected.
REASONS = {
    "think-disabled-nonempty": "a thought that nobody asked for stays a thought, beside the content",
    "tail-tool-response-content": "the turn ends at <|tool_response>; what is said after it is no part of the answer",
    "think-real-loop": "content was streamed before the loop showed; it stays, and the flaw names the loop",
    "response-whitespace-loop": "content was streamed before the limit cut it; it stays, and the flaw names the cut",
}
# The same in the names of repairs alone: the outcome is as expected.
OTHER_REPAIRS = {
    "think-real-loop": "the markers of the loop are named too",
    "tail-tool-response-content": "what was left out is named",
}


def one_by_one(ids: list[int]) -> list[list[int]]:
    return [[id] for id in ids]


def at_random(seed: object) -> corpus.Split:
    rng = random.Random(str(seed))

    def split(ids: list[int]) -> list[list[int]]:
        places = sorted(rng.randrange(len(ids) + 1) for _ in range(rng.randrange(8)))
        return [ids[a:b] for a, b in zip([0, *places], [*places, len(ids)], strict=True)]

    return split


def check(line: corpus.Line) -> None:
    splits = [lambda ids: [ids], one_by_one, *(at_random((line["id"], turn)) for turn in range(4))]
    results = []
    for split in splits:
        parts, flaw = corpus.run(line, split)
        assert corpus.said(parts) == line["raw"], "what was said is lost or made up"
        results.append(corpus.outcome(parts, flaw))
    assert all(result == results[0] for result in results), "the split changes the result"
    differ = set(corpus.differences(line, results[0]))
    if line["id"] in OTHER_REPAIRS:
        differ.discard("repairs")
    assert bool(differ) == (line["id"] in REASONS), (differ, results[0])


@pytest.mark.parametrize("line", OWN, ids=lambda line: line["id"])
def test_own_corpus(line: corpus.Line) -> None:
    check(line)


def test_the_own_corpus_has_every_kind_of_failure() -> None:
    assert len(OWN) >= 100
    assert len({line["id"] for line in OWN}) == len(OWN)
    kinds = {line["expect"].get("error") for line in OWN}
    assert kinds == {
        None, "tools_not_requested", "malformed_call", "malformed_arguments", "unterminated_call",
        "unterminated_thought", "degenerate_repetition", "truncated_json", "unknown_tool", "schema_mismatch",
    }  # fmt: skip


@pytest.mark.skipif(not SHARED, reason=f"the captured outputs do not lie at {corpus.SHARED.name} beside the repository")
def test_captured_outputs() -> None:
    failed = {}
    for line in SHARED:
        try:
            check(line)
        except AssertionError as error:
            failed[line["id"]] = str(error)[:300]
    assert not failed
    assert REASONS.keys() <= {line["id"] for line in SHARED}


@pytest.mark.skipif(not SHARED, reason=f"the captured outputs do not lie at {corpus.SHARED.name} beside the repository")
def test_captured_outputs_in_the_chunks_they_came_in() -> None:
    chunked = [line for line in SHARED if "chunks" in line]
    for line in chunked:
        # A chunk of text may end inside a marker; the token then belongs to the chunk that completes it.
        tokenizer, ids = corpus.tokenizer_of(line), corpus.ids_of(line)
        ends = [len("".join(line["chunks"][: count + 1])) for count in range(len(line["chunks"]))]
        pieces, done = [], 0
        for end in ends:
            count = next((n for n in range(done, len(ids) + 1) if len(tokenizer.decode(ids[:n])) > end), len(ids) + 1)
            pieces.append(ids[done : count - 1])
            done = count - 1
        assert [id for piece in pieces for id in piece] == ids
        whole, parts = corpus.run(line), corpus.run(line, lambda ids, pieces=pieces: pieces)  # type: ignore[misc]
        assert corpus.outcome(*parts) == corpus.outcome(*whole)
    assert len(chunked) > 10


# Values there and back ------------------------------------------------------------------------------------------------

QUOTE = Mark.DELIMITER.value
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.from_regex(r"\A[A-Za-z_]\w{0,8}\Z") | TEXTS.filter(lambda text: not text.isidentifier())
VALUES = st.recursive(
    TEXTS
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
    | st.sampled_from(["true", "1", "null", "}", ",a:", "call:w{", "'", '"']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def written(value: object) -> str:
    """A value in the model's syntax, with the delimiter's stand-in."""
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, dict):
        return "{" + ",".join(f"{_key(key)}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else QUOTE + key + QUOTE


@given(st.dictionaries(KEYS, VALUES, max_size=5))
@settings(deadline=None)
def test_arguments_come_back_as_they_were_written(arguments: dict[str, Any]) -> None:
    (found,) = read_calls(Body(f"call:w{written(arguments)}"), Toolbox(None))
    assert isinstance(found.what, ToolCall)
    assert found.what.arguments == arguments
    assert repr(found.what.arguments) == repr(arguments)  # 1, 1.0 and True are three things
    assert found.what.repairs == ()


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.data())
@settings(deadline=None, max_examples=60)
def test_a_call_through_tokens_is_the_same_whatever_the_split(arguments: dict[str, Any], data: st.DataObject) -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    ids = [tokenizer.special_tokens["<|tool_call>"]]
    for index, part in enumerate(f"call:w{written(arguments)}".split(QUOTE)):
        ids += [tokenizer.special_tokens['<|"|>']][: index > 0]
        ids += tokenizer.encode(part, add_bos=False)
    ids.append(tokenizer.special_tokens["<tool_call|>"])
    parser = OutputParser(tokenizer)
    cut = data.draw(st.integers(0, len(ids)))
    events = [*parser.push(ids[:cut]), *parser.push(ids[cut:]), *parser.finish()]
    assert events == [ToolCall("w", arguments, tokenizer.decode(ids))]


NOISE = st.lists(
    st.sampled_from([*"a:={}[](),'\"`\\ \n1", "true", "call:", QUOTE, Mark.CALL_END.value, Mark.THOUGHT.value]),
    max_size=40,
).map("".join)


@given(NOISE, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=400)
def test_any_body_is_read_or_refused_whole(text: str, closed: bool, cut: bool) -> None:
    slices = [*read_calls(Body(text, closed, cut and not closed), Toolbox(None))]
    assert [part.start for part in slices] == [0, *(part.end for part in slices[:-1])]
    assert slices[-1].end == len(text)
    assert not any(isinstance(part.what, FailedCall) for part in slices[:-1])


def test_markers_are_told_apart_from_their_names() -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    text = '<|tool_call>call:w{a:<|"|>x<|"|>}<tool_call|>'
    parser = OutputParser(tokenizer)
    assert [*parser.push(tokenizer.encode(text, add_bos=False)), *parser.finish()] == [Content(text)]
    parser = OutputParser(tokenizer)
    (call,) = [*parser.read(tokenizer.encode(text, add_bos=False, parse_special=True))]
    assert isinstance(call, ToolCall)
    assert not any(isinstance(part, Marker) for part in parser.read_end())
