"""Places of all layers at once are those that the stores say one by one, through every move of theirs."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.errors import RunError
from pocketgem.memory.kv_rows import SLACK
from pocketgem.model.cache import Cache, Step
from pocketgem.model.fused import spans_of, targets_of
from pocketgem.model.places import Places
from tests.test_cache import layer

WINDOWS = [5, None, 70, None]
CONFIG: Any = SimpleNamespace(
    layers=[replace(layer(window), index=index, kv_layer=index) for index, window in enumerate(WINDOWS)]
)
ALL = range(len(WINDOWS))


def new_cache() -> Cache:
    return Cache(CONFIG, torch.bfloat16)


def expected(step: Step) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """As the calls of single layers have it."""
    layers = []
    for index in ALL:
        slots = step.reserve(index)
        writes, reads = targets_of(step, slots), spans_of(step, [slot.seen for slot in slots])
        layers.append([(*write[2:], *read[2:]) for write, read in zip(writes, reads, strict=True)])
    return [(span.start, span.stop) for span in step.spans], layers


counts = st.lists(st.sampled_from([1, 1, 1, 1, 2, 40, 300]), min_size=3, max_size=3)


@given(steps=st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_places_are_what_the_stores_say(steps: list[tuple[list[int], bool]]) -> None:
    places, caches = Places(ALL), [new_cache() for _ in range(3)]
    for counts, fails in steps:
        step = Step.packed(caches, counts)
        rows, all = places.of(step)
        assert (list(map(tuple, rows.tolist())), [list(map(tuple, one)) for one in all.tolist()]) == expected(step)
        if not fails:
            step.commit()
        caches = [*caches[1:], caches[0]]


def test_what_moved_in_between_is_noticed() -> None:
    """A prompt's step goes layer by layer, and a kept past fills a store anew."""
    places, cache = Places(ALL), new_cache()
    places.of(Step.packed([cache], [1]))
    cache.stores[1].reserve(0, 5000)
    cache.stores[0].begin(0, 3)
    cache.length = 3
    step = Step.packed([cache], [1])
    assert places.of(step)[1].tolist()[1] == [list(one) for one in expected(step)[1][1]]


def test_rows_that_are_gone_are_refused() -> None:
    places, cache = Places(ALL), new_cache()
    for _ in range(5 + SLACK + 10):
        step = Step.packed([cache], [1])
        places.of(step)
        step.commit()
    cache.length = 3
    with pytest.raises(RunError, match="gone after a failed step"):
        places.of(Step.packed([cache], [1]))


def test_nothing_is_known_of_a_cache_that_is_no_more() -> None:
    places = Places(ALL)
    rows, _ = places.of(Step.packed([new_cache(), new_cache()], [1, 2]))
    assert np.array_equal(rows, [[0, 1], [1, 3]])
    gc.collect()
    assert not places._known
