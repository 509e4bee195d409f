"""Sweeps: what may be tried is checked, what was tried is compared, and a killed sweep ends as one that was not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from pocketgem import LLM
from pocketgem.adapters.peft import open_adapter
from pocketgem.cli import main
from pocketgem.errors import InputError
from pocketgem.model.lora import attach_, detach_
from pocketgem.tune.loop import Taken
from pocketgem.tune.loss import loss_over
from pocketgem.tune.recipe import Recipe
from pocketgem.tune.sweep import JOURNAL, Sweep, set_up
from pocketgem.tune.sweep_results import Results
from pocketgem.tune.sweep_space import Range, Space, read_space
from pocketgem.tune.sweep_tried import Tried
from tests.cli_models import save_model

SPACE = """
rank: {choices: [1, 2]}
learning_rate: {log_range: [1e-6, 3e-2]}
modules: {choices: ["q_proj,v_proj", [down_proj]]}
steps: 10
batch: 2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_space_says_what_is_fixed_and_what_is_free(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, SPACE + "alpha: {range: [8, 32], step: 8}\nseed: {range: [1, 3]}"), seed=7)
    assert space.fixed == Recipe(steps=10, batch=2, seed=7)
    assert list(space.free) == ["rank", "learning_rate", "modules", "alpha", "seed"]
    assert space.free["learning_rate"] == Range(1e-6, 3e-2, whole=False, log=True)
    assert (space.free["alpha"].count, space.free["seed"].count, space.count) == (4, 3, None)
    assert space.recipe({"modules": ("down_proj",), "rank": 2}).modules == ("down_proj",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rank: [", "not YAML"),
        ("- rank", "a field of the recipe"),
        ("rank: 4", "nothing to try"),
        ("ranks: {choices: [1]}", "ranks is no field of a recipe"),
        ("rank: {choice: [1]}", "rank has 'choice'"),
        ("rank: {choices: [1], range: [1, 2]}", "rank must have one of"),
        ("rank: {choices: 4}", "rank: choices must be a list"),
        ("rank: {choices: []}", "rank: 0 choices"),
        ("rank: {choices: [4, 4]}", "rank: a choice stands there twice"),
        ("rank: {choices: [1.5]}", r"rank: '1\.5' is given where a whole number is expected"),
        ("rank: {choices: [yes]}", "rank: 'True' is given where a whole number"),
        ("rank: {choices: [0, 4]}", "rank: rank is '0', expected 1 to 1024"),
        ("rank: {range: [4]}", "rank: a range has two ends"),
        ("rank: {range: [4, 2]}", "rank: the range must rise"),
        ("rank: {range: [4, 2000]}", "rank: rank is '2000'"),
        ("rank: {range: [4, 8], step: 9}", "rank: step must be above 0"),
        ("warmup: {log_range: [0, 1]}", "warmup: a log_range begins above 0"),
        ("learning_rate: {range: [low, high]}", "learning_rate: 'low' is given where a number"),
        ("learning_rate: {range: [1e-3, .inf]}", "learning_rate: 'inf' is given"),
        ("stabilised: {range: [0, 1]}", "stabilised is no number"),
        ("stabilised: {choices: [1]}", "stabilised: '1' is given where true or false"),
        ("modules: {choices: [[1]]}", "modules: names are expected"),
    ],
)
def test_a_space_that_is_none_is_refused_by_the_key(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_space(written(tmp_path, text))


def test_weights_tell_which_parameter_mattered() -> None:
    space = Space(Recipe(), {"rank": Range(1, 8, whole=True), "alpha": Range(1, 8, whole=False)})
    tried = [
        Tried(at, "done", float(at // 2), {"rank": 1 + at // 2, "alpha": 1.0 + at % 2}, Path(), {}, 0.0)
        for at in range(6)
    ]
    assert Results(tried, 3.0, space, 1, "").weights() == pytest.approx({"rank": 1.0, "alpha": 0.0})


# ---- with the optimiser ----------------------------------------------------------------------------------------------

pytest_optuna = pytest.mark.usefixtures("optuna_is_there")


@pytest.fixture(scope="module")
def optuna_is_there() -> None:
    pytest.importorskip("optuna", reason='needs Optuna: pip install "pocketgem[sweep]"')


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def llm(base: Path) -> LLM:
    return LLM.load(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = ("aqua", "bee", "cd") * 6  # what is held back is like what is learned
    path.write_text("\n".join(json.dumps({"prompt": f"say {word}", "completion": word * 2}) for word in words))
    return path


def sweep_of(llm: LLM, data: Path, folder: Path, text: str = SPACE) -> Sweep:
    folder.mkdir(exist_ok=True)
    return set_up(llm, data, read_space(written(folder, text)), folder / "out")


@pytest_optuna
def test_the_best_of_many_runs_is_found_and_those_that_lag_are_stopped(llm: LLM, data: Path, tmp_path: Path) -> None:
    sweep = sweep_of(llm, data, tmp_path)
    assert len(sweep.held) == 2
    results = sweep.run(8)
    assert len(results.tried) == 8
    done = [one for one in results.ranked if one.state == "done"]
    stopped = [one for one in results.tried if one.state == "stopped"]
    assert stopped
    assert all(len(one.checks) < 10 and not (one.folder / "adapter").exists() for one in stopped)
    assert [one.score for one in done] == sorted(one.checks[10] for one in done)
    best = results.best
    assert best is not None
    assert best.score is not None
    assert best.score < results.base - 0.1
    attach_(llm.model, open_adapter(best.folder / "adapter").deltas)
    assert loss_over(llm.model, sweep.held) == pytest.approx(best.score, abs=1e-5)
    detach_(llm.model)
    assert loss_over(llm.model, sweep.held) == results.base, "a run has left something on the model"
    assert not list((tmp_path / "out").rglob("state.safetensors"))
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["state"] for row in rows] == [one.state for one in results.ranked]
    assert rows[0]["modules"] == best.values["modules"]


class Killed(Exception):
    pass


@pytest_optuna
def test_a_killed_sweep_ends_as_one_that_was_not(llm: LLM, data: Path, tmp_path: Path) -> None:
    whole = sweep_of(llm, data, tmp_path / "whole").run(4)

    def kill(number: int, taken: Taken, score: float | None) -> None:
        if number == 1 and taken.step == 6 and score is not None:
            raise Killed

    with pytest.raises(Killed):
        sweep_of(llm, data, tmp_path / "cut").run(4, look=kill)
    journal = tmp_path / "cut" / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "half a li')
    journal.with_name(f"{JOURNAL}.lock").touch()
    steps: list[int] = []
    cut = sweep_of(llm, data, tmp_path / "cut").run(4, look=lambda number, taken, score: steps.append(taken.step))
    assert steps[0] == 6, "the run did not go on from its state"
    assert [(one.values, one.state, one.checks) for one in cut.tried] == [
        (one.values, one.state, one.checks) for one in whole.tried
    ]


@pytest_optuna
def test_a_sweep_ends_when_nothing_new_is_left_or_time_is_up(llm: LLM, data: Path, tmp_path: Path) -> None:
    few = "rank: {choices: [1, 2]}\nstabilised: {choices: [true, false]}\nsteps: 2\nbatch: 1\n"
    sweep = sweep_of(llm, data, tmp_path / "few", few)
    assert sweep.run(50, seconds=0.0).best is None
    results = sweep.run(50)
    assert len({tuple(one.values.items()) for one in results.tried}) == len(results.tried) == 4
    with pytest.raises(InputError, match="another space, data or model"):
        sweep_of(llm, data, tmp_path / "few", few.replace("steps: 2", "steps: 3")).run(1)


@pytest_optuna
def test_the_verbs(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, out = str(written(tmp_path, SPACE)), str(tmp_path / "out")
    assert main(["sweep", str(base), str(data), "--space", space, "--out", out, "--trials", "2"]) == 0
    said = capsys.readouterr().err
    assert "learning_rate" in said
    assert "best: " in said
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert main(["tune", str(base), str(data), "--sweep", space, "--out", out, "--trials", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["trials"]) == 3
    assert Path(found["best"]["adapter"]).is_dir()
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    bad = str(written(tmp_path, "modules: {choices: [abacus]}"))
    assert main(["sweep", str(base), str(data), "--space", bad, "--out", out]) == 2
    assert "modules: this model has no abacus" in capsys.readouterr().err
