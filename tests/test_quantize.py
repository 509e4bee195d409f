"""Blocks are made as well as llama.cpp makes them or better, read back the same everywhere, and find grids exactly."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketgem.checkpoint import quantize as module
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.grid import grid_q4_0, lies_on_grid
from pocketgem.checkpoint.quantize import quantizable, quantize
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import UnsupportedError

TYPES = [kind for kind in StoredType if quantizable(kind)]
# Mean squared error of llama.cpp's reference (ggml_quantize_chunk, no importance matrix; llama-cpp-python 0.3.36) over
# ``bell`` and ``heavy``: the gguf package has no quantiser for the K types. benchmarks/quantisers.py measures anew.
THEIRS = {
    StoredType.Q4_0: (2.90429e-06, 1.08554e-05),
    StoredType.Q5_0: (7.21040e-07, 2.62184e-06),
    StoredType.Q8_0: (1.13277e-08, 4.18061e-08),
    StoredType.Q4_K: (2.02367e-06, 5.65659e-06),
    StoredType.Q6_K: (1.25295e-07, 4.04581e-07),
}


def bell(width: int) -> Tensor:
    return torch.randn(512, width, generator=torch.Generator().manual_seed(11)) * 0.02


def heavy(width: int) -> Tensor:
    """One weight of twenty is four times as large."""
    dice = torch.Generator().manual_seed(12)
    return torch.randn(512, width, generator=dice) * 0.02 * (1 + 3 * (torch.rand(512, width, generator=dice) < 0.05))


def error(weights: Tensor, blocks: Tensor, kind: StoredType) -> float:
    return (dequantize(blocks, kind) - weights).double().pow(2).mean().item()


@pytest.mark.parametrize("kind", TYPES)
def test_the_error_is_below_llama_cpps(kind: StoredType) -> None:
    for weights, theirs in zip((bell(kind.block_size), heavy(kind.block_size)), THEIRS[kind], strict=True):
        assert error(weights, quantize(weights, kind), kind) < 0.99 * theirs


@pytest.mark.parametrize("kind", [StoredType.Q4_0, StoredType.Q5_0, StoredType.Q8_0])
@pytest.mark.parametrize("skew", [0.0, 1.0, -2.0])
def test_the_error_is_below_the_gguf_librarys(kind: StoredType, skew: float) -> None:
    weights = bell(32) + 0.02 * skew
    theirs = torch.from_numpy(gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType[kind.name]))
    assert error(weights, quantize(weights, kind), kind) < error(weights, theirs, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_the_gguf_library_reads_the_same_weights(kind: StoredType) -> None:
    blocks = quantize(heavy(kind.block_size), kind)
    theirs = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind.name])
    assert torch.equal(dequantize(blocks, kind), torch.from_numpy(theirs))


ODD = {
    "zeros": lambda width: torch.zeros(3, width),
    "one weight": lambda width: torch.eye(width)[:4],
    "the same": lambda width: torch.full((3, width), -0.25),
    "positive": lambda width: torch.rand(8, width, generator=torch.Generator().manual_seed(3)) + 1,
    "negative": lambda width: -torch.rand(8, width, generator=torch.Generator().manual_seed(3)) - 1,
    "vanishing": lambda width: bell(width)[:8] * 1e-30,
    "subnormal scales": lambda width: bell(width)[:8] * 1e-4,
    "large": lambda width: bell(width)[:8] * 1e6,
    "beyond float16": lambda width: bell(width)[:8] * 1e12,
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ODD)
def test_odd_blocks_come_back_near_what_they_were(kind: StoredType, name: str) -> None:
    weights = ODD[name](kind.block_size)
    back = dequantize(quantize(weights, kind), kind)
    assert bool(back.isfinite().all())
    if name == "beyond float16":  # nothing can hold them: as large as it goes, with the right signs
        assert bool((back * weights >= 0).all())
        return
    largest = weights.abs().amax(1, keepdim=True)
    steps = 0.9 if name == "subnormal scales" else 7 if "4" in kind else 15  # a half has no finer step than 6e-8
    assert bool(((back - weights).abs() <= 1.1 * largest / steps + 1e-10).all())


@pytest.mark.parametrize("kind", TYPES)
def test_tiles_do_not_change_what_is_found(kind: StoredType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch adds in another order in a narrower tile, so of two equally good scales the other may win."""
    weights = heavy(kind.block_size)[:40]
    whole = quantize(weights, kind)
    monkeypatch.setattr(module, "TILE", 7 * kind.block_size)
    tiled = quantize(weights, kind)
    errors = [(dequantize(blocks, kind) - weights).double().square().sum(1) for blocks in (whole, tiled)]
    torch.testing.assert_close(errors[1].sum(), errors[0].sum(), rtol=1e-3, atol=0)
    assert float((tiled == whole).all(1).double().mean()) > 0.9
    assert quantize(weights[:0], kind).shape == (0, kind.type_size)


