"""Law 3: a compiled kernel equals its torch twin over odd sizes; and the package works, and says so, without any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketgem import kernels
from pocketgem.model import ops

ROOT = Path(__file__).parents[1]
SIZES = st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 640, 1152, 2049]))


@pytest.mark.native
@given(rows=st.integers(0, 5), dim=SIZES, weighted=st.booleans(), half=st.booleans(), seed=st.integers(0, 99))
def test_rms_norm_equals_its_twin(rows: int, dim: int, weighted: bool, half: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(rows, dim) * 10 ** torch.empty(rows, 1).uniform_(-3, 3)).to(
        torch.bfloat16 if half else torch.float32
    )
    weight = torch.randn(dim) if weighted else None
    out = torch.empty_like(x)
    kernels.native.rms_norm(x, weight, out, 1e-6)
    tolerance = {"rtol": 8e-3, "atol": 1e-6} if half else {"rtol": 2e-6, "atol": 1e-6}  # one bf16 step; a few float32
    torch.testing.assert_close(out, ops.rms_norm_torch(x, weight, 1e-6), **tolerance)


@pytest.mark.native
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_on_extreme_values(value: float, dtype: torch.dtype) -> None:
    x = torch.full((2, 9), value, dtype=dtype)
    twin = ops.rms_norm_torch(x, None, 1e-6)
    torch.testing.assert_close(ops.rms_norm(x, None, 1e-6), twin, equal_nan=True)


@pytest.mark.native
def test_rms_norm_of_a_view_leaves_its_neighbours_alone() -> None:
    wide = torch.randn(4, 3, 32)
    before = wide.clone()
    out = ops.rms_norm(wide[:, 1], torch.ones(32), 1e-6)
    torch.testing.assert_close(out, ops.rms_norm_torch(wide[:, 1], torch.ones(32), 1e-6))
    assert torch.equal(wide, before)


@pytest.mark.native
def test_the_binding_refuses_what_does_not_fit() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="differ"):
        kernels.native.rms_norm(x, None, torch.empty(2, 9), 1e-6)
    with pytest.raises(ValueError, match="weight"):
        kernels.native.rms_norm(x, torch.ones(7), torch.empty(2, 8), 1e-6)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        kernels.native.rms_norm(x.double(), None, torch.empty(2, 8, dtype=torch.float64), 1e-6)
    with pytest.raises(TypeError):
        kernels.native.rms_norm(x.t(), None, torch.empty(8, 2), 1e-6)  # not contiguous


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
