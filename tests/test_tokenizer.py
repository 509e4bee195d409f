"""Text to ids and back: against SentencePiece's rule in plain Python, against transformers, and against harm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.errors import TokenizerError
from pocketgem.text.chat import Chat
from pocketgem.text.template import ChatTemplate
from pocketgem.text.tokenizer import Tokenizer
from tests import text_fixtures as fixtures

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
TOKENIZERS = {"gemma3": fixtures.spm_tokenizer, "gemma4": fixtures.gemma4_tokenizer}
VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Text that meets the small vocabularies' own tokens often.
OTHER_PIECES = [*"ab -01\n\t<>▁é日", "  ", "\n\n\n", "<table>", "</h1>", "<0x41>", "[multimodal]"]
FAMILIAR = st.lists(st.sampled_from([*fixtures.words(), *OTHER_PIECES])).map("".join)


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def every_special(tokenizer: Tokenizer) -> list[str]:
    return sorted(tokenizer.special_tokens)


# Round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=VALID_TEXT | FAMILIAR)
@settings(deadline=None)
def test_every_text_comes_back_exactly(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids[1:]) == text
    assert b"".join(map(tokenizer.piece, ids[1:])) == text.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=VALID_TEXT | FAMILIAR)
@settings(deadline=None)
def test_every_text_comes_back_in_prompts_with_control_tokens(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    assert tokenizer.decode(tokenizer.encode(text, add_bos=False, parse_special=True)) == text


def test_the_whole_corpus_comes_back(tokenizer: Tokenizer) -> None:
    for line in fixtures.corpus():
        assert tokenizer.decode(tokenizer.encode(line, add_bos=False)) == line


def test_a_literal_low_line_is_no_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a▁b a b", add_bos=False)
    assert [tokenizer.piece(id) for id in ids] == [b"a", b"\xe2", b"\x96", b"\x81", b"b", b" a", b" b"]


@given(raw=st.binary())
@settings(deadline=None)
def test_bytes_that_are_not_utf8_keep_their_bytes(raw: bytes) -> None:
    tokenizer = fixtures.spm_tokenizer()
    ids = tokenizer.encode(raw.decode("utf-8", "surrogateescape"), add_bos=False)
    assert b"".join(map(tokenizer.piece, ids)) == raw
    assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")


@given(text=st.text())  # lone surrogates included
@settings(deadline=None)
def test_any_string_can_be_encoded(text: str) -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    assert all(0 <= id < tokenizer.vocab_size for id in tokenizer.encode(text))


def test_a_surrogate_that_stands_for_nothing_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83db", add_bos=False)) == "a\ufffdb"


# Control tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None)
def test_plain_text_never_gives_a_control_token(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces = st.sampled_from([*every_special(tokenizer), "<", "|", "turn", " ", "\n", "user"])
    text = "".join(data.draw(st.lists(pieces)))
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None)
def test_parse_special_gives_each_control_token_its_id(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    names = data.draw(st.lists(st.sampled_from(every_special(tokenizer))))
    text = "user".join(names)
    ids = tokenizer.encode(text, add_bos=False, parse_special=True)
    assert [id for id in ids if id in tokenizer.special_ids] == [tokenizer.special_tokens[name] for name in names]
    assert tokenizer.decode(ids, skip_special=True) == "user" * max(0, len(names) - 1)


def test_what_files_call_user_defined_is_control_if_it_looks_so() -> None:
    gemma3, gemma4 = fixtures.spm_tokenizer(), fixtures.gemma4_tokenizer()
    assert {"<start_of_image>", "[multimodal]", "<start_of_turn>"} <= gemma3.special_tokens.keys()
    assert {"<|channel>", "<tool_call|>", '<|"|>', "<|turn>"} <= gemma4.special_tokens.keys()
    assert not {"\n", "  ", "▁▁", "<table>"} & (gemma3.special_tokens.keys() | gemma4.special_tokens.keys())


def test_control_tokens_inside_and_before_each_other() -> None:
    metadata = fixtures.gemma4_metadata()
    extra = ["<|a|>", "<|a|>b|>", "<|x<bos>x|>", "<|low▁line|>"]
    metadata[TOKENS], metadata[TYPES] = metadata[TOKENS] + extra, metadata[TYPES] + [fixtures.CONTROL] * len(extra)
    tokenizer = Tokenizer.from_gguf(metadata)
    ids = tokenizer.encode("<|a|>b|><|a|>b<|x<bos>x|><|low▁line|>", add_bos=False, parse_special=True)
    assert [tokenizer.piece(id).decode() for id in ids] == [extra[1], extra[0], "b", extra[2], extra[3]]


@pytest.mark.parametrize("parse_special", [False, True])
def test_user_defined_tokens_are_whole_in_both_modes(parse_special: bool) -> None:
    tokenizer = fixtures.spm_tokenizer()
    ids = tokenizer.encode("\n\n\nthe   the<table>\t\t", add_bos=False, parse_special=parse_special)
    assert [tokenizer.piece(id) for id in ids] == [b"\n\n\n", b"the", b"   ", b"the", b"<table>", b"\t\t"]


def test_the_begin_token_comes_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<bos>the", parse_special=True) == tokenizer.encode("the")
    assert tokenizer.encode("<bos>the").count(tokenizer.bos_id) == 1
    assert tokenizer.encode("", add_bos=False) == []
    assert Tokenizer.from_gguf(fixtures.spm_metadata() | {"tokenizer.ggml.add_bos_token": False}).encode("") == []


def test_names_and_numbers(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_id("<bos>") == tokenizer.bos_id == 2
    assert tokenizer.token_id("<eos>") == tokenizer.eos_id == 1
    assert tokenizer.token_id("hello") == tokenizer.encode("hello", add_bos=False)[0]
    assert tokenizer.token_id("no such token") is None
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"id {id} lies outside the vocabulary"):
            tokenizer.decode([id])


# Streaming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None)
def test_a_stream_joined_is_the_whole(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    high_bytes = [tokenizer.token_id(f"<0x{byte:02X}>") or 0 for byte in range(128, 256)]
    ids = st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(high_bytes)
    pieces = data.draw(st.lists(st.lists(ids)))
    stream = tokenizer.stream()
    texts = [stream.push(piece) for piece in pieces]
    assert "".join(texts) + stream.finish() == tokenizer.decode([id for piece in pieces for id in piece])


@given(text=VALID_TEXT.filter(bool))
@settings(deadline=None)
def test_a_stream_never_gives_half_a_character(text: str) -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    stream, shown = tokenizer.stream(), ""
    for id in tokenizer.encode(text, add_bos=False):
        shown += stream.push([id])
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_a_stream_can_leave_control_tokens_out(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream(skip_special=True)
    ids = tokenizer.encode("<bos>hello<eos>", parse_special=True)
    assert stream.push(ids) + stream.finish() == "hello" == tokenizer.decode(ids, skip_special=True)


def test_a_finished_stream_starts_anew() -> None:
    tokenizer = fixtures.spm_tokenizer()
    stream, half = tokenizer.stream(), tokenizer.encode("😀", add_bos=False)[:2]
    texts = [stream.push(half), stream.finish(), stream.push(tokenizer.encode("a", add_bos=False))]
    assert texts == ["", "\ufffd", "a"]


# SentencePiece's rule ------------------------------------------------------------------------------------------------


def sentencepiece(metadata: dict[str, Any], text: str) -> list[int]:
    """Byte-pair encoding by scores as SentencePiece defines it, in the plainest way: the oracle."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    ids = {token.replace(" ", "▁"): id for id, token in enumerate(tokens)}
    whole = {token for token, id in ids.items() if kinds[id] == fixtures.USER_DEFINED}
    whole -= {"[multimodal]", "<start_of_image>"}
    score = {token: metadata["tokenizer.ggml.scores"][id] for token, id in ids.items() if kinds[id] == fixtures.NORMAL}
    text, symbols = text.replace(" ", "▁"), []
    while text:  # user-defined tokens, longest first, else one character
        symbols.append(max((token for token in whole if text.startswith(token)), key=len, default=text[0]))
        text = text[len(symbols[-1]) :]
    while True:  # join the neighbours whose joined text scores best, the leftmost first
        pairs = [(a + b, at) for at, (a, b) in enumerate(pairwise(symbols)) if not {a, b} & whole and a + b in score]
        if not pairs:
            break
        joined, at = max(pairs, key=lambda pair: (score[pair[0]], -pair[1]))
        symbols[at : at + 2] = [joined]
    known = {*score, *whole}
    return [id for s in symbols for id in ([ids[s]] if s in known else [ids[f"<0x{b:02X}>"] for b in s.encode()])]


