"""Training: PEFT's loss curve on the same weights and data, every trained part reached, examples as they are used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from pocketgem import LLM
from pocketgem.adapters.effect import attach_and_prove_
from pocketgem.adapters.peft import open_adapter
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.errors import FormatError, InputError
from pocketgem.model.cache import Step
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Taken, Trainer
from pocketgem.tune.loss import loss_of
from pocketgem.tune.recipe import Recipe, plan_training
from pocketgem.tune.run import CURVE, prepare
from tests.test_parity import load
from tests.text_fixtures import gemma4_metadata
from tests.twins import BLOCKS, LAYOUTS, VOCAB, make_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def examples(count: int = 24) -> list[Example]:
    """A rule that can be learned: the answer repeats the prompt's last id."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(count):
        prompt = torch.randint(5, VOCAB, (int(torch.randint(4, 14, (), generator=generator)),), generator=generator)
        found.append(Example((*prompt.tolist(), *[int(prompt[-1])] * 3, 1), len(prompt)))
    return found


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_loss_is_that_of_steps_with_a_cache(layout: str, tmp_path: Path) -> None:
    model, batch = load(make_twin(layout, tmp_path).folder), examples(3)
    total, count = 0.0, 0
    with torch.inference_mode():
        for one in batch:
            cache = model.new_cache()
            for at, id in enumerate(one.ids[:-1]):
                step = Step.packed([cache], [1])
                scores = model.logits(model(model.embed(torch.tensor([id])), step))[0].log_softmax(-1)
                step.commit()
                if at + 1 >= one.answer:
                    total, count = total - float(scores[one.ids[at + 1]]), count + 1
    assert float(loss_of(model, batch)) == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize("layout", ["gemma3", "E2B", "26B-A4B"])
def test_the_loss_curve_is_pefts(layout: str, tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path)
    model = load(twin.folder)
    recipe = Recipe(rank=4, alpha=8, steps=20, batch=4, learning_rate=5e-3, clip=1e6)
    trainer = Trainer(model, plan_training(model, recipe), recipe, examples())
    theirs = peft_curve(twin.oracle, trainer, recipe)
    ours = [taken.loss for taken in trainer.run()]
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[-1] < ours[0] - 0.3, "nothing was learned"


def peft_curve(oracle: torch.nn.Module, trainer: Trainer, recipe: Recipe) -> list[float]:
    """The same start, data and optimizer in PEFT over transformers."""
    chosen = [
        name
        for name, module in oracle.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "tower" not in name
        and any(name.endswith(f".{target}") for target in trainer.deltas)
    ]
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=chosen)
    model = peft.get_peft_model(oracle, config)
    parts = dict(model.named_parameters())
    for name, delta in trainer.deltas.items():
        for part, value in (("lora_A", delta.A), ("lora_B", delta.B)):
            (key,) = (key for key in parts if key.endswith(f".{name}.{part}.default.weight"))
            parts[key].data.copy_(value.detach())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    losses = []
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        total, count = torch.zeros(()), 0
        for one in trainer.batch(step):
            logits = model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0].float()
            targets = torch.tensor(one.ids[one.answer :])
            total = total + torch.nn.functional.cross_entropy(logits[one.answer - 1 : -1], targets, reduction="sum")
            count += len(targets)
        loss = total / count
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_trained_part_gets_a_gradient(layout: str, tmp_path: Path) -> None:
    model = load(make_twin(layout, tmp_path).folder)
    recipe = Recipe(rank=2, steps=1, batch=6)
    plan = plan_training(model, recipe)
    assert 0 < plan.parameters < sum(shape[0] * shape[1] for shape in plan.shapes.values())
    trainer = Trainer(model, plan, recipe, examples())
    trainer.check_gradients()
    trainer.close()
    assert all("LoRA" not in type(module).__name__ for module in model.modules())


# ---- a run, from files to a folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    source = open_checkpoint(resolve(make_twin("gemma3", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "base.gguf", StoredType.Q8_0, vocabulary=gemma4_metadata())
    return folder / "base.gguf"


def write_examples(path: Path) -> Path:
    lines = [json.dumps({"prompt": f"say {word}", "completion": f" {word} {word}"}) for word in ("hello", "world", "a")]
    path.write_text("\n".join(lines * 3), encoding="utf-8")
    return path


