"""Media rows inside a prompt: law 1 with images, and the names under which their past is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pocketgem.engine.inserts import Insert, begun, past_ids, uncut
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams, Sequence
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import PromptError
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma, Soft
from tests.test_laws import finish, make_model, prompt

NEW_TOKENS = 12
PLACES = ((3, 5), (12, 7))  # two images in a prompt of 26 ids


LAYOUTS = [
    pytest.param(("gemma3", False), id="gemma3"),
    pytest.param(("E2B", False), id="E2B"),
    pytest.param(("26B-A4B", False), id="26B-A4B"),
    pytest.param(("26B-A4B", True), id="26B-A4B-packed", marks=pytest.mark.native),
    pytest.param(("gemma3", True), id="gemma3-packed", marks=pytest.mark.native),
]


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return make_model(*request.param, tmp_path_factory.mktemp("twin"))


def key(number: int) -> bytes:
    return bytes([number]) * 32


def image(model: Gemma, number: int, start: int, count: int) -> Insert:
    vectors = torch.randn(count, model.config.hidden_size, generator=torch.Generator().manual_seed(number))
    return Insert(start, count, "image", key(number), vectors, whole=model.config.sees_images_whole)


def request(model: Gemma, *numbers: int, ids: list[int] | None = None) -> Request:
    images = [image(model, number, *place) for number, place in zip(numbers, PLACES, strict=True)]
    known = ids or prompt(0, 26)
    return Request("test", tuple(known), SamplingParams(max_tokens=NEW_TOKENS), inserts=tuple(images))


@torch.inference_mode()
def scores(model: Gemma, known: list[int], inserts: tuple[Insert, ...]) -> Tensor:
    """The definition: one pass over everything; the last row's logits."""
    rows = torch.cat([torch.arange(insert.start, insert.stop) for insert in inserts])
    step = Step.packed([model.new_cache()], [len(known)], skip=False)
    if model.config.sees_images_whole:
        last = step.positions.clone()
        for insert in inserts:
            last[insert.start : insert.stop] = insert.stop - 1
        step = replace(step, last=last)
    soft = Soft(rows, torch.cat([insert.vectors for insert in inserts]))
    return model.logits(model(model.embed(torch.tensor(known), soft), step))[-1]


def without_cache(model: Gemma, asked: Request) -> list[int]:
    known = list(asked.prompt_ids)
    for _ in range(NEW_TOKENS):
        known.append(int(scores(model, known, asked.inserts).argmax()))
    return known[len(asked.prompt_ids) :]


@pytest.fixture(scope="module")
def expected(model: Gemma) -> list[int]:
    return without_cache(model, request(model, 1, 2))


def test_cached_and_in_chunks_that_would_cut_an_image(model: Gemma, expected: list[int]) -> None:
    for chunk in (1, 2, 4, 11, 64):
        engine = Engine(model, Scheduler(chunk=chunk))
        assert finish(engine, engine.submit(request(model, 1, 2)))[0] == expected, chunk


def test_beside_strangers_without_images(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model, Scheduler(chunk=9))
    strangers = [Request("s", tuple(prompt(n)), SamplingParams(max_tokens=NEW_TOKENS)) for n in range(3)]
    running = [engine.submit(stranger) for stranger in strangers]
    mine = engine.submit(request(model, 1, 2))
    assert finish(engine, mine, *running)[0] == expected


def test_a_kept_past_serves_the_same_images_only(model: Gemma, expected: list[int]) -> None:
    engine = Engine(model)
    finish(engine, engine.submit(request(model, 1, 2)))
    again = engine.submit(request(model, 1, 2))
    assert finish(engine, again)[0] == expected
    assert again.num_reused == 25
    other = engine.submit(request(model, 1, 3))
    assert finish(engine, other)[0] == without_cache(model, request(model, 1, 3))
    assert other.num_reused <= 11, "the past of another second image was taken"


def test_another_image_gives_other_scores(model: Gemma) -> None:
    one, other = request(model, 1, 2), request(model, 1, 3)
    assert not torch.equal(scores(model, prompt(0, 26), one.inserts), scores(model, prompt(0, 26), other.inserts))


def test_a_past_never_ends_within_a_whole_image(model: Gemma) -> None:
    engine = Engine(model)
    ids = prompt(0, 19)  # ends with the second image
    finish(engine, engine.submit(request(model, 1, 2, ids=ids)))
    again: Sequence = engine.submit(request(model, 1, 2, ids=ids))
    assert finish(engine, again)[0] == without_cache(model, request(model, 1, 2, ids=ids))


# ---- integers --------------------------------------------------------------------------------------------------------


def insert(start: int, count: int, number: int = 1, *, whole: bool = True) -> Insert:
    return Insert(start, count, "image", key(number), None, whole)


def test_names_of_media_are_no_ids_and_differ_with_the_content() -> None:
    ids = [7] * 10
    one, other = past_ids(ids, [insert(2, 3)]), past_ids(ids, [insert(2, 3, 2)])
    assert one[:1].tolist() == [7]
    assert one[6:].tolist() == [7] * 4
    assert (one[1:6] < -1).all()
    assert (one[1:6] != other[1:6]).all()
    assert np.array_equal(one[1:6], past_ids([9] * 30, [insert(20, 3)])[19:24]), "a name depends on its place"


@given(st.integers(0, 30), st.integers(1, 40), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=5))
def test_a_step_never_ends_within_a_whole_image(start: int, count: int, gaps: list[tuple[int, int]]) -> None:
    inserts, at = [], 0
    for gap, size in gaps:
        inserts.append(insert(at + gap, size))
        at += gap + size
    start = begun(inserts, start)
    taken = uncut(inserts, start, count)
    assert taken >= 1
    assert not any(one.start < start + taken < one.stop for one in inserts)


def test_media_that_are_not_whole_may_be_cut() -> None:
    assert uncut([insert(2, 8, whole=False)], 0, 5) == 5
    assert begun([insert(2, 8, whole=False)], 5) == 5


@pytest.mark.parametrize(("start", "count"), [(9, 2), (0, 0), (11, 1)])
def test_rows_outside_the_prompt_are_refused(start: int, count: int) -> None:
    with pytest.raises(PromptError, match="media rows"):
        Request("r", (1,) * 10, SamplingParams(), inserts=(insert(start, count),))