@given(text=FAMILIAR.map(lambda text: text.replace("▁", "").replace("[multimodal]", "")))
@settings(deadline=None)
def test_scores_merge_as_sentencepiece_merges(text: str) -> None:
    assert fixtures.spm_tokenizer().encode(text, add_bos=False) == sentencepiece(fixtures.spm_metadata(), text)


@given(st.lists(st.text("ab", min_size=2, max_size=7), unique=True, max_size=12), st.text("ab ", max_size=40))
@settings(deadline=None, max_examples=60)
def test_scores_merge_as_sentencepiece_merges_in_any_vocabulary(normal: list[str], text: str) -> None:
    metadata = fixtures.spm_metadata(normal)
    assert Tokenizer.from_gguf(metadata).encode(text, add_bos=False) == sentencepiece(metadata, text)


# Forms of the same vocabulary ----------------------------------------------------------------------------------------


def written(folder: Path, document: object) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_gguf_and_tokenizer_json_of_gemma4_give_the_same_ids(tmp_path: Path) -> None:
    metadata = fixtures.gemma4_metadata()
    path = written(tmp_path, fixtures.tokenizer_json(metadata))
    gguf, *files = Tokenizer.from_gguf(metadata), Tokenizer.from_file(path), Tokenizer.from_file(tmp_path)
    lines = [*fixtures.corpus(), "<|turn>user\nthe<turn|>", '<|channel>thought\n<|"|>']
    for file in files:
        assert (file.vocab_size, file.bos_id, file.eos_id) == (gguf.vocab_size, gguf.bos_id, gguf.eos_id)
        assert file.special_tokens == gguf.special_tokens
        for line in lines:
            assert file.encode(line) == gguf.encode(line)
            assert file.encode(line, parse_special=True) == gguf.encode(line, parse_special=True)


