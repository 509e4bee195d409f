"""Law 3: every compiled product on every instruction set equals its torch twin; the package works without any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketgem import kernels
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.types import StoredType
from pocketgem.kernels.compute import Compute, Norm, Weight
from pocketgem.model import ops
from tests.test_pack import BLOCK_TYPES, halves_at, random_bytes

ROOT = Path(__file__).parents[1]
PLAIN_TYPES = [StoredType.F32, StoredType.F16, StoredType.BF16]
ROWS = [0, 1, 2, 3, 5, 10, 13, 31, 45]  # through every way of cutting few and many rows
SETS = [status.name for status in kernels.choice().each if status.usable]


class Matrix:
    """A random matrix of a stored type: as the kernels read it, and as float64."""

    def __init__(self, compute: Compute, kind: StoredType, rows: int, cols: int, blocks: Tensor | None = None) -> None:
        """``blocks`` are its own stored bytes, instead of random ones."""
        if kind.block_size == 1:
            dense = torch.randn(rows, cols).to({"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16))
            self.weight: Weight = compute.plain(dense)
            self.values = dense.double()
            return
        blocks = tame(kind, rows * cols) if blocks is None else blocks
        data = torch.empty(kernels.native.packed_bytes(kind, rows, cols), dtype=torch.uint8)
        source = (blocks.data_ptr(), blocks.numel())
        kernels.native.pack(compute.pool, kind, *source, rows, cols, data.data_ptr(), data.numel())
        self.weight = compute.packed(kind, rows, cols, data)
        self.values = dequantize(blocks, kind).view(rows, cols).double()


def tame(kind: StoredType, weights: int) -> Tensor:
    """Random blocks whose half-precision scales are ordinary numbers."""
    blocks = random_bytes(kind, weights)
    for at in halves_at(kind):
        halves = (torch.rand(len(blocks), 1) * 0.02 + 0.001).half()
        blocks[:, at : at + 2] = halves.view(torch.uint8)
    return blocks


def rounded(x: Tensor) -> Tensor:
    """What the kernels make of activations, in float64: 32 columns share a scale of largest / 127."""
    groups = x.view(x.shape[0], x.shape[1] // 32, 32)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, 127 / top, torch.zeros_like(top))
    return ((groups * inverse).round().double() * (top / 127).double()).view(x.shape)


def seen(x: Tensor, kind: StoredType) -> Tensor:
    return x.double() if kind.block_size == 1 else rounded(x)


def close(found: Tensor, expected: Tensor) -> None:
    """To float32 sums over the row; where rounding to int8 falls the other way, to one step of one activation: then a
    whole row is off by that, so of several rows one may be."""
    scale = expected.abs().amax().item() if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-3 * scale)
    error = (found.double() - expected).abs()
    if len(error) > 2:
        error = error[error.amax(-1).argsort()[:-1]]
    assert (error > 1e-5 * scale).double().mean().item() < 0.02 or error.numel() < 200


@pytest.fixture(scope="module", params=[*SETS])
def compute(request: pytest.FixtureRequest) -> Compute:
    torch.manual_seed(0)
    return Compute(request.param, threads=2)


@pytest.mark.native
@pytest.mark.parametrize("kind", [*BLOCK_TYPES, *PLAIN_TYPES])
@pytest.mark.parametrize("out", [1, 16, 50, 130])
def test_linear_equals_its_twin(compute: Compute, kind: StoredType, out: int) -> None:
    for cols in (256, 768) if kind.block_size == 256 else (32, 96, 320):
        matrix = Matrix(compute, kind, out, cols)
        for rows in ROWS:
            x = torch.randn(rows, cols) * 10 ** torch.empty(rows, 1).uniform_(-3, 3)
            close(compute.linear(x, matrix.weight), seen(x, kind) @ matrix.values.T)


@pytest.mark.native
@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_the_largest_sums_fit(compute: Compute, kind: StoredType, byte: int) -> None:
    """Every number at its end and every activation too: where sums begin in 16 bits none may run over."""
    blocks = tame(kind, 32 * 256)
    kept = {place + i for place in halves_at(kind) for i in range(2)}
    blocks[:, [place for place in range(blocks.shape[1]) if place not in kept]] = byte
    matrix = Matrix(compute, kind, 32, 256, blocks)
    x = torch.ones(45, 256) * torch.tensor([1.0, -1.0]).repeat(23)[:45, None]
    for rows in (1, 4, 10, 45):
        expected = seen(x[:rows], kind) @ matrix.values.T
        torch.testing.assert_close(compute.linear(x[:rows], matrix.weight).double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.native
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_row_has_the_same_bits_in_any_company(compute: Compute, kind: StoredType) -> None:
    matrix, x = Matrix(compute, kind, 70, 512), torch.randn(45, 512)
    together = compute.linear(x, matrix.weight)
    for rows in (1, 2, 4, 7, 10, 21, 44):
        assert torch.equal(compute.linear(x[:rows].contiguous(), matrix.weight), together[:rows])


@pytest.mark.native
@pytest.mark.parametrize("kind", [StoredType.Q4_0, StoredType.Q4_K, StoredType.Q6_K, StoredType.Q8_0, StoredType.F32])
@pytest.mark.parametrize("rows", [0, 1, 10, 33])
def test_what_stands_round_a_product(compute: Compute, kind: StoredType, rows: int) -> None:
    """The norm before, the gate or the residual after."""
    a, b, c = (Matrix(compute, kind, 96, 256) for _ in range(3))
    x, norm = torch.randn(rows, 256) * 5, Norm(torch.rand(256) + 0.5, 1e-6)
    entered = ops.rms_norm(x, norm.weight, norm.eps)
    for found, matrix in zip(compute.linears(x, [a.weight, b.weight, c.weight], norm), (a, b, c), strict=True):
        close(found, seen(entered, kind) @ matrix.values.T)
    gate, up = (seen(entered, kind) @ matrix.values.T for matrix in (a, b))
    close(compute.geglu(x, a.weight, b.weight, norm), F.gelu(gate, approximate="tanh") * up)
    vectors = torch.randn(rows, 3, 96)[:, 1]  # rows apart from each other
    gated = F.gelu(seen(x, kind) @ a.values.T, approximate="tanh") * vectors
    close(compute.gated(x, a.weight, vectors), gated)
    residual, after = torch.randn(rows, 96), Norm(torch.rand(96) + 0.5, 1e-6)
    before = residual.clone()
    product = ops.rms_norm(seen(x, kind) @ c.values.T, after.weight, after.eps)
    close(compute.add(residual, x, c.weight, after, 0.5), (residual.double() + product.double()) * 0.5)
    assert torch.equal(residual, before)


@pytest.mark.native
@pytest.mark.parametrize("kind", [StoredType.Q8_0, StoredType.Q6_K, StoredType.IQ4_XS, StoredType.BF16])
@pytest.mark.parametrize("rows", [0, 1, 3, 25])
def test_fine_activations_lose_almost_nothing(compute: Compute, kind: StoredType, rows: int) -> None:
    matrix, x = Matrix(compute, kind, 200, 512), torch.randn(rows, 512)
    expected = x.double() @ matrix.values.T
    found = compute.fine_linear(x, matrix.weight)
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=1e-4 * (expected.abs().amax().item() if rows else 1)
    )


@pytest.mark.native
@pytest.mark.parametrize("kind", [StoredType.Q4_0, StoredType.Q4_K, StoredType.F32])
@pytest.mark.parametrize("rows", [0, 1, 9, 64])
def test_experts_equal_a_loop_over_rows(compute: Compute, kind: StoredType, rows: int) -> None:
    count, hidden, width = 6, 256, 256
    stacks = [
        [Matrix(compute, kind, *shape) for _ in range(count)] for shape in [(width, hidden)] * 2 + [(hidden, width)]
    ]
    stack = compute.stack(*([matrix.weight for matrix in matrices] for matrices in stacks))
    x, shares = torch.randn(rows, hidden), torch.rand(rows, 2)
    indices = (
        torch.stack([torch.randperm(count)[:2] for _ in range(rows)]) if rows else torch.empty(0, 2, dtype=torch.int64)
    )
    expected = torch.zeros(rows, hidden, dtype=torch.float64)
    for row in range(rows):
        for share, e in zip(shares[row], indices[row].tolist(), strict=True):
            entered = seen(x[row : row + 1], kind)
            gate, up = (entered @ matrices[e].values.T for matrices in stacks[:2])
            inner = (F.gelu(gate, approximate="tanh") * up).float()
            expected[row] += (share * (seen(inner, kind) @ stacks[2][e].values.T))[0]
    close(compute.experts(x, stack, shares, indices), expected)


@pytest.mark.native
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_row_that_is_not_finite_is_lost_alone(compute: Compute, bad: float, rows: int) -> None:
    """Documented in native/matmul.h: its results are NaN, nobody else's."""
    matrix, x = Matrix(compute, StoredType.Q4_0, 40, 256), torch.randn(rows, 256)
    good = compute.linear(x, matrix.weight)
    x[rows // 2, 77] = bad
    for found in (compute.linear(x, matrix.weight), compute.fine_linear(x, matrix.weight)):
        assert found[rows // 2].isnan().all()
    rest = torch.arange(rows) != rows // 2
    assert torch.equal(compute.linear(x, matrix.weight)[rest], good[rest])


@pytest.mark.native
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-38, 1e-20, 1e20, 1e36])
def test_activations_of_any_size(compute: Compute, scale: float) -> None:
    matrix, x = Matrix(compute, StoredType.Q8_0, 32, 64), torch.randn(3, 64)
    expected = x.double() @ matrix.values.T
    found = compute.linear(x * scale, matrix.weight).double() / (scale or 1)
    if scale < 1e-37:  # below float32's normal numbers: nothing may be made up, little is kept
        assert found.isfinite().all()
        assert found.abs().max() <= 2 * expected.abs().max()
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())


