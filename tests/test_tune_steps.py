"""A step of training: PEFT's curve with DoRA and on stacks of experts; the same step in parts, or computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from pocketgem.model.blocks import BlockLinear
from pocketgem.model.build import build_model
from pocketgem.model.gemma import Gemma
from pocketgem.tune.batches import Batches
from pocketgem.tune.data import Example
from pocketgem.tune.head import cross_entropy
from pocketgem.tune.loop import Trainer, parts_of
from pocketgem.tune.loss import loss_of
from pocketgem.tune.recipe import Recipe, plan_training
from tests.test_blocks import in_blocks
from tests.test_parity import load
from tests.test_tune import examples
from tests.twins import make_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RECIPE = Recipe(rank=2, alpha=4, steps=5, batch=4, learning_rate=5e-3, clip=1e6)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twin("gemma3", tmp_path_factory.mktemp("gemma3")).folder


def trainer_for(model: Gemma, recipe: Recipe, learned: list[Example] | None = None) -> Trainer:
    return Trainer(model, plan_training(model, recipe), recipe, examples() if learned is None else learned)


def step_of(folder: Path, recipe: Recipe, learned: list[Example] | None = None) -> dict[str, torch.Tensor]:
    """What is trained after two steps."""
    trainer = trainer_for(load(folder), recipe, learned)
    for _, _ in zip(range(2), trainer.run(), strict=False):
        pass
    return {name: part.detach() for name, part in parts_of(trainer.deltas)}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, part in ours.items():
        torch.testing.assert_close(part, theirs[name], atol=2e-5, rtol=1e-3, msg=name)


# ---- PEFT's numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "options"), [("gemma3", {"dora": True}), ("26B-A4B", {"modules": ("experts",)})])
def test_the_loss_curve_is_pefts(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path)
    trainer = trainer_for(load(twin.folder), replace(RECIPE, learning_rate=2e-2, **options), examples(4))
    theirs = list(peft_losses(twin.oracle, trainer))
    ours = [taken.loss for taken in trainer.run()]
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[-1] < ours[0] - 0.02, "nothing was learned"


def peft_losses(oracle: torch.nn.Module, trainer: Trainer) -> Iterator[float]:
    """The same start, data and optimizer."""
    model = peft.get_peft_model(oracle, peft_config(oracle, trainer))
    parts = dict(model.named_parameters())
    for name, value in parts_of(trainer.deltas):
        key, values = peft_part(name, value.detach(), list(parts))
        assert parts[key].shape == values.shape
        parts[key].data.copy_(values)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], weight_decay=0.0)
    for step in range(trainer.recipe.steps):
        optimizer.param_groups[0]["lr"] = trainer.recipe.rate(step)
        total, count = torch.zeros(()), 0
        for one in trainer.batch(step):
            logits = model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0].float()
            targets = torch.tensor(one.ids[one.answer :])
            total = total + torch.nn.functional.cross_entropy(logits[one.answer - 1 : -1], targets, reduction="sum")
            count += len(targets)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        yield float(total.detach() / count)


def peft_config(oracle: torch.nn.Module, trainer: Trainer) -> peft.LoraConfig:
    recipe = trainer.recipe
    if "experts" in recipe.modules:
        stacks = ["experts.gate_up_proj", "experts.down_proj"]
        return peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=[], target_parameters=stacks)
    chosen = [name for name, _ in oracle.named_modules() if any(name.endswith(f".{one}") for one in trainer.deltas)]
    return peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=chosen, use_dora=recipe.dora)


def peft_part(name: str, value: torch.Tensor, keys: list[str]) -> tuple[str, torch.Tensor]:
    """PEFT's name and form of a trained part."""
    module, _, part = name.rpartition(".")
    word = {"A": "lora_A", "B": "lora_B", "magnitude": "lora_magnitude_vector"}[part]
    if ".experts." not in name:
        (key,) = (key for key in keys if f".{module}.{word}." in key)
        return key, value
    experts, _, stack = module.rpartition(".")
    inner = ".base_layer" if stack == "gate_up_proj" else ""
    (key,) = (key for key in keys if key.endswith(f"{experts}{inner}.{word}.default.weight"))
    flat = value.reshape(-1, value.shape[-1]) if part == "A" else value.permute(1, 2, 0).reshape(value.shape[1], -1)
    return key, flat


# ---- the same step ---------------------------------------------------------------------------------------------------


def test_parts_and_layers_computed_again_make_the_same_step(gemma3: Path) -> None:
    plain = step_of(gemma3, RECIPE)
    close(step_of(gemma3, replace(RECIPE, accumulate=3)), plain)
    close(step_of(gemma3, replace(RECIPE, forgetful=True)), plain)
    close(step_of(gemma3, replace(RECIPE, forgetful=True, dropout=0.2)), step_of(gemma3, replace(RECIPE, dropout=0.2)))


def test_examples_are_blind_for_each_other_whatever_their_lengths(gemma3: Path) -> None:
    model, batch = load(gemma3), examples(5)
    long = Example(batch[0].ids[:-1] * 8 + (1,), 20)
    every = [*batch, long, Example((2, 7), 1)]
    alone = [(float(loss_of(model, [one])), one.learned) for one in every]
    mean = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    assert float(loss_of(model, every)) == pytest.approx(mean, abs=1e-5)


def test_steps_are_filled_up_to_their_tokens() -> None:
    learned = examples(20)
    batches = Batches(learned, 8, 60, seed=1)
    steps = [batches.of(step) for step in range(20)]
    sizes = [sum(len(one.ids) for one in step) for step in steps]
    assert max(sizes) <= 60
    assert all(size + len(after[0].ids) > 60 for size, after in zip(sizes, steps[1:], strict=False))
    flat = [one for step in steps for one in step]
    assert {id(one) for one in flat[:20]} == {id(one) for one in learned}, "an epoch leaves one out"
    again = Batches(learned, 8, 60, seed=1)
    assert again.of(13) == steps[13]


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_head_in_one_pass_is_cross_entropy(
    cap: float | None, gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketgem.tune.head.BLOCK", 77)
    model = load(gemma3)
    model.config = replace(model.config, final_logit_softcapping=cap)
    hidden = torch.randn(9, model.config.hidden_size).mul_(9).requires_grad_()
    targets = torch.arange(9) * 50
    scores = hidden @ model.lm_head.weight.T
    scores = scores if cap is None else torch.tanh(scores / cap) * cap
    wanted = torch.nn.functional.cross_entropy(scores, targets, reduction="sum")
    loss = cross_entropy(model, hidden, targets)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(one * 0.7, hidden) for one in (loss, wanted))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_blocks_have_the_gradient_of_their_values_and_keep_none(tmp_path: Path) -> None:
    model = build_model(in_blocks("gemma3", tmp_path), torch.float32, blocks=True)
    layer = model.get_submodule("layers.0.mlp.down_proj")
    assert isinstance(layer, BlockLinear)
    x = torch.randn(5, layer.in_features, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    assert not kept, "unpacked weights are kept for the way back"
    pull = torch.randn_like(out)
    (ours,) = torch.autograd.grad(out, x, pull)
    torch.testing.assert_close(ours, pull @ layer.blocks.unpacked(0, layer.out_features), atol=1e-5, rtol=1e-4)