def test_transformers_reads_the_same_tokenizer_json_alike(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written(tmp_path, fixtures.tokenizer_json(fixtures.gemma4_metadata()))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path)
    lines = [line for line in fixtures.corpus() if "▁" not in line]
    for line in [*lines, "<|turn>user\nthe<turn|>", "<|channel>thought\n"]:
        assert ours.encode(line, add_bos=False, parse_special=True) == theirs.encode(line, add_special_tokens=False)


def test_a_literal_low_line_is_the_one_difference_from_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written(tmp_path, fixtures.tokenizer_json(fixtures.gemma4_metadata()))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode("the▁the") == theirs.encode("the the")  # the text is lost there


def test_special_names_come_from_the_sibling_config(tmp_path: Path) -> None:
    written(tmp_path, fixtures.tokenizer_json(fixtures.gemma4_metadata()))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|turn>"}, "eos_token": "<turn|>"}')
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.bos_id == tokenizer.token_id("<|turn>")
    assert tokenizer.eos_id == tokenizer.token_id("<turn|>")


# Hostile vocabularies ------------------------------------------------------------------------------------------------

SCORES, MERGES, MODEL = "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.model"


def replaced(key: str, at: int, value: object) -> dict[str, object]:
    values = fixtures.spm_metadata()[key]
    return {key: [*values[:at], value, *values[at + 1 :]]}


