"""A run: turns and calls as they are served, validation, a kill at any moment, what is planned, checked and logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketgem import LLM
from pocketgem.adapters.peft import open_adapter
from pocketgem.cli import main
from pocketgem.errors import FormatError, InputError, PromptError, RunError, WeightsError
from pocketgem.tune.data import Reader
from pocketgem.tune.load import expert_load, shift
from pocketgem.tune.loop import Taken, Trainer
from pocketgem.tune.planner import Part, parts
from pocketgem.tune.preflight import failed, preflight
from pocketgem.tune.recipe import Recipe, plan_training
from pocketgem.tune.run import CURVE, prepare
from tests.scripted import save_scripted
from tests.test_parity import load
from tests.test_tune import examples
from tests.twins import make_twin

RECIPE = Recipe(rank=2, alpha=4, steps=6, batch=3, learning_rate=3e-3, valid_every=1)
TOOLS = [{"type": "function", "function": {"name": "work", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"id": "a", "type": "function", "function": {"name": "work", "arguments": '{"n": 3}'}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scripted(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM.load(folder, dtype=torch.float32, threads=1)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def model(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def write(path: Path, count: int = 9) -> Path:
    lines = [{"messages": [user(f"hello {at}"), model("world " * (at % 3 + 1))]} for at in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


# ---- conversations ---------------------------------------------------------------------------------------------------


def reader(llm: LLM, **more: Any) -> Reader:
    end = llm.tokenizer.token_id("<turn|>")
    assert end is not None
    return Reader(llm.tokenizer, llm.chat_prompt, end, 500, **more)


def test_every_turn_of_the_assistant_is_learned_as_it_is_served(llm: LLM) -> None:
    said = [user("hello"), model("world"), user("the"), model("", tool_calls=[CALL])]
    said += [{"role": "tool", "tool_call_id": "a", "content": "ok"}, model("word")]
    (example,) = reader(llm).examples({"messages": said, "tools": TOOLS}, "here")
    decoded = [llm.tokenizer.decode(example.ids[start:stop], skip_special=False) for start, stop in example.spans]
    assert decoded == ["world<turn|>", "<|tool_call>call:work{n:3}<tool_call|><|tool_response>", "word<turn|>"]
    for at, (start, _) in zip((1, 3, 5), example.spans, strict=True):
        assert list(example.ids[:start]) == llm.chat_prompt(said[:at], tools=TOOLS)
    after = llm.chat_prompt([*said, user("x")], tools=TOOLS)
    assert list(example.ids) == after[: len(example.ids)], "the whole is not what the template writes"


def test_a_call_at_the_end_is_what_the_template_writes(llm: LLM) -> None:
    said = [user("hello"), model("", tool_calls=[CALL])]
    (one,) = reader(llm).examples({"messages": said, "tools": TOOLS}, "here")
    raw = [user("hello"), model("", raw="<|tool_call>call:work{n:3}<tool_call|>")]
    (other,) = reader(llm).examples({"messages": raw, "tools": TOOLS}, "here")
    assert one.ids[:-1] == other.ids[:-1]
    assert llm.tokenizer.decode(one.ids[-1:], skip_special=False) == "<|tool_response>"


def test_turns_can_be_left_out_and_everything_can_be_learned(llm: LLM) -> None:
    said = [user("hello"), model("world", weight=0), user("the"), model("word")]
    (one,) = reader(llm).examples({"messages": said}, "here")
    assert llm.tokenizer.decode(one.ids[one.answer :], skip_special=False) == "word<turn|>"
    (every,) = reader(llm, learn="all").examples({"messages": said}, "here")
    assert every.learned == len(every.ids) - 1
    with pytest.raises(FormatError, match=r"here: message 0 has the role"):
        reader(llm).examples({"messages": [{"role": "who", "content": "a"}, model("b")]}, "here")


# ---- validation ------------------------------------------------------------------------------------------------------


def test_a_run_stops_when_validation_gets_no_better_and_keeps_the_best(llm: LLM, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=40, learning_rate=1.0, clip=1e6, patience=2)  # so fast that it gets worse
    run = prepare(llm, write(tmp_path / "data.jsonl"), tmp_path / "run", recipe, valid=0.3)
    assert (len(run.examples), len(run.valid)) == (6, 3)
    seen: list[tuple[float, dict[str, torch.Tensor]]] = []
    going = run.train(lambda taken, going: seen.append((taken.valid, dict(going.best.parts))))
    losses = [loss for loss, _ in seen]
    assert len(losses) < 40
    assert "no better validation" in going.stopped
    assert going.best.loss == min(losses)
    assert going.best.step == losses.index(min(losses)) + 1 == len(losses) - 2
    adapter = open_adapter(tmp_path / "run" / "adapter")
    name = next(iter(adapter.deltas))
    assert torch.equal(adapter.deltas[name].B, seen[going.best.step - 1][1][f"{name}.B"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["validation"] == {"examples": 3, "best": going.best.loss, "at_step": going.best.step}
    again = run.train(lambda taken, going: pytest.fail("a run that is over takes another step"))
    assert again.best.loss == going.best.loss


def test_who_watches_may_end_a_run(llm: LLM, tmp_path: Path) -> None:
    run = prepare(llm, write(tmp_path / "data.jsonl"), tmp_path / "run", RECIPE)
    going = run.train(lambda taken, going: taken.step == 2)
    assert (len(going.losses), going.stopped) == (2, "stopped by who watched")
    assert (tmp_path / "run" / "adapter").is_dir()
    with pytest.raises(InputError, match="patience needs examples"):
        prepare(llm, tmp_path / "data.jsonl", tmp_path / "run", replace(RECIPE, patience=1))
    with pytest.raises(InputError, match="leave none to learn from"):
        prepare(llm, write(tmp_path / "one.jsonl", 1), tmp_path / "run", RECIPE, valid=0.5)


# ---- killed ----------------------------------------------------------------------------------------------------------


def command(folder: Path, data: Path, out: Path) -> list[str]:
    options = ["--rank", "2", "--steps", "24", "--batch", "2", "--threads", "1", "--save-every", "2", "--valid", "0.3"]
    return [sys.executable, "-m", "pocketgem", "tune", str(folder), str(data), "--out", str(out), "--json", *options]


def test_a_process_that_is_killed_goes_on_to_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    assert main(command(folder, data, tmp_path / "whole")[3:]) == 0
    killed = command(folder, data, tmp_path / "cut")
    process = subprocess.Popen(killed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == 7:
            break
    time.sleep(int.from_bytes(os.urandom(1), "big") / 255 * 0.05)  # anywhere in the steps after
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert main(killed[3:]) == 0
    curves = [(tmp_path / name / CURVE).read_text() for name in ("whole", "cut")]
    assert curves[0] == curves[1]
    one, other = (open_adapter(tmp_path / name / "adapter").identity for name in ("whole", "cut"))
    assert one == other


# ---- planned, looked at, logged --------------------------------------------------------------------------------------


def planned(layout: str, folder: Path, *modules: str) -> dict[str, Part]:
    base = load(make_twin(layout, folder).folder)
    recipe = Recipe(rank=2, modules=modules) if modules else Recipe(rank=2)
    plan = plan_training(base, recipe)
    found = parts(base, plan)
    assert sum(part.added for part in found) == plan.parameters
    total = {id(parameter): parameter.numel() for parameter in base.parameters()}
    tied = base.embed_tokens.weight.numel() if base.config.tied_head else 0
    counted = sum(part.parameters for part in found if part.bytes)
    assert 0 <= sum(total.values()) + tied - counted < 0.02 * counted, "a matrix is missing from the table"
    return {part.kind: part for part in found}


def test_the_plan_knows_each_layout(tmp_path: Path) -> None:
    plan = planned("E2B", tmp_path / "E2B")
    assert plan["k_proj"].trained == plan["k_proj"].count < plan["q_proj"].count
    assert "read another layer's keys" in plan["k_proj"].why
    assert (plan["per_layer_input_gate"].trained, plan["per_layer_input_gate"].added) == (0, 0)
    assert "name it in --modules" in plan["per_layer_input_gate"].why
    assert "clipped" in plan["vision tower"].why
    plan = planned("31B", tmp_path / "31B")
    assert "the values are the keys" in plan["v_proj"].why
    plan = planned("26B-A4B", tmp_path / "26B", "experts", "q_proj")
    assert plan["experts"].trained == plan["experts"].count > 0
    assert plan["router"].trained == 0
    assert "shift is logged" in plan["router"].why
    assert plan["up_proj"].trained == 0


def test_the_command_line_says_what_it_does(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*command(folder, write(tmp_path / "data.jsonl"), tmp_path / "run")[3:], "--learn", "all"]
    assert main([*options, "--plan"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["event"] == "plan"
    assert {"q_proj", "embed_tokens"} <= {part["kind"] for part in line["parts"]}
    assert main([*options, "--dora", "--tokens-per-step", "40", "--patience", "9"]) == 0
    events = [*map(json.loads, capsys.readouterr().out.splitlines())]
    assert [event["event"] for event in events if event["event"] != "step"] == ["plan", *["check"] * 4, "done"]
    assert all(event["ok"] for event in events if event["event"] == "check")
    assert events[-1]["best"]["loss"] == min(event["valid"] for event in events if event.get("valid"))
    for bad in (["--valid", "2"], ["--learn", "nothing"], ["--dora", "--dropout", "0.1"], ["--modules", "experts"]):
        assert main([*options, *bad]) == 2


def test_what_is_not_well_is_found_before_the_first_step(llm: LLM, tmp_path: Path, monkeypatch: Any) -> None:
    data = write(tmp_path / "data.jsonl")
    run = prepare(llm, data, tmp_path / "run", RECIPE)
    assert all(check.ok for check in preflight(run, data))
    other = replace(run, examples=[replace(one, ids=(7, *one.ids[1:])) for one in run.examples])
    assert [check.name for check in preflight(other, data) if not check.ok] == ["template"]
    monkeypatch.setattr("pocketgem.tune.preflight._with_cache", lambda run, example: 1e3)
    with pytest.raises(RunError, match="loss with a cache"):
        failed(preflight(run, data))
    monkeypatch.setattr("pocketgem.tune.preflight.available", lambda device: 1 << 20)
    with pytest.raises(PromptError, match=r"--accumulate.*--checkpoint-layers.*smaller --batch"):
        preflight(run, data)


def test_a_shift_of_the_experts_load_is_seen(tmp_path: Path) -> None:
    base = load(make_twin("26B-A4B", tmp_path).folder)
    batch = examples(6)
    before = expert_load(base, batch)
    assert all(float(shares.sum()) == pytest.approx(1) for shares in before.values())
    assert all(one["moved"] == 0 for one in shift(before, expert_load(base, batch)).values())  # type: ignore[index]
    recipe = Recipe(rank=2, alpha=64, steps=4, batch=6, learning_rate=0.1, modules=("experts",))
    trainer = Trainer(base, plan_training(base, recipe), recipe, batch)
    assert isinstance([*trainer.run()][-1], Taken)
    moved = [one["moved"] for one in shift(before, expert_load(base, batch)).values()]  # type: ignore[index]
    assert 0 < max(moved) <= 1


# ---- from an adapter on ----------------------------------------------------------------------------------------------


def test_training_begins_at_an_adapter(llm: LLM, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    prepare(llm, data, tmp_path / "first", RECIPE).train(lambda taken, going: None)
    first = open_adapter(tmp_path / "first" / "adapter")
    scaled = replace(RECIPE, steps=2, alpha=8)  # another scale: the change is the same
    run = replace(prepare(llm, data, tmp_path / "second", scaled), start=first)
    losses: list[float] = []
    run.train(lambda taken, going: losses.append(taken.loss))
    trainer = Trainer(llm.model, run.plan, scaled, run.examples)
    cold = trainer.gradients(trainer.batch(0))
    trainer.begin_at(first.deltas)
    assert trainer.gradients(trainer.batch(0)) == pytest.approx(losses[0], abs=1e-5)
    trainer.close()
    assert losses[0] < cold - 0.05
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["began_at"] == first.identity


def test_an_adapter_of_another_plan_is_no_beginning(llm: LLM, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    prepare(llm, data, tmp_path / "first", replace(RECIPE, steps=1)).train(lambda taken, going: None)
    first = open_adapter(tmp_path / "first" / "adapter")
    for other in (replace(RECIPE, rank=3), replace(RECIPE, modules=("q_proj",)), replace(RECIPE, dora=True)):
        run = replace(prepare(llm, data, tmp_path / "second", other), start=first)
        with pytest.raises(WeightsError, match="begin at"):
            run.train(lambda taken, going: None)
