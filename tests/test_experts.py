"""Experts under a budget: the bits of all in memory, whatever fits, and nothing lost when a turn breaks off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketgem import kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import CheckpointError, InputError, RunError
from pocketgem.kernels.compute import Compute
from pocketgem.memory.experts import ExpertStore
from pocketgem.model.build_packed import build_packed
from pocketgem.model.gemma import Gemma
from pocketgem.model.quant import store_of
from tests.test_parity import PROMPT_TOKENS, prompt, run
from tests.twins import BLOCKS, make_twin

pytestmark = pytest.mark.native
LAYERS, EXPERTS, TOP = 4, 8, 3  # of the twin


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The 26B-A4B's twin in Q4_0."""
    folder = tmp_path_factory.mktemp("experts")
    source = open_checkpoint(resolve(make_twin("26B-A4B", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q4_0)
    return open_checkpoint(resolve(folder / "twin.gguf"))


def built(checkpoint: Checkpoint, budget: int | None, threads: int = 2) -> Gemma:
    name = kernels.choice().name
    assert name is not None
    cache = Path(f"{checkpoint.where}.pocketgem")
    return build_packed(checkpoint, Compute(name, threads), cache, expert_memory=budget)[0]


def store(model: Gemma) -> ExpertStore:
    found = store_of(model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint) -> Gemma:
    return built(checkpoint, None)


@pytest.fixture(scope="module")
def slot(checkpoint: Checkpoint) -> int:
    """Bytes of a slot."""
    return store(built(checkpoint, 1 << 30)).slot_size


@pytest.mark.parametrize("slots", [TOP, TOP + 1, 7, 13, LAYERS * EXPERTS])
@pytest.mark.parametrize("sizes", [[PROMPT_TOKENS], [1] * 9, [7, 1, PROMPT_TOKENS - 8]], ids=["whole", "one", "some"])
def test_every_budget_gives_the_same_bits(
    checkpoint: Checkpoint, whole: Gemma, slot: int, slots: int, sizes: list[int]
) -> None:
    ours = built(checkpoint, slots * slot)
    assert store(ours).slots == slots
    for _ in range(2):  # the second time some are in memory
        assert torch.equal(run(ours, sizes), run(whole, sizes))