BYTE_AT = fixtures.spm_metadata()[TOKENS].index("<0x00>")

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "G8 byte with a sign": (replaced(TOKENS, BYTE_AT, "<0x-1>"), "byte tokens must be"),
    "G8 byte with spaces": (replaced(TOKENS, BYTE_AT, "<0x 0>"), "byte tokens must be"),
    "G8 byte with three digits": (replaced(TOKENS, BYTE_AT, "<0x000>"), "byte tokens must be"),
    "G8 byte in small letters": (replaced(TOKENS, BYTE_AT + 0xAB, "<0xab>"), "byte tokens must be"),
    "G8 byte twice": (replaced(TOKENS, BYTE_AT, "<0x01>"), "twice"),
    "G8 byte typed as text": (replaced(TYPES, BYTE_AT, 1), "byte tokens must be"),
    "G8 text typed as byte": (replaced(TYPES, 300, 6), "byte tokens must be"),
    "G8 empty token": (replaced(TOKENS, 300, ""), "empty"),
    "G8 a token of a megabyte": (replaced(TOKENS, 300, "x" * (1 << 20)), "128 characters"),
    "G8 a control token of a megabyte": (replaced(TOKENS, 4, "<" * (1 << 20)), "128 characters"),
    "G8 not UTF-8": (replaced(TOKENS, 300, "\udcff"), "not UTF-8"),
    "G8 a token twice": (replaced(TOKENS, 300, "<bos>"), "twice"),
    "G8 a run of spaces twice": (replaced(TOKENS, 300, "▁▁"), "twice"),
    "G8 a control token of one character": (replaced(TOKENS, 4, "ж"), "single character"),
    "G10 scores as bytes": ({SCORES: b"\0" * 571}, "list of numbers"),
    "G10 scores too few": ({SCORES: [0.0]}, "one finite score"),
    "G10 a score that is no number": (replaced(SCORES, 300, float("nan")), "one finite score"),
    "G10 an infinite score": (replaced(SCORES, 300, float("inf")), "one finite score"),
    "G10 a score as text": (replaced(SCORES, 300, "1"), "list of numbers"),
    "G10 types as text": (replaced(TYPES, 300, "normal"), "list of numbers"),
    "G10 types as truth": (replaced(TYPES, 300, True), "list of numbers"),
    "G10 an unknown type": (replaced(TYPES, 300, 7), "type from 1 to 6"),
    "G10 types too few": ({TYPES: [1]}, "type from 1 to 6"),
    "G10 tokens as numbers": (replaced(TOKENS, 300, 300), "list of 1 to"),
    "G10 tokens in tokens": (replaced(TOKENS, 300, ["x"]), "list of 1 to"),
    "G10 no tokens": ({TOKENS: []}, "list of 1 to"),
    "G10 tokens missing": ({TOKENS: None}, "list of 1 to"),
    "G10 tokens as one text": ({TOKENS: "abc"}, "list of 1 to"),
    "G10 begin as text": ({"tokenizer.ggml.bos_token_id": "2"}, "bos_token_id is '2'"),
    "G10 begin as truth": ({"tokenizer.ggml.bos_token_id": True}, "bos_token_id is True"),
    "G10 begin beyond the end": ({"tokenizer.ggml.bos_token_id": 1 << 31}, "none of the 573 tokens"),
    "G10 end before the start": ({"tokenizer.ggml.eos_token_id": -1}, "none of the 573 tokens"),
    "G10 begin missing": ({"tokenizer.ggml.bos_token_id": None}, "no begin-of-sequence"),
    "G10 begin is a byte": ({"tokenizer.ggml.bos_token_id": BYTE_AT}, "lacks some of the 256"),
    "G10 flag as number": ({"tokenizer.ggml.add_bos_token": 1}, "true or false"),
    "G10 space prefix": ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix"),
    "another model": ({MODEL: "gpt2"}, "only Gemma's"),
    "no model": ({MODEL: None}, "only Gemma's"),
    "gemma4 without merges": ({MODEL: "gemma4"}, "merges must be a list"),
    "a merge of one token": ({MODEL: "gemma4", MERGES: ["ab"]}, "two tokens"),
    "a merge of three tokens": ({MODEL: "gemma4", MERGES: ["a b c"]}, "two tokens"),
    "a merge of unknown tokens": ({MODEL: "gemma4", MERGES: ["q zz"]}, "out of vocabulary"),
    "too many user-defined tokens": (
        {
            TOKENS: [*fixtures.spm_metadata()[TOKENS], *(f"u{n}" for n in range(9000))],
            TYPES: [*fixtures.spm_metadata()[TYPES], *[4] * 9000],
            SCORES: [0.0] * 9573,
        },
        "user-defined tokens, more than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_vocabulary_is_named(name: str) -> None:
    change, message = HOSTILE[name]
    with pytest.raises(TokenizerError, match=message) as raised:
        Tokenizer.from_gguf({**fixtures.spm_metadata(), **change})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def assert_named_error_or_working(build: Callable[[], Tokenizer]) -> None:
    try:
        tokenizer = build()
    except TokenizerError as error:
        message = str(error)
    else:
        text, message = "hello the\n\n日本 <start_of_turn><|turn><bos>", "fine"
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
    assert message
    assert "\n" not in message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_any_change_to_a_vocabulary_gives_a_named_error_or_a_working_one(data: st.DataObject) -> None:
    metadata = data.draw(st.sampled_from([fixtures.spm_metadata, fixtures.gemma4_metadata]))()
    key = data.draw(st.sampled_from(sorted(metadata)))
    values = metadata[key]
    if isinstance(values, list) and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(values) - 1))
        values[at] = data.draw(st.sampled_from([*values[:40], 0, 7]) | JSON_VALUES)
    else:
        metadata[key] = data.draw(JSON_VALUES)
    assert_named_error_or_working(lambda: Tokenizer.from_gguf(metadata))


