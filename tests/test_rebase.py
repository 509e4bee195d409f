"""Rebase: what an adapter does is recorded, judged on another base, distilled into new weights, swapped or left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pocketgem import LLM
from pocketgem.adapters.manifest import manifest_of, read_manifest
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.registry import Registry
from pocketgem.adapters.save import Label, save_adapter
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.errors import CheckpointError, FormatError, InputError, PromptError, WeightsError
from pocketgem.model.lora import DoRALinear, LowRank, attach_, targets
from pocketgem.model.low_rank import places
from pocketgem.rebase.capsule import Capsule, load_capsule, save_capsule
from pocketgem.rebase.distill import Settings, Target, backward, distill, lengths_of
from pocketgem.rebase.divergence import bucketed, divergence, rows_of
from pocketgem.rebase.judge import Candidate, Judge, Limits, Marks, Verdict, better, is_same, token_f1
from pocketgem.rebase.prompts import OPENING, Given, free_prompts, more_prompts, read_prompts
from pocketgem.rebase.record import Wishes, record
from pocketgem.rebase.report import HTML, JSON, MARKDOWN, PICTURES
from pocketgem.rebase.run import ADAPTER, rebase, swap
from tests.adapter_files import made_up
from tests.text_fixtures import gemma4_metadata
from tests.twins import BLOCKS, make_twin

WISHES = Wishes(top=16, max_tokens=5)
QUICK = Settings(steps=16, batch=6, learning_rate=8e-3, every=8)


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old.gguf; new.gguf, the same with other numbers in its layers; far.gguf, another model of the same shapes."""
    folder = tmp_path_factory.mktemp("house")
    twin = make_twin("gemma3", folder / "old", BLOCKS)
    write_gguf(folder / "old")
    for name, noise in (("new", 0.12), ("far", 2.0)):
        torch.manual_seed(5)
        with torch.no_grad():
            for key, weight in twin.oracle.named_parameters():
                if "layers." in key and weight.ndim == 2:
                    weight.add_(torch.randn_like(weight) * weight.std() * noise)
        twin.oracle.save_pretrained(folder / name)
        write_gguf(folder / name)
    llm = load(folder, "old")
    generator = torch.Generator().manual_seed(2)
    deltas = {
        name: LowRank(torch.randn(3, shape[1], generator=generator), torch.randn(shape[0], 3, generator=generator), 0.1)
        for name, shape in targets(llm.model).items()
        if name.endswith(("q_proj", "down_proj"))
    }
    save_adapter(folder / "adapter", deltas, Label("old.gguf", 3, 0.3))
    lines = [json.dumps({"prompt": f"{word} {number} {other} they say"}) for number, word, other in spoken()]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    adapter = open_adapter(folder / "adapter")
    prompts = [one.ids for one in read_prompts(folder / "prompts.jsonl", llm)]
    save_capsule(folder / "capsule", record(llm, adapter, prompts, WISHES, quiet))
    return folder