@pytest.mark.native
def test_the_door_refuses_what_does_not_fit(compute: Compute) -> None:
    matrix, x = Matrix(compute, StoredType.Q4_0, 32, 64), torch.randn(2, 64)
    with pytest.raises(ValueError, match="width 64"):
        compute.linear(torch.randn(2, 32), matrix.weight)
    with pytest.raises(ValueError, match="contiguous float32"):
        compute.linear(x.double(), matrix.weight)
    with pytest.raises(ValueError, match="contiguous float32"):
        compute.linear(torch.randn(64, 2).t(), matrix.weight)
    with pytest.raises(ValueError, match="gated"):
        compute.gated(x, matrix.weight, torch.randn(2, 31))
    with pytest.raises(ValueError, match="differ in shape"):
        compute.geglu(x, matrix.weight, Matrix(compute, StoredType.Q4_0, 16, 64).weight)
    with pytest.raises(ValueError, match="bytes do not fit"):
        compute.packed("Q4_0", 32, 64, torch.empty(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no kernel"):
        compute.packed("Q9", 32, 64, torch.empty(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no such kernel set"):
        Compute("abacus", 1)


@pytest.mark.native
def test_an_expert_outside_the_stack_is_refused(compute: Compute) -> None:
    matrix = Matrix(compute, StoredType.Q4_0, 32, 32)
    stack = compute.stack([matrix.weight], [matrix.weight], [matrix.weight])
    with pytest.raises(ValueError, match="outside the stack"):
        compute.experts(torch.randn(1, 32), stack, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64))


@pytest.mark.native
def test_weights_keep_their_memory_alive(compute: Compute) -> None:
    weight, expected = kept(compute)
    torch.full((1 << 20,), 7.0)  # what was freed would be written over here
    assert torch.equal(compute.linear(torch.ones(1, 32), weight), expected)


def kept(compute: Compute) -> tuple[Weight, Tensor]:
    matrix = Matrix(compute, StoredType.F32, 16, 32)
    return matrix.weight, compute.linear(torch.ones(1, 32), matrix.weight)


def test_training_takes_the_twin() -> None:
    x = torch.randn(3, 16, requires_grad=True)
    ops.rms_norm(x, torch.ones(16), 1e-6).sum().backward()
    assert x.grad is not None


def test_pure_torch_by_choice_says_so() -> None:
    code = "from pocketgem import kernels; print(kernels.native, kernels.status.reason)"
    env = {**os.environ, "POCKETGEM_KERNELS": "torch"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "None pure torch, because POCKETGEM_KERNELS=torch"


def test_an_install_without_a_compiler_is_pure_torch_and_says_so(tmp_path: Path) -> None:
    """Builds a wheel from a copy of the sources with a compiler that does not exist."""
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "src", "native"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    for built in tmp_path.rglob("_native*.so"):
        built.unlink()
    env = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", "PIP_NO_INPUT": "1"}
    call = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path / "out"),
        "-v",
        str(tmp_path),
    ]
    built_log = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
    assert built_log.returncode == 0, built_log.stdout + built_log.stderr
    assert "installed without native kernels (no working C++ compiler)" in built_log.stdout + built_log.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from pocketgem import kernels; print(kernels.__file__, kernels.status.reason)"
    env["PYTHONPATH"] = str(tmp_path / "site")
    call = [sys.executable, "-S", "-c", code]  # -S: without the editable install that runs these tests
    out = subprocess.run(call, env=env, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) in out
    assert "pure torch: the compiled kernels are not in this install" in out


@pytest.mark.native
def test_experts_of_different_types_are_refused(compute: Compute) -> None:
    """Also of plain types: what a matrix that is not packed has for its format must not decide."""
    wide, narrow = (compute.plain(torch.ones(32, 32, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    packed = compute.packed("Q4_0", 32, 32, torch.zeros(32 * 18, dtype=torch.uint8))
    for other in (narrow, packed):
        for stacks in ([[wide, other], [wide] * 2, [wide] * 2], [[wide] * 2, [wide] * 2, [wide, other]]):
            with pytest.raises(ValueError, match="types differ"):
                compute.stack(*stacks)
    for _ in range(200):  # of memory that was used before
        compute.stack([compute.plain(torch.ones(32, 32)) for _ in range(2)], [wide] * 2, [wide] * 2)


def low_rank(rank: int, cols: int, out: int) -> tuple[Tensor, Tensor, float]:
    """Numbers over many powers of two, as bfloat16 has them: the kernels keep those unrounded."""
    a, b = (torch.randn(shape) * 10 ** torch.empty(shape).uniform_(-3, 0) for shape in ((rank, cols), (out, rank)))
    return a.bfloat16().float(), b.bfloat16().float(), 0.37


@pytest.mark.native
@pytest.mark.parametrize("rank", [1, 4, 13])
@pytest.mark.parametrize(("cols", "out"), [(32, 16), (96, 50), (40, 7)])
def test_low_rank_changes_equal_their_twin(compute: Compute, rank: int, cols: int, out: int) -> None:
    """Each row by its own adapter or by none; the same bits whoever comes with it."""
    changes = [low_rank(rank + 3 * i, cols, out) for i in range(3)]
    packed = [compute.low_rank(*change) for change in changes]
    x, before = torch.randn(29, cols), torch.randn(29, out)
    runs = [(0, 1, 0), (2, 9, 1), (9, 11, 0), (13, 29, 2)]
    found = compute.change_(before.clone(), x, [(start, stop, packed[who]) for start, stop, who in runs])
    expected = before.double()
    for start, stop, who in runs:
        a, b, scale = changes[who]
        expected[start:stop] += scale * (x[start:stop].double() @ a.double().T @ b.double().T)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for row in (1, 11, 12):
        assert torch.equal(found[row], before[row]), "a row of nobody was changed"
    for row, who in ((0, 0), (5, 1), (10, 0), (28, 2)):
        alone = compute.change_(before[row : row + 1].clone(), x[row : row + 1].clone(), [(0, 1, packed[who])])
        assert torch.equal(alone[0], found[row])


@pytest.mark.native
@pytest.mark.parametrize("rows", [2, 13, 45])
def test_changed_products_equal_their_twin(compute: Compute, rows: int) -> None:
    """What is added before the gate, to normed rows."""
    gate, up = (Matrix(compute, StoredType.Q4_0, 70, 96) for _ in range(2))
    x, norm = torch.randn(rows, 96) * 3, Norm(torch.rand(96) + 0.5, 1e-6)
    entered = ops.rms_norm(x, norm.weight, norm.eps)
    kept = [low_rank(8, 96, 70), low_rank(5, 96, 70)]
    one, two = (compute.low_rank(*change) for change in kept)
    opened, raised = (seen(entered, StoredType.Q4_0) @ matrix.values.T for matrix in (gate, up))
    for products, (a, b, scale) in zip((opened, raised), kept, strict=True):
        products[1:] += scale * (entered[1:].double() @ a.double().T @ b.double().T)
    found = compute.geglu(x, gate.weight, up.weight, norm, ([(1, rows, one)], [(1, rows, two)]))
    close(found, F.gelu(opened, approximate="tanh") * raised)
    assert torch.equal(found[:1], compute.geglu(x[:1].contiguous(), gate.weight, up.weight, norm))
    plain = compute.linear(x, gate.weight, norm)
    changed = compute.linear(x, gate.weight, norm, [(1, rows, one)])
    close(changed, torch.cat((plain[:1].double(), opened[1:])))
