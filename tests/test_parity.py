"""Law 2: a tiny twin of every layout equals transformers' logits in float32, through our own name mapping."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.model.build import build_model
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from tests.twins import LAYOUTS, VOCAB, Twin, make_twin, oracle_logits

TOLERANCE = 1e-4
PROMPT_TOKENS = 29  # over three windows of eight


@pytest.fixture(scope="module", params=list(LAYOUTS))
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return make_twin(request.param, tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="module")
def model(twin: Twin) -> Gemma:
    return load(twin.folder)


@pytest.fixture(scope="module")
def expected(twin: Twin) -> torch.Tensor:
    return oracle_logits(twin, prompt())


def load(path: Path) -> Gemma:
    return build_model(open_checkpoint(resolve(path)), torch.float32)


@lru_cache
def prompt() -> list[int]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(5, VOCAB, (PROMPT_TOKENS,), generator=generator).tolist()  # past the 3n per-layer table too


def chunks(sizes: list[int]) -> Iterator[list[int]]:
    ids = prompt()
    for size in sizes:
        yield ids[:size]
        ids = ids[size:]


@torch.inference_mode()
def run(model: Gemma, sizes: list[int]) -> torch.Tensor:
    """Logits of every prompt token, fed in pieces of ``sizes``."""
    cache, rows = model.new_cache(), []
    for piece in chunks(sizes):
        step = Step.packed([cache], [len(piece)], logits=[len(piece)])
        rows.append(model.logits(model(model.embed(torch.tensor(piece)), step)))
        step.commit()
    return torch.cat(rows)


@pytest.mark.parametrize(
    "sizes",
    [[PROMPT_TOKENS], [10, 10, 9], [3, 17, 1, 8], [1] * PROMPT_TOKENS],
    ids=["at once", "in chunks", "in uneven chunks", "step by step"],
)
def test_logits_equal_transformers(model: Gemma, expected: torch.Tensor, sizes: list[int]) -> None:
    torch.testing.assert_close(run(model, sizes), expected, atol=TOLERANCE, rtol=0)