RECIPE = Recipe(rank=3, alpha=6, steps=8, batch=2, learning_rate=3e-3)


def losses(folder: Path) -> list[str]:
    return [line.split(",")[1] for line in (folder / CURVE).read_text().splitlines()[1:]]


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_curve_and_the_same_adapter(base: Path, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "data.jsonl")
    whole = prepare(LLM.load(base, dtype=torch.float32), data, tmp_path / "whole", RECIPE)
    whole.train(lambda taken, going: None)
    cut = replace(prepare(LLM.load(base, dtype=torch.float32), data, tmp_path / "cut", RECIPE), save_every=3)

    def kill(taken: Taken, going: object) -> None:
        if taken.step == 5:  # two steps after the last state
            raise Killed

    with pytest.raises(Killed):
        cut.train(kill)
    assert not (tmp_path / "cut" / "adapter").exists(), "an adapter of half a run"
    cut.train(lambda taken, going: None)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (open_adapter(tmp_path / name / "adapter") for name in ("whole", "cut"))
    assert one.identity == other.identity


def test_what_was_trained_acts_where_it_will_run(base: Path, tmp_path: Path) -> None:
    llm = LLM.load(base, dtype="stored")  # over the file's own blocks
    run = prepare(llm, write_examples(tmp_path / "data.jsonl"), tmp_path / "run", RECIPE, command="pocketgem tune")
    going = run.train(lambda taken, going: None)
    assert going.losses[-1] < going.losses[0]
    record = json.loads((tmp_path / "run" / "adapter" / "run.json").read_text())
    assert record["command"] == "pocketgem tune"
    assert record["trained"]["q_proj"] == llm.model.config.num_layers
    effect = attach_and_prove_(LLM.load(base).model, open_adapter(tmp_path / "run" / "adapter").deltas)
    assert effect.kl > 0


def test_a_state_of_another_run_is_refused(base: Path, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "data.jsonl")
    llm = LLM.load(base, dtype=torch.float32)
    prepare(llm, data, tmp_path / "run", RECIPE).train(lambda taken, going: None)
    with pytest.raises(InputError, match="other options or other examples"):
        prepare(llm, data, tmp_path / "run", replace(RECIPE, rank=4)).train(lambda taken, going: None)
    (tmp_path / "run" / "state.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(FormatError, match=r"state\.safetensors"):
        prepare(llm, data, tmp_path / "run", RECIPE).train(lambda taken, going: None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON object is expected"),
        ('{"prompt": "a"}', "completion must be a text"),
        ('{"prompt": "a", "completion": ""}', "completion must be a text"),
        ('{"messages": []}', "must be a list that ends with the answer"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "not the assistant's"),
        (json.dumps({"prompt": "a " * 900, "completion": "b"}), "raise --max-length"),
    ],
)
def test_a_bad_line_is_named(base: Path, line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(FormatError, match=rf"line 2.*{reason}"):
        prepare(LLM.load(base, dtype=torch.float32), path, tmp_path, RECIPE)


def test_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_examples(tmp_path / "data.jsonl")
    out = str(tmp_path / "run")
    options = ["tune", str(base), str(data), "--out", out, "--rank", "2", "--steps", "2", "--batch", "2"]
    assert main([*options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(said["adapter"]).is_dir()
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert main([*options, "--dtype", "auto"]) == 2
    assert main(["tune", str(base), str(tmp_path / "none.jsonl"), "--out", out]) == 2
    assert main([*options, "--modules", "abacus"]) == 2
    assert "this model has no abacus" in capsys.readouterr().err


def test_a_trained_adapter_is_put_on_when_a_model_is_loaded(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(LLM.load(base, dtype=torch.float32), write_examples(tmp_path / "data.jsonl"), tmp_path, RECIPE)
    run.train(lambda taken, going: None)
    adapter = tmp_path / "adapter"
    plain, changed = LLM.load(base), LLM.load(base, adapter=adapter)
    assert changed.attached is not None
    assert changed.attached.effect.kl > 0
    assert plain.score("say hello hello").logprobs != changed.score("say hello hello").logprobs
    assert main(["run", str(base), "say hello", "--adapter", str(adapter), "--max-tokens", "2", "--raw"]) == 0
    assert "adapter on" in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    assert main(["run", str(base), "say hello", "--adapter", str(adapter)]) == 2
