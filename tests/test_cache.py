"""The stores: what a layer remembers, and what it refuses to pretend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketgem.config import LayerConfig, Rope
from pocketgem.errors import RunError
from pocketgem.memory.kv_rows import FIRST_CAPACITY, SLACK
from pocketgem.model.cache import KeysValues, LayerStore


def layer(window: int | None) -> LayerConfig:
    rope = Rope(theta=1e4, head_dim=2, rotated_pairs=1)
    return LayerConfig(
        index=0, window=window, num_heads=1, num_kv_heads=1, head_dim=2, intermediate_size=4, kv_layer=0, rope=rope
    )


def rows(start: int, count: int) -> torch.Tensor:
    """Row ``i`` holds its own position, so that any mix-up shows."""
    positions = torch.arange(start, start + count, dtype=torch.float32)
    return positions[:, None, None].expand(count, 1, 2)


def put(store: LayerStore, start: int, k: torch.Tensor, v: torch.Tensor) -> KeysValues:
    slot = store.reserve(start, len(k))
    slot.k.copy_(k)
    slot.v.copy_(v)
    return slot.seen


@given(window=st.sampled_from([None, 1, 2, 8, 100]), counts=st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_a_store_returns_exactly_what_the_queries_may_see(window: int | None, counts: list[int]) -> None:
    store, start = LayerStore(layer(window), torch.float32), 0
    for count in counts:
        seen = put(store, start, rows(start, count), -rows(start, count))
        oldest = 0 if window is None else max(0, start - window + 1)
        assert seen.first <= oldest
        expected = torch.arange(seen.first, start + count, dtype=torch.float32)
        assert torch.equal(seen.k[:, 0, 0], expected)
        assert torch.equal(seen.v[:, 0, 1], -expected)
        start += count


def test_a_sliding_store_stays_bounded() -> None:
    store = LayerStore(layer(16), torch.float32)
    for start in range(0, 5000, 50):
        put(store, start, rows(start, 50), rows(start, 50))
    assert store.nbytes == 2 * (16 + SLACK) * 2 * 4  # k and v, rows, two floats


def test_a_wide_window_costs_only_what_is_in_it() -> None:
    store = LayerStore(layer(1 << 24), torch.float32)
    put(store, 0, rows(0, 3), rows(0, 3))
    assert len(store.k) == FIRST_CAPACITY


def test_a_full_store_grows_by_doubling() -> None:
    store, sizes = LayerStore(layer(None), torch.float32), set()
    for start in range(2000):
        put(store, start, rows(start, 1), rows(start, 1))
        sizes.add(len(store.k))
    assert sizes == {FIRST_CAPACITY * 2**i for i in range(4)}


def test_a_full_store_grows_no_further_than_its_limit() -> None:
    store = LayerStore(layer(None), torch.float32, limit=700)
    for start in range(0, 700, 100):
        seen = put(store, start, rows(start, 100), rows(start, 100))
    assert len(store.k) == 700
    assert seen.k[:, 0, 0].tolist() == list(range(700))
    assert len(put(store, 700, rows(700, 1), rows(700, 1)).k) == 701  # a wrong limit costs a move, not an answer


def test_a_fork_is_independent() -> None:
    store = LayerStore(layer(8), torch.float32)
    put(store, 0, rows(0, 5), rows(0, 5))
    twin = store.fork()
    put(store, 5, rows(50, 3), rows(50, 3))
    seen = put(twin, 5, rows(5, 1), rows(5, 1))
    assert seen.k[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("first", [0, 93])
def test_a_store_may_begin_late(first: int) -> None:
    store = LayerStore(layer(8), torch.float32)
    store.begin(first, 7)
    store.k[:7], store.v[:7] = rows(first, 7), rows(first, 7)
    for start in range(first + 7, first + 300, 50):
        seen = put(store, start, rows(start, 50), rows(start, 50))
        assert seen.k[:, 0, 0].tolist() == list(range(max(0, start - 7), start + 50))


def test_a_step_that_failed_can_be_run_again_while_its_past_is_there() -> None:
    store = LayerStore(layer(8), torch.float32)
    put(store, 0, rows(0, 20), rows(0, 20))
    put(store, 20, rows(99, 4), rows(99, 4))  # this step failed in a later layer: nobody committed it
    seen = put(store, 20, rows(20, 4), rows(20, 4))
    assert seen.k[:, 0, 0].tolist() == list(range(seen.first, 24))


def test_a_failed_chunk_of_any_length_can_be_run_again() -> None:
    store = LayerStore(layer(8), torch.float32)
    put(store, 0, rows(0, 20), rows(0, 20))
    put(store, 20, rows(-1000, 500), rows(-1000, 500))
    seen = put(store, 20, rows(20, 1), rows(20, 1))
    assert seen.k[:, 0, 0].tolist() == list(range(13, 21))


def test_a_long_chunk_leaves_no_large_buffer_behind() -> None:
    store = LayerStore(layer(8), torch.float32)
    put(store, 0, rows(0, 5000), rows(0, 5000))
    for start in range(5000, 5100):
        put(store, start, rows(start, 1), rows(start, 1))
    assert len(store.k) == 8 + SLACK


def test_a_lost_past_is_refused_not_shortened() -> None:
    store = LayerStore(layer(8), torch.float32)
    put(store, 0, rows(0, 20), rows(0, 20))
    put(store, 20, rows(20, 500), rows(20, 500))
    put(store, 520, rows(520, 500), rows(520, 500))  # position 20's own past is gone now
    with pytest.raises(RunError, match="prefill again"):
        put(store, 20, rows(20, 1), rows(20, 1))
