"""Law 3 for attention and the row functions: each instruction set's kernels equal their torch twins over odd shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem import kernels
from pocketgem.kernels import cpu
from pocketgem.model import ops

pytestmark = pytest.mark.native
native: Any = kernels.native
USABLE = [s.name for s in cpu.choose(None, native.built_sets(), cpu.features()).each if s.usable] if native else []
EPS = 1e-6


@pytest.fixture(params=USABLE)
def one(request: pytest.FixtureRequest) -> Any:
    """The kernels of one instruction set, on one thread."""
    return native.Kernels(request.param, 1)


@dataclass
class Past:
    """One sequence: its keys at positions ``first...``, and the positions its rows ask from."""

    k: Tensor  # [keys, kv_heads, dim] bfloat16
    v: Tensor
    first: int
    positions: Tensor  # [rows] int64


@dataclass
class Shape:
    heads: int
    kv_heads: int
    dim: int
    window: int = 0


def past(shape: Shape, keys: int, rows: int, first: int = 0) -> Past:
    """``rows`` queries at the end of ``keys`` keys."""
    k = torch.randn(keys, shape.kv_heads, shape.dim).to(torch.bfloat16)
    v = torch.randn(keys, shape.kv_heads, shape.dim).to(torch.bfloat16)
    return Past(k, v, first, torch.arange(first + keys - rows, first + keys))


@dataclass
class Rows:
    """Packed rows and what turns them."""

    q: Tensor  # [rows, heads, dim]
    norm: Tensor  # [dim]
    cos: Tensor  # [rows, dim / 2]
    sin: Tensor
    positions: Tensor
    last: Tensor | None = None  # positions that rows see on to


def rows_of(shape: Shape, pasts: Sequence[Past]) -> Rows:
    positions = torch.cat([torch.zeros(0, dtype=torch.int64), *(p.positions for p in pasts)])
    angles = positions[:, None] * torch.rand(shape.dim // 2)
    q = torch.randn(len(positions), shape.heads, shape.dim) * 3
    return Rows(q, torch.rand(shape.dim) + 0.5, angles.cos(), angles.sin(), positions)


def attend(kernel: Any, shape: Shape, rows: Rows, pasts: Sequence[Past], scale: float) -> Tensor:
    spans, start = [], 0
    for p in pasts:
        stop = start + len(p.positions)
        spans.append((start, stop, p.k.data_ptr(), p.v.data_ptr(), p.first, len(p.k)))
        start = stop
    out = torch.full_like(rows.q, 7.0)
    last = 0 if rows.last is None else rows.last.data_ptr()
    turned = (rows.norm.data_ptr(), EPS, rows.cos.data_ptr(), rows.sin.data_ptr(), rows.positions.data_ptr(), last)
    sizes = (start, shape.heads, shape.kv_heads, shape.dim, shape.window, scale)
    native.attend(kernel, rows.q.data_ptr(), *turned, *sizes, spans, out.data_ptr())
    return out


def attend_torch(shape: Shape, rows: Rows, pasts: Sequence[Past], scale: float) -> Tensor:
    tables = (rows.cos[:, None], rows.sin[:, None])
    q = ops.rotate(ops.rms_norm(rows.q, rows.norm, EPS), tables)
    outs, start = [torch.empty(0, shape.heads, shape.dim)], 0
    for p in pasts:
        stop = start + len(p.positions)
        last = None if rows.last is None else rows.last[start:stop]
        mask = ops.visible(p.positions, p.first, len(p.k), shape.window or None, last)
        if stop > start:
            outs.append(ops.attention(q[start:stop], p.k.float(), p.v.float(), mask, scale))
        start = stop
    return torch.cat(outs)


def check(kernel: Any, shape: Shape, pasts: Sequence[Past], scale: float = 0.1, tolerance: float = 2e-5) -> None:
    rows = rows_of(shape, pasts)
    expected = attend_torch(shape, rows, pasts, scale)
    torch.testing.assert_close(attend(kernel, shape, rows, pasts, scale), expected, rtol=tolerance, atol=tolerance)


HEADS = [(1, 1), (4, 1), (8, 2), (8, 8), (3, 1), (10, 2), (16, 1)]


@pytest.mark.parametrize("window", [0, 6, 50])
@pytest.mark.parametrize("rows", [2, 3, 40])
def test_rows_that_see_on_to_the_end_of_their_image(one: Any, window: int, rows: int) -> None:
    shape = Shape(4, 2, 64, window)
    torch.manual_seed(rows)
    pasts = [past(shape, 30 + rows, rows), past(shape, 7, 1)]
    made = rows_of(shape, pasts)
    last = made.positions.clone()
    last[: rows - 1] = made.positions[rows - 2]  # all but the last row of the first sequence are one image
    made = replace(made, last=last)
    expected = attend_torch(shape, made, pasts, 0.1)
    torch.testing.assert_close(attend(one, shape, made, pasts, 0.1), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256, 512])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_decode_and_prefill_equal_their_twin(one: Any, heads: int, kv_heads: int, dim: int) -> None:
    torch.manual_seed(heads * dim)
    shape = Shape(heads, kv_heads, dim)
    check(one, shape, [past(shape, 70, 1), past(shape, 41, 9), past(shape, 5, 5), past(shape, 300, 2)])


@pytest.mark.parametrize("window", [0, 1, 7, 64, 100, 512])
@pytest.mark.parametrize("rows", [1, 3, 5, 77])
def test_windows_smaller_and_larger_than_the_keys(one: Any, window: int, rows: int) -> None:
    torch.manual_seed(window)
    shape = Shape(4, 2, 64, window)
    check(one, shape, [past(shape, 150, rows), past(shape, 90, rows, first=1000), past(shape, 77, rows, first=63)])


@pytest.mark.parametrize("keys", [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 3000])
@pytest.mark.parametrize("first", [0, 5])
def test_depths_about_the_ends_of_blocks_and_chunks(one: Any, keys: int, first: int) -> None:
    torch.manual_seed(keys)
    shape = Shape(4, 1, 64)
    check(one, shape, [past(shape, keys, 1, first), past(shape, keys, min(keys, 13), first)], scale=1.0)


def test_a_row_with_more_keys_than_its_chunks_hold(one: Any) -> None:
    """Past 16384 keys chunks grow, so that partial sums stay few."""
    shape = Shape(2, 1, 32)
    check(one, shape, [past(shape, 40_000, 1, first=100)])


def test_only_some_rows_ask(one: Any) -> None:
    """Rows whose logits nobody wants are gone: positions have gaps."""
    shape = Shape(4, 1, 64, 50)
    some = past(shape, 300, 300)
    some.positions = some.positions[[3, 60, 61, 190, 250, 251, 299]]
    check(one, shape, [some])


def test_nothing_to_do(one: Any) -> None:
    shape = Shape(4, 1, 64)
    check(one, shape, [])
    check(one, shape, [past(shape, 9, 0), past(shape, 9, 2), past(shape, 0, 0), past(shape, 20, 9), past(shape, 3, 0)])


def test_rows_that_see_no_key_give_zeros(one: Any) -> None:
    shape = Shape(4, 1, 64)
    for rows in (1, 9):
        blind = past(shape, 0, 0, first=50)
        blind.positions = torch.arange(50, 50 + rows)
        asking = rows_of(shape, [blind])
        assert not attend(one, shape, asking, [blind], 1.0).any()


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_a_nan_stays_in_its_sequence(one: Any, rows: int, place: str) -> None:
    shape = Shape(8, 2, 64)
    pasts = [past(shape, 90, rows) for _ in range(3)]
    asking = rows_of(shape, pasts)
    clean = attend(one, shape, asking, pasts, 1.0)
    if place == "q":
        asking.q[2 * rows - 1] = float("nan")  # the last row of the second sequence
    else:
        (pasts[1].k if place == "k" else pasts[1].v)[40] = float("nan")
    out = attend(one, shape, asking, pasts, 1.0)
    assert out[2 * rows - 1].isnan().all()
    assert torch.equal(out[:rows], clean[:rows])
    assert torch.equal(out[2 * rows :], clean[2 * rows :])


def test_large_scores_neither_overflow_nor_vanish(one: Any) -> None:
    shape = Shape(4, 1, 64)
    pasts = [past(shape, 300, 1), past(shape, 300, 20)]
    check(one, shape, pasts, scale=30.0, tolerance=2e-3)  # scores of thousands have few digits left behind the point


@pytest.mark.parametrize("window", [0, 300])
def test_the_same_bits_alone_and_beside_others_on_any_number_of_threads(one: Any, window: int) -> None:
    torch.manual_seed(0)
    shape = Shape(8, 1, 128, window)
    pasts = [
        past(shape, keys, rows, first) for keys, rows, first in [(700, 1, 0), (50, 20, 9), (1500, 1, 3), (90, 90, 0)]
    ]
    rows = rows_of(shape, pasts)
    together = attend(one, shape, rows, pasts, 1.0)
    two = native.Kernels(one.name, 2)
    for _ in range(5):
        assert torch.equal(attend(two, shape, rows, pasts, 1.0), together)
    start = 0
    for p in pasts:
        own = slice(start, start + len(p.positions))
        mine = Rows(rows.q[own], rows.norm, rows.cos[own], rows.sin[own], rows.positions[own])
        assert torch.equal(attend(one, shape, mine, [p], 1.0), together[own])
        start = own.stop


def test_a_prompt_in_pieces_gives_the_same_bits(one: Any) -> None:
    shape = Shape(4, 1, 64, 100)
    whole = past(shape, 250, 250)
    rows = rows_of(shape, [whole])
    together = attend(one, shape, rows, [whole], 1.0)
    own = slice(130, 250)
    later = Past(whole.k[31:].clone(), whole.v[31:].clone(), 31, whole.positions[own])  # the keys its window needs
    mine = Rows(rows.q[own], rows.norm, rows.cos[own], rows.sin[own], rows.positions[own])
    assert torch.equal(attend(one, shape, mine, [later], 1.0), together[own])


@pytest.mark.parametrize(("dim", "kv_heads"), [(32, 3), (96, 1), (256, 2), (512, 1)])
@pytest.mark.parametrize("normed_values", [False, True])
@pytest.mark.parametrize("value_is_key", [False, True])
def test_written_keys_equal_their_twin(
    one: Any, dim: int, kv_heads: int, normed_values: bool, value_is_key: bool
) -> None:
    torch.manual_seed(dim)
    shape = Shape(kv_heads, kv_heads, dim)
    rows = rows_of(shape, [past(shape, n, n) for n in (3, 0, 1, 120)])
    k = rows.q
    v = k if value_is_key else torch.randn_like(k)
    keys, values = torch.zeros(len(k), kv_heads, dim, dtype=torch.bfloat16), torch.zeros(200, kv_heads, dim).bfloat16()
    bounds = [(0, 3), (3, 3), (3, 4), (4, 124)]
    spans = [(start, stop, keys[start:].data_ptr(), values[start:].data_ptr()) for start, stop in bounds]
    turned = (rows.norm.data_ptr(), EPS, normed_values, rows.cos.data_ptr(), rows.sin.data_ptr())
    native.write_keys(one, k.data_ptr(), v.data_ptr(), *turned, len(k), kv_heads, dim, spans)
    expected = ops.rotate(ops.rms_norm(k, rows.norm, EPS), (rows.cos[:, None], rows.sin[:, None]))
    torch.testing.assert_close(keys.float(), expected, rtol=4e-3, atol=1e-6)  # half a step of bfloat16
    wanted = ops.rms_norm(v, None, EPS) if normed_values else v
    torch.testing.assert_close(values[:124].float(), wanted, rtol=4e-3, atol=1e-6)
    assert normed_values or torch.equal(values[:124], v.bfloat16())
    assert not values[124:].any()


def test_the_binding_refuses_what_does_not_fit(one: Any) -> None:
    out = torch.zeros(4, 64)
    address = out.data_ptr()
    with pytest.raises(ValueError, match="multiple of 32"):
        native.attend(one, *[address, 0, EPS], *[address] * 3, 0, 4, 1, 1, 48, 0, 1.0, [], address)
    with pytest.raises(ValueError, match="multiple of key heads"):
        native.attend(one, *[address, 0, EPS], *[address] * 3, 0, 4, 3, 2, 64, 0, 1.0, [], address)
    with pytest.raises(ValueError, match="not within the rows"):
        native.attend(one, *[address, 0, EPS], *[address] * 3, 0, 4, 1, 1, 64, 0, 1.0, [(3, 5, 0, 0, 0, 0)], address)
    with pytest.raises(ValueError, match="negative"):
        native.attend(one, *[address, 0, EPS], *[address] * 3, 0, 4, 1, 1, 64, 0, 1.0, [(3, 4, 0, 0, 0, -1)], address)


# ---- row functions ---------------------------------------------------------------------------------------------------

LENGTHS = [*range(1, 101), 255, 256, 257, 640, 2049]


def test_norms_equal_their_twin_at_every_length(one: Any) -> None:
    for n in LENGTHS:
        x, y, weight = torch.randn(3, n) * 5, torch.randn(3, n), torch.randn(n)
        out = torch.full((3, n + 1), 7.0)[:, :n].contiguous()
        native.norm(one, x.data_ptr(), weight.data_ptr(), out.data_ptr(), 3, n, EPS)
        torch.testing.assert_close(out, ops.rms_norm(x, weight, EPS), rtol=2e-6, atol=1e-7)
        native.norm(one, x.data_ptr(), 0, out.data_ptr(), 3, n, EPS)
        torch.testing.assert_close(out, ops.rms_norm(x, None, EPS), rtol=2e-6, atol=1e-7)
        expected = (x + ops.rms_norm(y, weight, EPS)) * 0.5
        native.add_norm(one, x.data_ptr(), y.data_ptr(), weight.data_ptr(), 3, n, EPS, 0.5)
        torch.testing.assert_close(x, expected, rtol=2e-6, atol=1e-6)


def test_a_row_function_leaves_what_follows_its_row_alone(one: Any) -> None:
    for n in range(1, 40):
        x, y = torch.randn(n + 20), torch.randn(n + 20)
        before = x.clone()
        native.norm(one, x.data_ptr(), 0, x.data_ptr(), 1, n, EPS)
        native.add_norm(one, x.data_ptr(), y.data_ptr(), 0, 1, n, EPS, 2.0)
        native.geglu(one, x.data_ptr(), y.data_ptr(), x.data_ptr(), 1, n)
        native.softcap(one, x.data_ptr(), 1, n, 30.0)
        native.add(one, x.data_ptr(), y.data_ptr(), 1, n)
        assert torch.equal(x[n:], before[n:])


def test_geglu_equals_gelu_in_double(one: Any) -> None:
    for n in LENGTHS:
        gate, up = torch.randn(2, n) * 2, torch.randn(2, n)
        out = torch.empty_like(gate)
        native.geglu(one, gate.data_ptr(), up.data_ptr(), out.data_ptr(), 2, n)
        expected = F.gelu(gate.double(), approximate="tanh") * up.double()
        torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=1e-8)


def test_geglu_of_extreme_gates(one: Any) -> None:
    gate = torch.tensor(
        [0.0, -0.0, 1e-30, -1e-30, 5.0, 20.0, 1e20, 3e38, float("inf"), -20.0, -1e20, -3e38, float("nan")]
    )
    out, up = torch.empty_like(gate), torch.ones_like(gate)
    native.geglu(one, gate.data_ptr(), up.data_ptr(), out.data_ptr(), 1, len(gate))
    torch.testing.assert_close(out, F.gelu(gate, approximate="tanh"), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_softcap_equals_tanh_in_double(one: Any) -> None:
    for n in LENGTHS:
        x = torch.randn(2, n) * 10 ** torch.empty(2, n).uniform_(-6, 3)
        expected = torch.tanh(x.double() / 30) * 30
        native.softcap(one, x.data_ptr(), 2, n, 30.0)
        torch.testing.assert_close(x.double(), expected, rtol=2e-6, atol=0)


def test_softcap_of_extremes(one: Any) -> None:
    x = torch.tensor([0.0, float("inf"), -float("inf"), 3e38, -3e38, float("nan"), 1e-38])
    expected = ops.softcap(x, 30.0)
    native.softcap(one, x.data_ptr(), 1, len(x), 30.0)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_peaks_equal_the_plain_ones(one: Any) -> None:
    """The first of equals, whatever thread has it; None where one number is not finite."""
    for n in (1, 63, 64, 1000, 1025, 70_000):
        x = torch.randn(12, n).mul(4).round()
        for row, value in enumerate((math.nan, math.inf, -math.inf)):
            x[row, torch.randint(n, ())] = value
        x[3] = -2.0
        found = native.peaks(one, x.data_ptr(), *x.shape)
        assert found == ops.peaks(x)
        assert found[:4] == [None, None, None, 0]


def test_add(one: Any) -> None:
    for n in LENGTHS:
        x, y = torch.randn(3, n), torch.randn(3, n)
        expected = x + y
        native.add(one, x.data_ptr(), y.data_ptr(), 3, n)
        assert torch.equal(x, expected)
