"""Steps of one row over buffers that never move: the same answers, and every row comes home."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pocketgem.model.still as still
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.still import StillDecoder
from tests.test_laws import finish, prompt, submit
from tests.test_parity import load
from tests.twins import LAYOUTS, make_twin

STILL = [layout for layout in LAYOUTS if layout != "26B-A4B"]  # experts choose weights on the host
TOKENS = 40  # crosses the window of eight, and the first capacity below

ROUNDING = {"atol": 5e-5, "rtol": 1e-5}  # attention over all of a cache sums in another order than over its rows


@pytest.fixture(scope="module", params=STILL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return load(make_twin(request.param, tmp_path_factory.mktemp("twin")).folder)


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still, "LEAST_CAPACITY", 32)


def answers(model: Gemma, *, single: bool) -> list[list[int]]:
    """Two conversations one after the other, then both at once, then what was kept is used again."""
    model.shortcut = StillDecoder(model) if single else None
    engine, params = Engine(model), SamplingParams(max_tokens=TOKENS)
    found = [finish(engine, submit(engine, prompt(seed), params))[0] for seed in (0, 1)]
    both = [submit(engine, prompt(seed), SamplingParams(max_tokens=count)) for seed, count in ((2, 12), (3, 30))]
    found += finish(engine, *both)  # the second goes on alone
    longer = [*prompt(0), *found[0], 7, 8]
    again = engine.submit(Request("again", tuple(longer), params))
    found += finish(engine, again)
    assert again.num_reused == len(longer) - 3, "rows did not come home"
    model.shortcut = None
    return found


def test_the_same_ids_as_step_by_step(model: Gemma) -> None:
    assert answers(model, single=True) == answers(model, single=False)


@torch.inference_mode()
def test_the_same_hidden_rows_and_the_same_cache(model: Gemma) -> None:
    ids = prompt(5, 60)
    caches = [model.new_cache() for _ in range(2)]
    decoder = StillDecoder(model)
    for cache in caches:
        step = Step.packed([cache], [11])
        model(model.embed(torch.tensor(ids[:11])), step)
        step.commit()
    for at in range(11, 60):
        rows = []
        for cache, run in zip(caches, (model, decoder), strict=True):
            step = Step.packed([cache], [1])
            rows.append(run(model.embed(torch.tensor(ids[at : at + 1])), step))
            step.commit()
        torch.testing.assert_close(*rows, **ROUNDING)
    assert caches[1].is_lent
    one, other = (cache.fork() for cache in caches)
    assert not caches[1].is_lent
    for index, store in one.stores.items():
        oldest = store.room.oldest(60)
        twin = other.stores[index]
        for name in ("k", "v"):
            mine = getattr(store, name)[oldest - store.room.first : 60 - store.room.first]
            theirs = getattr(twin, name)[oldest - twin.room.first : 60 - twin.room.first]
            torch.testing.assert_close(mine, theirs, **ROUNDING)


def test_models_with_experts_are_left_to_forward(tmp_path: Path) -> None:
    model = load(make_twin("26B-A4B", tmp_path).folder)
    assert not StillDecoder(model).takes(Step.packed([model.new_cache()], [1]), adapters=False)


@torch.inference_mode()
def test_more_rows_than_one_are_left_to_forward(model: Gemma) -> None:
    decoder = StillDecoder(model)
    assert not decoder.takes(Step.packed([model.new_cache()], [2]), adapters=False)
    assert not decoder.takes(Step.packed([model.new_cache(), model.new_cache()], [1, 1]), adapters=False)
    assert not decoder.takes(Step.packed([model.new_cache()], [1]), adapters=True)