def test_types_nobody_writes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot quantise to Q2_K"):
        quantize(torch.zeros(1, 256), StoredType.Q2_K)


# ---- grids ---------------------------------------------------------------------------------------------------------

FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def on_a_grid(scales: list[float], seed: int, most: int, dtype: torch.dtype) -> Tensor:
    """Weights d * (q - 8) for half-precision d, q up to ``most`` steps from the middle, rounded to ``dtype``."""
    d = torch.tensor(scales).half().float()[:, None]
    dice = torch.Generator().manual_seed(seed)
    steps = torch.randint(-most, most + (most < 8), (len(scales), 32), generator=dice)
    return (d * steps).to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.contiguous().view(torch.uint8).numpy(), other.contiguous().view(torch.uint8).numpy())


@settings(max_examples=150)
@given(
    scales=st.lists(
        st.floats(2**-15, 100.0, width=16) | st.floats(-100.0, -(2**-15), width=16), min_size=1, max_size=8
    ),
    seed=st.integers(0, 1 << 20),
    most=st.integers(1, 8),
    dtype=st.sampled_from(FLOATS),
)
@example(scales=[1.0] * 4, seed=0, most=4, dtype=torch.bfloat16)  # eight half steps, negative, would fit but for zero
def test_a_grid_is_found_again_bit_for_bit(scales: list[float], seed: int, most: int, dtype: torch.dtype) -> None:
    weights = on_a_grid(scales, seed, most, dtype)
    blocks, exact = grid_q4_0(weights)
    assert bool(exact.all())
    back = dequantize(blocks, StoredType.Q4_0).to(dtype)
    assert torch.equal(back, weights)
    kept = ~(weights == 0).all(1)  # of a block of zeros the sign of its scale is lost
    assert same_bits(back[kept], weights[kept])


@settings(max_examples=50)
@given(scale=st.floats(6e-8, 2e-5), seed=st.integers(0, 1 << 20), dtype=st.sampled_from(FLOATS[::2]))
def test_scales_below_the_normal_halves_are_found_too(scale: float, seed: int, dtype: torch.dtype) -> None:
    weights = on_a_grid([scale], seed, 8, dtype)
    blocks, exact = grid_q4_0(weights)
    assert bool(exact.all())
    assert torch.equal(dequantize(blocks, StoredType.Q4_0).to(dtype), weights)


@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_off_the_grid_are_not_called_exact(dtype: torch.dtype) -> None:
    weights = bell(32).to(dtype)
    _, exact = grid_q4_0(weights)
    assert not bool(exact.any())
    weights[::3] = on_a_grid([0.01] * len(weights[::3]), 1, 8, dtype)
    blocks, exact = grid_q4_0(weights)
    assert exact.tolist() == [row % 3 == 0 for row in range(len(weights))]
    assert torch.equal(dequantize(blocks, StoredType.Q4_0).to(dtype)[::3], weights[::3])
    assert not lies_on_grid(weights)
    assert lies_on_grid(weights[::3])


def test_eight_steps_to_both_sides_are_no_q4_0() -> None:
    weights = torch.zeros(1, 32)
    weights[0, 0], weights[0, 1], weights[0, 2] = 8.0, -8.0, 1.0
    assert not bool(grid_q4_0(weights)[1].any())


def test_whole_numbers_lie_on_no_grid() -> None:
    assert not lies_on_grid(torch.ones(4, 32, dtype=torch.int32))
