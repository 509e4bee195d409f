"""One run by two processes is the run of one: the same loss curve, the same adapter, whoever starts them."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketgem import LLM
from pocketgem.adapters.peft import open_adapter
from pocketgem.cli import main
from pocketgem.model.gemma import Gemma
from pocketgem.tune.data import Example
from pocketgem.tune.loop import Trainer
from pocketgem.tune.recipe import plan_training
from pocketgem.tune.run import CURVE, prepare
from tests.cli_models import save_model
from tests.spread_worker import RECIPE, load, work
from tests.twins import VOCAB, make_twin

TWINS = ("gemma3", "E2B", "26B-A4B")


def examples(count: int = 24) -> list[Example]:
    """Answers of very different lengths: a mean of the workers' means would be another loss."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for at in range(count):
        prompt = torch.randint(5, VOCAB, (4 + at % 7,), generator=generator).tolist()
        found.append(Example((*prompt, *[prompt[-1]] * (1 + at % 9), 1), len(prompt)))
    return found


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_twin(name, tmp_path_factory.mktemp("twin")).folder for name in TWINS}


def test_two_workers_have_the_loss_curve_of_one(twins: dict[str, Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, 2, twins, examples(), tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    alone = {name: curve(load(folder)) for name, folder in twins.items()}
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for name, losses in alone.items():
        whole, sharded = first[f"{name} False"], first[f"{name} True"]
        assert whole["losses"] == pytest.approx(losses, abs=1e-4)
        assert sharded["losses"] == pytest.approx(losses, abs=1e-4)
        assert second[f"{name} False"] == whole, "the workers have not trained the same"
        assert second[f"{name} True"]["parts"] == sharded["parts"]
        assert sharded["here"] < 0.7 * whole["here"]


def curve(model: Gemma) -> list[float]:
    trainer = Trainer(model, plan_training(model, RECIPE), RECIPE, examples())
    losses = [taken.loss for taken in trainer.run()]
    assert trainer.gradients(trainer.batch(0)) < losses[0] - 0.02, "nothing was learned"
    return losses


# ---- the verb, by each launcher --------------------------------------------------------------------------------------

STEPS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = ("aqua", "bee " * 6, "c", "dodo dodo", "e" * 11)
    path.write_text("\n".join(json.dumps({"prompt": f"say {word}", "completion": word * 2}) for word in words))
    return path


def command(base: Path, data: Path, out: Path) -> list[str]:
    wanted = {"--rank": 2, "--steps": STEPS, "--batch": 3, "--learning-rate": 0.005, "--out": out}
    return ["tune", str(base), str(data), *(str(word) for pair in wanted.items() for word in pair)]


@pytest.fixture(scope="module")
def alone(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(base, data, out)) == 0
    return out


def same(one: Path, other: Path) -> None:
    curves = [
        [float(line.split(",")[1]) for line in (run / CURVE).read_text().splitlines()[1:]] for run in (one, other)
    ]
    assert len(curves[0]) == STEPS
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    ours, theirs = (open_adapter(run / "adapter").deltas for run in (one, other))
    for name in ours:
        torch.testing.assert_close(ours[name].whole(), theirs[name].whole(), atol=1e-4, rtol=0)


class Killed(Exception):
    pass


def test_two_workers_go_on_from_the_state_of_one(base: Path, data: Path, alone: Path, tmp_path: Path) -> None:
    llm, out = LLM.load(base, dtype=torch.float32), tmp_path / "run"
    recipe = replace(RECIPE, rank=2, alpha=16.0, steps=STEPS, batch=3, clip=1.0)
    run = replace(prepare(llm, data, out, recipe), save_every=2)

    def kill(taken: object, going: object) -> None:
        if run.folder.joinpath("state.safetensors").exists():
            raise Killed

    with pytest.raises(Killed):
        run.train(kill)
    assert main([*command(base, data, out), "--workers", "2"]) == 0
    same(out, alone)


def test_accelerate_starts_them(base: Path, data: Path, alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason='needs Accelerate: pip install "pocketgem[accelerate]"')
    out = tmp_path / "run"
    # without --multi_gpu it starts one process where there are no cards; with it, they meet over gloo
    how = (
        "--multi_gpu --num_machines 1 --num_processes 2 --main_process_port 0 --mixed_precision no --dynamo_backend no"
    )
    words = [sys.executable, "-m", "accelerate.commands.launch", *how.split(), "-m", "pocketgem"]
    words += command(base, data, out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    same(out, alone)


def test_what_workers_cannot_share_is_refused(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(base, data, tmp_path / "run")
    assert main([*words, "--batch", "1", "--workers", "2"]) == 2
    assert "2 workers cannot share a batch of 1" in capsys.readouterr().err
    assert main([*words, "--shard"]) == 2
    assert "give --workers too" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()


def test_ray_train_starts_them(base: Path, data: Path, alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason='needs Ray Train: pip install "pocketgem[ray-train]"')
    out = tmp_path / "run"
    words = [sys.executable, "-m", "pocketgem", *command(base, data, out), "--ray", "--workers", "2"]
    words += ["--threads", "1", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    same(out, alone)
    assert json.loads(done.stdout)["adapter"] == str(out / "adapter")
    assert json.loads((out / "adapter" / "run.json").read_text())["command"].split()[1:2] == ["tune"]
    bad = [*words[:4], str(tmp_path / "none"), *words[5:]]
    done = subprocess.run(bad, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "no such file" in done.stderr