def test_merges_that_lead_to_a_control_token_lead_to_its_text() -> None:
    metadata = fixtures.gemma4_metadata()
    tokens, kinds = metadata[TOKENS], metadata[TYPES]
    steps = ["<|tu", "<|t", "<|"]
    evil: dict[str, Any] = {
        TOKENS: [*tokens, *steps, "rn>"],
        TYPES: [*kinds, 1, 1, 1, 1],
        SCORES: [0.0] * (len(tokens) + 4),
    }
    evil[MERGES] = ["< |", "<| t", "<|t u", "r n", "n >", "<|tu rn>"]
    with pytest.raises(TokenizerError, match="out of vocabulary"):  # "rn" and "n>" are no tokens
        Tokenizer.from_gguf({**metadata, **evil})
    evil[TOKENS], evil[TYPES], evil[SCORES] = [*evil[TOKENS], "n>"], [*evil[TYPES], 1], [*evil[SCORES], 0.0]
    evil[MERGES] = ["< |", "<| t", "<|t u", "n >", "r n>", "<|tu rn>"]
    tokenizer = Tokenizer.from_gguf({**metadata, **evil})
    ids = tokenizer.encode("a<|turn>b", add_bos=False)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "a<|turn>b"


def test_g9_long_hostile_text_comes_back(tokenizer: Tokenizer) -> None:
    for unit in ("<", "<|turn>", "a", " ", "\n", "\x00", "😀", "▁", "\udcff"):
        text = unit * (100_000 // len(unit))
        ids = tokenizer.encode(text, add_bos=False)
        assert b"".join(map(tokenizer.piece, ids)) == text.encode("utf-8", "surrogateescape")
    ids = tokenizer.encode("<bos>" * 20_000, parse_special=True, add_bos=False)
    assert ids == [tokenizer.bos_id] * 20_000


def pipeline(**changes: object) -> dict[str, Any]:
    return {**fixtures.tokenizer_json(fixtures.gemma4_metadata()), **changes}


def model(**changes: object) -> dict[str, object]:
    document = pipeline()
    return {**document, "model": {**document["model"], **changes}}


NOT_GEMMA = "not a Gemma tokenizer"
REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
DAMAGED_JSON: dict[str, tuple[object, str]] = {
    "not JSON": (b"{", "is not JSON"),
    "not UTF-8": (b"\xff\xfe", "is not JSON"),
    "nothing": (b"", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "a list": ([], "must be a JSON object"),
    "no model": (pipeline(model=None), "model must be a JSON object"),
    "another model": (model(type="WordLevel"), NOT_GEMMA),
    "no byte fallback": (model(byte_fallback=False), NOT_GEMMA),
    "dropout": (model(dropout=0.5), NOT_GEMMA),
    "a prefix, which aborts the library": (model(continuing_subword_prefix="a"), NOT_GEMMA),
    "a suffix": (model(end_of_word_suffix="a"), NOT_GEMMA),
    "merges ignored": (model(ignore_merges=True), NOT_GEMMA),
    "another normalizer": (pipeline(normalizer={"type": "Lowercase"}), NOT_GEMMA),
    "no normalizer": (pipeline(normalizer=None), NOT_GEMMA),
    "another pre-tokenizer": (pipeline(pre_tokenizer={"type": "Whitespace"}), NOT_GEMMA),
    "a regular expression": (pipeline(pre_tokenizer=REGEX), NOT_GEMMA),
    "no tokens": (model(vocab={}), "vocab must be a JSON object"),
    "a list of tokens": (model(vocab=["a"]), "vocab must be a JSON object"),
    "a token without a number": (model(vocab={"a": None}), "every token a number"),
    "a huge id": (model(vocab={"a": 1 << 31}, merges=[]), "numbers its tokens"),
    "an id below zero": (model(vocab={"a": -1}, merges=[]), "numbers its tokens"),
    "an id twice": (model(vocab={"a": 400, "b": 400}, merges=[]), "id of its own"),
    "half a character": (model(vocab={"\ud800": 400}, merges=[]), "not UTF-8"),
    "no bytes": (model(vocab={"a": 400}, merges=[]), "256 byte tokens"),
    "merges of three": (model(merges=[["a", "b", "c"]]), "pairs of tokens"),
    "merges of numbers": (model(merges=[[1, 2]]), "pairs of tokens"),
    "merges of one": (model(merges=["ab"]), "pairs of tokens"),
    "no merges": (model(merges=None), "pairs of tokens"),
    "half a character to merge": (model(merges=[["a", "\ud800"]]), "merges are not UTF-8"),
    "unknown merges": (model(merges=["q zz"]), "out of vocabulary"),
    "no added tokens": (pipeline(added_tokens=None), "added_tokens must be a list"),
    "added nothing": (pipeline(added_tokens=[None]), "an added token must be"),
    "added without id": (pipeline(added_tokens=[{"content": "a", "special": True}]), "an added token must have"),
    "added far away": (pipeline(added_tokens=[{"content": "a", "id": 1 << 40, "special": True}]), "numbers its tokens"),
    "added by the million": (
        pipeline(added_tokens=[{"content": f"u{n}", "id": 999 + n, "special": False} for n in range(9000)]),
        "user-defined tokens, more than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED_JSON)
def test_a_damaged_tokenizer_json_is_named(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED_JSON[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(TokenizerError, match=message) as raised:
        Tokenizer.from_file(path)
    assert "\n" not in str(raised.value)


def test_a_changed_byte_in_tokenizer_json_gives_a_named_error_or_a_working_tokenizer(tmp_path: Path) -> None:
    content = json.dumps(pipeline()).encode()
    rng, path = random.Random(0), tmp_path / "tokenizer.json"
    for _ in range(150):
        at = rng.randrange(len(content))
        change = rng.choice([b"", bytes([rng.randrange(256)]), b'"', b"}", b"-", content[at : at + 1] * 2])
        path.write_bytes(content[:at] + change + content[at + 1 :])
        assert_named_error_or_working(lambda: Tokenizer.from_file(path))


def test_padding_and_truncation_of_a_file_do_not_change_a_prompt(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.from_file(written(tmp_path, pipeline(truncation=truncation)))
    assert tokenizer.decode(tokenizer.encode("hello the world", add_bos=False)) == "hello the world"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not a file"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="is not a file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_damaged_sibling_config_is_named(tmp_path: Path) -> None:
    written(tmp_path, pipeline())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.from_file(tmp_path)


# The real vocabulary -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_model_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile.open(real_model_path).metadata)


@pytest.fixture(scope="module")
def transformers_tokenizer(real_model_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(real_model_path.parent, gguf_file=real_model_path.name)


@pytest.mark.weights
def test_the_real_vocabulary_equals_transformers(real: Tokenizer, transformers_tokenizer: Any, tmp_path: Path) -> None:
    lines = [line for line in fixtures.corpus() if "▁" not in line and " " * 32 not in line]
    theirs = transformers_tokenizer(lines, add_special_tokens=True)["input_ids"]
    transformers_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    exported = Tokenizer.from_file(tmp_path)
    assert len(fixtures.SCRIPTS) >= 80
    assert len(lines) >= 2400
    for line, expected in zip(lines, theirs, strict=True):
        # transformers always parses control tokens
        assert real.encode(line, parse_special=True) == expected
        assert exported.encode(line, parse_special=True) == expected
        assert real.decode(real.encode(line, add_bos=False)) == line


@pytest.mark.weights
def test_long_runs_of_spaces_follow_sentencepiece(real: Tokenizer, transformers_tokenizer: Any) -> None:
    lengths = [len(real.piece(id)) for id in real.encode(" " * 40, add_bos=False)]
    assert lengths == [31, 9]
    assert transformers_tokenizer.encode(" " * 40, add_special_tokens=False) != real.encode(" " * 40, add_bos=False)


@pytest.mark.weights
def test_the_real_vocabulary_keeps_control_tokens_out_of_text(real: Tokenizer) -> None:
    text = "".join(sorted(real.special_tokens))
    assert real.special_ids.isdisjoint(real.encode(text, add_bos=False))
    assert real.decode(real.encode(text, add_bos=False)) == text
    assert real.encode("<start_of_turn>user\nhi", parse_special=True) == [2, 105, 2364, 107, 2202]


@pytest.mark.weights
def test_no_name_of_a_real_control_token_in_a_message_becomes_one(real: Tokenizer) -> None:
    source = (fixtures.DATA / "gemma3_like.jinja").read_text(encoding="utf-8")
    chat = Chat(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"), real)
    hostile = "".join(sorted(real.special_tokens))
    ids, plain = (chat.prompt([{"role": "user", "content": text}]) for text in (hostile, "x"))
    assert [id for id in ids if id in real.special_ids] == [id for id in plain if id in real.special_ids]
    assert hostile in real.decode(ids)


def test_functiongemmas_calls_are_control_tokens_however_a_file_types_them() -> None:
    tokenizer = fixtures.functiongemma_tokenizer()
    names = ("<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>")
    assert all(name in tokenizer.special_tokens for name in names)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("".join(names), add_bos=False))
    assert {tokenizer.decode([id]) for id in tokenizer.end_ids} == {
        "<eos>", "<end_of_turn>", "<start_function_response>",
    }  # fmt: skip
