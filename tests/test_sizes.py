"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgem.errors import InputError
from pocketgem.sizes import gib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("4 GB", 4 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("512MiB", 512 << 20),
        ("2kB", 2000),
        ("2K", 2048),
        ("4096", 4096),
        ("4096 B", 4096),
        ("1TiB", 1 << 40),
        (" 8MB ", 8 * 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 XB", "4GiBs", "1e9", "nan", "1..5G", "4iB", "٤GiB", "9" * 40])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="not a size"):
        parse_size(text)


def test_nothing_is_no_size_either() -> None:
    for text in ("0", "0GiB", "0.0000001KiB"):
        with pytest.raises(InputError, match="leaves nothing"):
            parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_an_error(text: str) -> None:
    try:
        size = parse_size(text)
    except InputError:
        return
    assert size > 0


def test_sizes_for_people() -> None:
    assert gib(3 << 29) == "1.50 GiB"
    assert gib(5 << 20) == "5.0 MiB"
