"""What an adapter says of how to talk to its model: names for reserved tokens, a template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketgem.adapters.dialect import TEMPLATE, TOKENS, Dialect, read_dialect
from pocketgem.errors import FormatError, TokenizerError
from tests import text_fixtures as fixtures

CALL = "<call>"


def reserved() -> tuple[str, int]:
    tokenizer = fixtures.gemma4_tokenizer()
    return next((text, id) for text, id in tokenizer.special_tokens.items() if text.startswith("<unused"))


def test_a_reserved_token_gets_a_name_and_nothing_else_changes() -> None:
    tokenizer, (old, id) = fixtures.gemma4_tokenizer(), reserved()
    named = tokenizer.renamed({CALL: id})
    assert named.encode(f"a{CALL}b", parse_special=True) == tokenizer.encode(f"a{old}b", parse_special=True)
    assert named.decode([id]) == CALL
    assert id not in named.encode(f"a{CALL}b{old}")  # text stays text
    assert id not in named.encode(old, parse_special=True)
    assert tokenizer.decode([id]) == old  # the one it was made of


def test_names_that_say_nothing_here_are_passed_over() -> None:
    tokenizer = fixtures.gemma4_tokenizer()
    names = {"<bos>": tokenizer.bos_id, "<picture>": tokenizer.vocab_size, "the": tokenizer.encode("the")[1]}
    assert tokenizer.renamed(names).special_tokens == tokenizer.special_tokens


def test_names_of_another_vocabulary_are_refused() -> None:
    tokenizer, (_, id) = fixtures.gemma4_tokenizer(), reserved()
    with pytest.raises(TokenizerError, match="it is '<bos>' here"):
        tokenizer.renamed({"<begin>": tokenizer.bos_id})
    with pytest.raises(TokenizerError, match="cannot be called '<bos>'"):
        tokenizer.renamed({"<bos>": id})
    with pytest.raises(TokenizerError, match=f"it is '{CALL}' here"):
        tokenizer.renamed({CALL: id}).renamed({"<other>": id})


def test_a_dialect_comes_back_from_its_files(tmp_path: Path) -> None:
    dialect = Dialect("{{ messages }}", {CALL: 7, "<end>": 8})
    for name, content in dialect.files().items():
        (tmp_path / name).write_bytes(content)
    assert read_dialect(tmp_path) == dialect
    assert not read_dialect(tmp_path / "elsewhere")


DAMAGED = (
    {"x": {"content": "a"}},
    {"1": "a"},
    {"1": {"content": ""}},
    {"9" * 9: {"content": "a"}},
    {"1": {"content": "a" * 65}},
    {"1": {"content": "a"}, "2": {"content": "a"}},
    [],
)


@pytest.mark.parametrize("listed", DAMAGED, ids=str)
def test_a_damaged_list_of_names_is_refused(listed: object, tmp_path: Path) -> None:
    (tmp_path / TOKENS).write_text(json.dumps({"added_tokens_decoder": listed}))
    with pytest.raises(FormatError):
        read_dialect(tmp_path)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE).write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_dialect(tmp_path)