def spoken() -> list[tuple[int, str, str]]:
    words = ("the", "then", "hello", "world", "work", "bread", "user", "model")
    return [(100 + 7 * at, words[at % 8], words[at // 8]) for at in range(32)]


def write_gguf(folder: Path) -> None:
    checkpoint = open_checkpoint(resolve(folder))
    export_gguf(checkpoint, folder.with_suffix(".gguf"), StoredType.Q8_0, vocabulary=gemma4_metadata())


def load(house: Path, name: str) -> LLM:
    return LLM.load(house / f"{name}.gguf", dtype=torch.float32, kept=0)


@pytest.fixture(scope="module")
def capsule(house: Path) -> Capsule:
    return load_capsule(house / "capsule")


# ---- capsules --------------------------------------------------------------------------------------------------------


def test_a_capsule_says_what_the_pair_says(house: Path, capsule: Capsule) -> None:
    llm = load(house, "old")
    rows = rows_of(llm.model, capsule.answers, capsule.tops.ids)
    torch.testing.assert_close(rows.logs, capsule.tops.base, atol=0.02, rtol=0)
    attach_(llm.model, open_adapter(house / "adapter").deltas)
    rows = rows_of(llm.model, capsule.answers, capsule.tops.ids)
    torch.testing.assert_close(rows.logs, capsule.tops.tuned, atol=0.02, rtol=0)
    greedy = [one for one in capsule.answers if one.greedy]
    assert len(greedy) == len({one.prompt for one in greedy}) == 32
    for one in greedy[:3]:
        said = llm.generate(list(one.ids[: one.answer]), temperature=0.0, max_tokens=5)
        assert said.ids == one.said
        assert [int(capsule.tops.ids[row, 0]) for row in one.rows] == list(one.said)


def test_parts_share_no_prompt(capsule: Capsule) -> None:
    parts = [{one.prompt for one in capsule.part(name)} for name in ("learn", "watch", "gate")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 32
    assert all(parts)


def test_a_capsule_comes_back_as_it_was(capsule: Capsule, tmp_path: Path) -> None:
    written = save_capsule(tmp_path / "one", capsule)
    again = load_capsule(tmp_path / "one")
    assert written == (tmp_path / "one").stat().st_size < 2_000_000
    assert again.digest == capsule.digest
    assert (again.about, again.answers) == (capsule.about, capsule.answers)
    assert torch.equal(again.tops.tuned, capsule.tops.tuned)


def changed_file(house: Path, path: Path, tensors: dict[str, torch.Tensor], **header: object) -> Path:
    """The capsule with other tensors or another header."""
    with safe_open(house / "capsule", framework="pt") as file:
        about = {**json.loads(file.metadata()["capsule"]), **header}
    save_file({**load_file(house / "capsule"), **tensors}, path, metadata={"capsule": json.dumps(about)})
    return path


def test_a_damaged_capsule_is_refused(house: Path, tmp_path: Path) -> None:
    tensors, path = load_file(house / "capsule"), tmp_path / "capsule"
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_capsule(path)
    path.write_bytes((house / "capsule").read_bytes()[:-5])
    with pytest.raises(FormatError):
        load_capsule(path)
    top, tuned, answers = tensors["top"], tensors["tuned"], tensors["answers"]
    beyond, infinite, longer, other = top.clone(), tuned.clone(), answers.clone(), top.clone()
    beyond[0, 0], infinite[0, 0], longer[0, 1] = 1 << 30, float("nan"), 1 << 20
    other[0] = other[0].flip(0)
    for part, reason in (
        ({"top": beyond}, "not of the vocabulary"),
        ({"tuned": infinite}, "no probabilities"),
        ({"tuned": torch.zeros_like(tuned)}, "no probabilities"),
        ({"tuned": tuned[1:].clone()}, "no fit"),
        ({"answers": longer}, "there are"),
        ({"answers": answers[:4].clone()}, "there are"),
        ({"top": other}, "damaged or changed"),
        ({"more": torch.zeros(1)}, "is no capsule"),
    ):
        with pytest.raises(FormatError, match=reason):
            load_capsule(changed_file(house, path, part))
    with pytest.raises(FormatError, match="version 2"):
        load_capsule(changed_file(house, path, {}, version=2))
    with pytest.raises(FormatError, match="damaged or changed"):
        load_capsule(changed_file(house, path, {}, adapter="0" * 64))


def test_prompts_are_read_line_by_line(house: Path, tmp_path: Path) -> None:
    llm, path = load(house, "old"), tmp_path / "prompts"
    path.write_text('hello world\n\n{"prompt": "the bread", "completion": " x"}\n', encoding="utf-8")
    assert [one.text for one in read_prompts(path, llm)] == ["hello world", "the bread"]
    for line, reason in (('{"prompt": 3}', "prompt or messages"), ("{", "not JSON"), ('{"messages": [{}]}', "no text")):
        path.write_text(f"hello\n{line}\n", encoding="utf-8")
        with pytest.raises(FormatError, match=rf"line 2.*{reason}"):
            read_prompts(path, llm)
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "none", llm)


def test_prompts_are_made_within_the_frame_of_those_given(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(house, "old")
    given = [Given(f"User: {word} bread\nCall:", llm.tokenize) for word in ("then", "their", "work")]
    answers = iter(f'{"abcdefghij"[at % 10]} {at}",' if at % 3 else "no string" for at in range(1000))

    def said(prompts: list[str], **options: object) -> list[object]:
        assert all(prompt.startswith('"') and prompt.endswith('\n"') and "User" not in prompt for prompt in prompts)
        return [replace(found, text=next(answers)) for found in [done] * len(prompts)]

    done = llm.generate("hello", max_tokens=1)
    monkeypatch.setattr(llm, "generate_many", said)
    made = [llm.detokenize(ids[1:]) for ids in more_prompts(llm, given, 20, 1, quiet)]
    assert len(set(made)) == 20
    assert all(text.startswith("User: ") and text.endswith(" bread\nCall:") for text in made)


def test_prompts_are_made_from_nothing(house: Path) -> None:
    llm = load(house, "old")
    made = free_prompts(llm, 9, 1, quiet)
    assert len(set(made)) == 9
    assert {len(ids) for ids in made} == {OPENING + 1}
    assert {ids[0] for ids in made} == {llm.tokenizer.bos_id}


# ---- the gate --------------------------------------------------------------------------------------------------------


def test_divergence_is_that_of_whole_distributions_cut_to_buckets() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(5, 50, generator=generator) * 2 for _ in range(2))
    ids = one.topk(12, -1).indices
    whole = (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
    cut = divergence(bucketed(one, ids), bucketed(other, ids))
    assert bool((cut >= 0).all())
    assert bool((cut <= whole + 1e-5).all())
    every = torch.arange(49).expand(5, 49)
    torch.testing.assert_close(divergence(bucketed(one, every), bucketed(other, every)), whole, atol=1e-4, rtol=1e-4)


def test_the_gate_takes_the_same_base_and_no_other_adapter(house: Path, capsule: Capsule) -> None:
    judge, deltas = Judge.of(load(house, "old"), capsule), open_adapter(house / "adapter").deltas
    marks = judge.measure(deltas)
    assert judge.verdict(marks, Limits()).accepted
    assert marks.kept > 0.999
    assert marks.match == marks.f1 == 1.0
    bare = judge.measure(None)
    assert bare.kept == pytest.approx(0.0, abs=1e-6)
    assert bare.f1 >= bare.match
    halved = {name: replace(one, B=one.B * 0.2) for name, one in deltas.items()}
    shuffled = dict(zip(deltas, [*list(deltas.values())[2:], *list(deltas.values())[:2]], strict=True))
    for bad in (None, halved, shuffled):
        verdict = judge.verdict(judge.measure(bad), Limits())
        assert not verdict.accepted
        assert "of the effect is kept" in verdict.reasons[0]


def test_token_f1() -> None:
    assert token_f1([1, 2, 3], [3, 2, 1]) == 1.0
    assert token_f1([1, 1, 2], [1, 3]) == pytest.approx(0.4)
    assert token_f1([1], [2]) == 0.0


# ---- distilling ------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_whole_loss(house: Path, capsule: Capsule) -> None:
    llm = load(house, "new")
    deltas = {
        name: replace(one, A=one.A.requires_grad_(), B=one.B.requires_grad_())
        for name, one in open_adapter(house / "adapter").deltas.items()
    }
    attach_(llm.model, deltas)
    for parameter in llm.model.parameters():
        parameter.requires_grad_(False)
    batch = capsule.part("watch")[:3]
    value = backward(llm.model, batch, capsule.tops.ids, capsule.tops.tuned)
    name = next(iter(deltas))
    found = deltas[name].B.grad[0, 0].item()
    at = deltas[name].B.data
    sides = []
    for move in (1e-2, -1e-2):
        at[0, 0] += move
        rows = rows_of(llm.model, batch, capsule.tops.ids)
        sides.append(float(divergence(capsule.tops.tuned[rows.numbers], rows.logs).mean()))
        at[0, 0] -= move
    assert found == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=0.05, abs=1e-5)
    assert value == pytest.approx(sum(sides) / 2, rel=1e-2)


@pytest.mark.parametrize("target", list(Target))
def test_distilling_brings_the_old_answers_back(house: Path, capsule: Capsule, target: Target) -> None:
    llm, old = load(house, "new"), open_adapter(house / "adapter").deltas
    judge = Judge.of(llm, capsule)
    before = judge.measure(old)
    deltas, curve = distill(llm.model, capsule, old, replace(QUICK, target=target), lambda done, total, kl: None)
    assert curve.watched[0][0] == 0
    assert min(kl for _, kl in curve.watched) < (0.8 if target is Target.COPY else 0.95) * curve.watched[0][1]
    assert dict(curve.watched)[curve.best] == min(kl for _, kl in curve.watched)
    assert all(torch.equal(one.A, open_adapter(house / "adapter").deltas[name].A) for name, one in old.items())
    if target is Target.COPY:
        assert judge.measure(deltas).kl < before.kl


def test_steps_that_lead_away_are_taken_back(house: Path, capsule: Capsule) -> None:
    """Each next try begins at the best weights and goes a quarter as far, so it ends nearer to them."""
    llm, old = load(house, "old"), open_adapter(house / "adapter").deltas  # the very base: there is nothing to gain
    settings = Settings(steps=5, batch=6, warmup=0, learning_rate=0.3, every=1, patience=9, enough=1.0, near=0.0)
    deltas, curve = distill(llm.model, capsule, old, settings, lambda done, total, kl: None)
    looks = [kl for _, kl in curve.watched]
    assert curve.best == 0
    assert looks[1] > 10 * looks[0]
    assert looks[5] < 0.1 * looks[1]
    assert all(torch.equal(deltas[name].B, one.B) for name, one in old.items())


def test_weights_that_pass_but_answer_otherwise_meet_new_ones() -> None:
    def candidate(kept: float, match: float, accepted: bool = True) -> Candidate:
        return Candidate(Marks(0.1, kept, match, match, 32), Verdict(accepted, ()))

    old, new = candidate(0.99, 0.9), candidate(0.995, 0.95)
    assert not is_same(old, Limits(), consistency=1.0)
    assert is_same(old, Limits(), consistency=0.92)
    assert not is_same(candidate(0.99, 1.0, accepted=False), Limits(), consistency=0.9)
    assert better(old, new) is new
    assert better(new, old) is new
    assert better(old, candidate(1.0, 1.0, accepted=False)) is old
    assert better(candidate(0.5, 0.5, accepted=False), candidate(0.6, 0.6, accepted=False)) is None


def test_settings_are_checked() -> None:
    with pytest.raises(PromptError, match="steps"):
        Settings(steps=0)
    with pytest.raises(PromptError, match="learning_rate"):
        Settings(learning_rate=float("nan"))


def test_lengths_of_dora_follow_what_was_learned(house: Path, capsule: Capsule) -> None:
    llm = load(house, "new")
    deltas = dict(made_up(llm.model, dora=True, choose=lambda name: name.endswith("up_proj")).deltas)
    _, curve = distill(llm.model, capsule, deltas, replace(QUICK, steps=2, every=2), lambda *_: None)
    assert len(curve.losses) == 2
    name, delta = next(iter(deltas.items()))
    attach_(llm.model, deltas)
    (module,) = (place.module for place in places(llm.model) if place.name == name)
    delta.B.mul_(3)  # the factors stay what they were
    x = torch.randn(4, delta.A.shape[1])
    again = DoRALinear(module.base, replace(delta, magnitude=lengths_of(module, delta)))
    torch.testing.assert_close(again(x), module(x))
    assert not torch.allclose(DoRALinear(module.base, delta)(x), module(x), atol=1e-3)


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_the_same_base_takes_the_old_weights(house: Path, tmp_path: Path) -> None:
    outcome = rebase(load(house, "old"), house / "adapter", tmp_path, house / "capsule")
    assert outcome.way == "reuse"
    assert outcome.same_base
    assert outcome.curve is None
    made, old = open_adapter(tmp_path / ADAPTER), open_adapter(house / "adapter")
    assert made.identity == old.identity
    assert read_manifest(tmp_path / ADAPTER).capsule == "capsule.safetensors"
    assert load_capsule(tmp_path / ADAPTER / "capsule.safetensors").about.adapter == made.identity
    with pytest.raises(InputError, match="there already"):
        rebase(load(house, "old"), house / "adapter", tmp_path, house / "capsule")


def test_a_strangers_capsule_is_refused(house: Path, tmp_path: Path) -> None:
    old = open_adapter(house / "adapter").deltas
    save_adapter(tmp_path / "other", {name: replace(one, B=one.B * 2) for name, one in old.items()}, Label("o", 3, 0.3))
    llm = load(house, "old")
    with pytest.raises(InputError, match="of another adapter"):
        rebase(llm, tmp_path / "other", tmp_path / "out", house / "capsule")
    with pytest.raises(CheckpointError, match=r"capsule\.safetensors"):
        rebase(llm, house / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_shape_is_refused_before_anything_is_learned(house: Path, tmp_path: Path) -> None:
    folder = make_twin("31B", tmp_path / "wide").folder
    export_gguf(open_checkpoint(resolve(folder)), tmp_path / "wide.gguf", StoredType.Q8_0, vocabulary=gemma4_metadata())
    with pytest.raises((WeightsError, InputError)):
        rebase(load(tmp_path, "wide"), registered(house, tmp_path / "store")[1], tmp_path / "out")


def registered(house: Path, folder: Path) -> tuple[Registry, Path]:
    """The adapter by the name ``caller``, its capsule beside it."""
    llm, source = load(house, "old"), folder.with_name("source")
    source.mkdir()
    for path in (house / "adapter").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "capsule.safetensors").write_bytes((house / "capsule").read_bytes())
    manifest = manifest_of(
        llm.model, llm.checkpoint, open_adapter(source), llm.tokenizer, capsule="capsule.safetensors"
    )
    registry = Registry(folder)
    return registry, registry.add("caller", source, manifest).folder


def ask(*arguments: str) -> int:
    return main(["adapters", *arguments])


def test_from_the_command_line(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry, _ = registered(house, tmp_path / "store")
    first = registry.find("caller")
    options = ["--registry", str(registry.folder), "--json"]
    prompts = ["--prompts", str(house / "prompts.jsonl"), "--count", "24", "--max-tokens", "4", "--top", "8"]
    assert ask("capsule", "caller", "--model", str(house / "old.gguf"), *prompts, *options) == 0
    said = json.loads(capsys.readouterr().out)
    first, bare = registry.find("caller"), first
    assert (said["prompts"], Path(said["capsule"]).parent) == (24, first.folder)
    assert len({one.prompt for one in load_capsule(Path(said["capsule"])).answers}) == 24
    assert (first.before, first.manifest.targets) == ((bare.identity,), bare.manifest.targets)
    # Far from the old base a few steps do not help: nothing is swapped, and the report says why.
    out = tmp_path / "far"
    failing = ["rebase", "caller", str(house / "far.gguf"), "--out", str(out), "--steps", "2", *options]
    assert ask(*failing) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["passed"]
    assert said["registered"] is None
    assert registry.find("caller").identity == first.identity
    assert not (out / ADAPTER).exists()
    for name in (JSON, MARKDOWN, HTML, *PICTURES):
        assert (out / name).stat().st_size > 100, name
    assert "nothing passes the gate" in (out / MARKDOWN).read_text(encoding="utf-8")
    assert min(said["predicted"].values()) > 0.5
    # Where the gate asks for what a few steps give, the name moves on, and back again.
    easy = ["--kept", "0.3", "--match", "0.1", "--steps", "8", "--learning-rate", "8e-3", "--distil"]
    assert ask("rebase", "caller", str(house / "new.gguf"), "--out", str(tmp_path / "new"), *easy, *options) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["way"] == "distil", (said["reuse"]["marks"], said["distilled"]["marks"])
    moved = registry.find("caller")
    assert moved.identity == said["registered"] != first.identity
    assert moved.manifest.base_name == "new.gguf"
    changed = LLM.load(house / "new.gguf", dtype=torch.float32, adapter=moved.folder)
    assert changed.attached is not None
    assert changed.attached.effect.kl > 0
    assert ask("rollback", "caller", "--registry", str(registry.folder)) == 0
    assert registry.find("caller").identity == first.identity


KILLED = """
import sys, torch
from pathlib import Path
from pocketgem import LLM
from pocketgem.adapters.registry import Registry
from pocketgem.rebase.distill import Settings
from pocketgem.rebase.run import rebase, swap
registry, base, out = Registry(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
def watch(stage, done, total):
    if stage.startswith("distil"):
        print(done, flush=True)
llm = LLM.load(base, dtype=torch.float32, kept=0)
settings = Settings(steps=10**6, every=1, patience=10**6, enough=1.0)
outcome = rebase(llm, registry.find("caller").folder, out, settings=settings, reuse=False, watch=watch)
swap(registry, "caller", out)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_killed_in_the_middle_the_name_stands_for_what_it_did(house: Path, tmp_path: Path) -> None:
    registry, _ = registered(house, tmp_path / "store")
    first, out = registry.find("caller"), tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(registry.folder), str(house / "new.gguf"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 2:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    again = registry.find("caller")
    assert (again.identity, again.before) == (first.identity, ())
    assert open_adapter(again.folder).identity == open_adapter(house / "adapter").identity
    assert registry.prune() == []
    outcome = rebase(load(house, "old"), again.folder, out)
    assert swap(registry, "caller", out).identity == registry.find("caller").identity
    assert outcome.passed


def test_nothing_is_swapped_that_is_not_there(house: Path, tmp_path: Path) -> None:
    registry, _ = registered(house, tmp_path / "store")
    with pytest.raises(InputError, match="no adapter that passed"):
        swap(registry, "caller", tmp_path)
