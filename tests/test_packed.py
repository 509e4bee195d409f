"""Models over packed weights: what they compute is what the plain definition computes, up to int8 activations.

With plain float32 weights nothing is quantised but keys and values; with block types the distance is that of
activations rounded to 127 steps. Random twins magnify both (their attention is sharp): a mistake gives a divergence of
the order of 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from pocketgem import kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.kernels.compute import Compute
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed, can_pack
from pocketgem.model.cache import Step
from pocketgem.model.fused import FusedAttention, FusedLayer
from pocketgem.model.gemma import Gemma, Shortcut
from tests.test_parity import PROMPT_TOKENS, prompt, run
from tests.twins import BLOCKS, LAYOUTS, make_twin

pytestmark = pytest.mark.native
TYPES = (StoredType.F32, StoredType.Q8_0, StoredType.Q4_0)


def usable_sets() -> list[str]:
    return [status.name for status in kernels.choice().each if status.usable]


@pytest.fixture(scope="module", params=list(LAYOUTS))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[StoredType, Checkpoint]:
    """One twin written as every type."""
    folder = tmp_path_factory.mktemp("packed")
    source = open_checkpoint(resolve(make_twin(request.param, folder / "twin", BLOCKS).folder))
    for type in TYPES:
        export_gguf(source, folder / f"{type}.gguf", type)
    return {type: open_checkpoint(resolve(folder / f"{type}.gguf")) for type in TYPES}


def packed(checkpoint: Checkpoint, set: str | None = None, threads: int = 2) -> Gemma:
    return build_packed(checkpoint, Compute(set or usable_sets()[0], threads))[0]


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence over rows of logits, in nats."""
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize("set", usable_sets())
def test_the_fused_path_equals_the_definition_where_nothing_is_quantised(
    files: dict[StoredType, Checkpoint], set: str
) -> None:
    plain, ours = build_model(files[StoredType.F32], torch.float32), packed(files[StoredType.F32], set)
    assert isinstance(ours.layers[0], FusedLayer) or isinstance(ours.layers[0].self_attn, FusedAttention)
    for sizes in ([PROMPT_TOKENS], [7, 1, PROMPT_TOKENS - 8]):
        expected, found = run(plain, sizes), run(ours, sizes)
        assert divergence(expected, found) < 2e-3  # keys and values are bfloat16 here


@pytest.mark.parametrize("set", usable_sets())
@pytest.mark.parametrize("type", [StoredType.Q8_0, StoredType.Q4_0])
def test_packed_weights_stay_near_the_same_weights_unpacked(
    files: dict[StoredType, Checkpoint], set: str, type: StoredType
) -> None:
    plain, ours = build_model(files[type], torch.float32), packed(files[type], set)
    assert divergence(run(plain, [PROMPT_TOKENS]), run(ours, [PROMPT_TOKENS])) < 3e-2


def test_threads_change_no_bit(files: dict[StoredType, Checkpoint]) -> None:
    one, three = packed(files[StoredType.Q4_0], threads=1), packed(files[StoredType.Q4_0], threads=3)
    assert torch.equal(run(one, [PROMPT_TOKENS]), run(three, [PROMPT_TOKENS]))


@torch.inference_mode()
def test_a_row_alone_and_among_ten_has_the_same_bits(files: dict[StoredType, Checkpoint]) -> None:
    model = packed(files[StoredType.Q4_0])
    caches = [model.new_cache() for _ in range(10)]
    for i, cache in enumerate(caches):
        step = Step.packed([cache], [5 + i])
        model(model.embed(torch.tensor(prompt()[i : 5 + 2 * i])), step)
        step.commit()
    next_ids = torch.arange(20, 30)
    twins = [cache.fork() for cache in caches]
    together = model.logits(model(model.embed(next_ids), Step.packed(caches, [1] * 10)))
    for i, twin in enumerate(twins):
        alone = model.logits(model(model.embed(next_ids[i : i + 1]), Step.packed([twin], [1])))
        assert torch.equal(alone[0], together[i])


@torch.inference_mode()
@pytest.mark.parametrize("set", usable_sets())
def test_many_rows_and_few_have_the_same_bits(files: dict[StoredType, Checkpoint], set: str) -> None:
    """Many rows go by unpacked tiles, and what lies within the MLP is rounded where it is made; few do neither."""
    model, ids = packed(files[StoredType.Q4_0], set), torch.arange(20, 180)

    def hidden(size: int) -> torch.Tensor:
        cache, found = model.new_cache(), []
        for piece in ids.split(size):
            step = Step.packed([cache], [len(piece)], logits=[len(piece)])
            found.append(model(model.embed(piece), step))
            step.commit()
        return torch.cat(found)

    assert torch.equal(hidden(160), hidden(8))


@torch.inference_mode()
@pytest.mark.parametrize("set", usable_sets())
def test_decode_in_one_call_has_the_bits_of_the_loop(files: dict[StoredType, Checkpoint], set: str) -> None:
    """Longer than the twins' window, so that buffers move on the way; one sequence, and three of other lengths."""
    model = packed(files[StoredType.Q4_0], set)
    caches = [model.new_cache() for _ in range(3)]
    for i, cache in enumerate(caches):
        step = Step.packed([cache], [9 + 3 * i])
        model(model.embed(torch.tensor(prompt()[: 9 + 3 * i])), step)
        step.commit()
    twins = [cache.fork() for cache in caches]
    took = model.shortcut is not None
    assert took == all(isinstance(layer, FusedLayer) and layer.plain.routed is None for layer in model.layers)
    for count in (1, 3):
        for id in range(20, 40):
            ids = torch.arange(id, id + count)
            one, other = (Step.packed(some[:count], [1] * count) for some in (caches, twins))
            assert not took or cast(Shortcut, model.shortcut).takes(one, adapters=False)
            inputs = model.embed(ids)
            before = inputs.x.clone()
            assert torch.equal(model.ready(inputs, one)(), model(model.embed(ids), other))
            assert torch.equal(inputs.x, before)
            one.commit()
            other.commit()


@torch.inference_mode()
def test_steps_that_rows_leave_early_are_left_to_the_loop(files: dict[StoredType, Checkpoint]) -> None:
    model = packed(files[StoredType.Q4_0])
    if model.shortcut is not None:
        assert not model.shortcut.takes(Step.packed([model.new_cache()], [2]), adapters=False)
        both = Step.packed([model.new_cache()], [2], logits=[2])
        assert model.shortcut.takes(both, adapters=True)
        assert not model.shortcut.takes(replace(both, last=torch.tensor([1, 1])), adapters=False)


def test_inputs_can_be_used_twice(files: dict[StoredType, Checkpoint]) -> None:
    model = packed(files[StoredType.Q8_0])
    with torch.inference_mode():
        inputs = model.embed(torch.tensor(prompt()))
        before = inputs.x.clone()
        model(inputs, Step.packed([model.new_cache()], [len(before)]))
    assert torch.equal(inputs.x, before)


def test_only_files_with_block_types_are_packed(files: dict[StoredType, Checkpoint]) -> None:
    assert can_pack(files[StoredType.Q4_0])
    assert not can_pack(files[StoredType.F32])


def test_narrow_heads_run_unfused(tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))  # heads of 16
    model = packed(source)
    assert not isinstance(model.layers[0], FusedLayer)
    expected = run(build_model(source, torch.float32), [PROMPT_TOKENS])
    torch.testing.assert_close(run(model, [PROMPT_TOKENS]), expected, atol=1e-3, rtol=0)
