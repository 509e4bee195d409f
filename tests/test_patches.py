"""Pictures cut into patches: values, places and counts as transformers' own processors make them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgem.config import from_hf, released_config
from pocketgem.errors import FormatError, MediaError
from pocketgem.media.kinds import Picture
from pocketgem.media.patches import BUDGETS, patches, prepare, smallest_budget, square, target_size, tokens_of
from tests import picture_parity
from tests.pictures import cuts, extremes, shipped


def test_patches_are_the_references() -> None:
    """A part of what ``python -m benchmarks.pictures`` compares."""
    for number, (name, picture) in enumerate(chain(list(shipped())[::7], list(extremes())[::3])):
        budget = BUDGETS[number % 2]
        assert picture_parity.gemma4(picture, budget).is_small, (name, budget)


def test_merged_patches_are_the_references() -> None:
    for number, (name, picture) in enumerate(chain(cuts(3), list(extremes())[1::7])):
        budget = BUDGETS[number % 2]
        assert picture_parity.unified(picture, budget).is_small, (name, budget)


def test_squares_are_the_references() -> None:
    for name, picture in chain(cuts(2), list(extremes())[::15]):
        assert picture_parity.gemma3(picture).is_small, name


# ---- sizes -----------------------------------------------------------------------------------------------------------

sizes = st.integers(1, 70_000)


@given(sizes, sizes, st.sampled_from(BUDGETS))
def test_any_size_fits_its_budget(height: int, width: int, budget: int) -> None:
    down, across = target_size(height, width, budget)
    assert down % 48 == 0
    assert across % 48 == 0
    assert 1 <= (down // 48) * (across // 48) == tokens_of(height, width, budget) <= budget


@given(sizes, sizes)
def test_the_smallest_budget_loses_nothing_and_smaller_ones_do(height: int, width: int) -> None:
    chosen = smallest_budget(height, width)
    for budget in BUDGETS:
        down, across = target_size(height, width, budget)
        if budget < chosen:
            assert down < height or across < width
        elif chosen != BUDGETS[-1] and budget == chosen:
            assert down >= height
            assert across >= width


@pytest.mark.parametrize(
    ("height", "width", "budget", "tokens"),
    [(768, 768, 280, 256), (1, 4000, 280, 280), (4000, 1, 70, 70), (1, 1, 70, 64), (480, 640, 1120, 1064)],
)
def test_known_counts(height: int, width: int, budget: int, tokens: int) -> None:
    assert tokens_of(height, width, budget) == tokens


def test_what_is_shrunk_is_said() -> None:
    noise = Picture(np.random.default_rng(1).integers(0, 256, (900, 900, 3), np.uint8))
    assert patches(noise, 280).shrunk
    assert not patches(noise, 560).shrunk
    assert smallest_budget(900, 900) == 560
    assert square(noise).shrunk


@pytest.mark.parametrize("budget", [0, -1, 256, 10**9])
def test_other_budgets_are_refused(budget: int) -> None:
    with pytest.raises(MediaError, match="one of 70, 140, 280, 560, 1120"):
        patches(Picture(np.zeros((9, 9, 3), np.uint8)), budget)


@pytest.mark.parametrize(
    ("layout", "numbers", "tokens"), [("gemma-4-E2B", 768, 70), ("gemma-4-12B", 6912, 70), ("gemma-3-4b", 588, 256)]
)
def test_each_model_gets_what_its_tower_takes(layout: str, numbers: int, tokens: int) -> None:
    config = from_hf(released_config(layout), layout)
    found = prepare(config, Picture(np.full((480, 336, 3), 255, np.uint8)), 70)
    assert found.values.shape[1] == numbers
    assert found.values.min() == found.values.max() == np.float32(1.0)
    assert len(found.positions) == len(found.values)
    assert found.tokens == tokens


@pytest.mark.parametrize("sizes", [{"patch_size": 1 << 20}, {"pooling_kernel_size": 65}, {"patch_size": 32}])
def test_a_config_cannot_ask_for_gigabytes(sizes: dict[str, object]) -> None:
    config = from_hf(released_config("gemma-4-E2B"), "here")
    with pytest.raises(FormatError, match="vision_config"):
        prepare(replace(config, vision={**(config.vision or {}), **sizes}), Picture(np.zeros((9, 9, 3), np.uint8)), 70)
