"""pocketgem quantize: what is written, what is refused, and that nothing half-written is ever there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketgem import LLM
from pocketgem.checkpoint.card import PREFIX, QualityCard
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.header import raw_values
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.quantize import quantize
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.convert.choice import Option, smallest, truest
from pocketgem.convert.gate import LIMITS, Limits
from pocketgem.convert.groups import Format
from pocketgem.convert.quality import compare
from pocketgem.convert.quantize import Wishes, plan_model, quantize_model
from pocketgem.errors import CheckpointError, InputError, RunError, WeightsError
from tests import cli_models

FIXED = [form for form in Format if form is not Format.AUTO]
TOKENS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder whose rows fill blocks, in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}.items():
            patch.setitem(cli_models.CONFIG, key, value)
        made = cli_models.save_model(tmp_path_factory.mktemp("models") / "tiny", template=cli_models.TEMPLATE)
    weights = {name: (one * 0.2).bfloat16() for name, one in load_file(made / "model.safetensors").items()}
    save_file(weights, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as GGUF, with keys whose types a guess would not find again."""
    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    quantize_model(folder, target, wishes(Format.Q8_0))
    return target


def wishes(form: Format, **more: object) -> Wishes:
    return Wishes(form=form, tokens=TOKENS, threads=2, **more)  # type: ignore[arg-type]


def ruined(weights: Tensor, kind: StoredType) -> Tensor:
    """Blocks with random scales."""
    blocks = quantize(weights, kind)
    at = 208 if kind is StoredType.Q6_K else 0
    scales = torch.rand(len(blocks), 1, generator=torch.Generator().manual_seed(1)).half()
    blocks[:, at : at + 2] = scales.view(torch.uint8)
    return blocks


# ---- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FIXED)
def test_a_folder_becomes_a_file_that_runs_and_says_how_good_it_is(folder: Path, tmp_path: Path, form: Format) -> None:
    target = tmp_path / "x.gguf"
    outcome = quantize_model(folder, target, wishes(form, force=True))
    file = GGUFFile.open(target)
    assert outcome.size == target.stat().st_size
    assert list(tmp_path.iterdir()) == [target]
    assert outcome.card is not None
    back = QualityCard.from_metadata(file.metadata)
    assert back is not None
    assert back.kl_mean == pytest.approx(outcome.card.kl_mean, rel=1e-6)  # kept as float32
    assert asdict(back).keys() == asdict(outcome.card).keys()
    assert 0 < outcome.card.kl_mean < 0.5
    assert file.tensors["blk.0.ffn_up.weight"].type == StoredType(form.value.upper())
    assert file.tensors["blk.0.attn_norm.weight"].type is StoredType.F32
    before, after = LLM.load(folder, dtype=torch.float32), LLM.load(target, dtype=torch.float32)
    assert after.tokenize("quaint words") == before.tokenize("quaint words")
    assert after.can_chat
    assert len(after.generate("hello", max_tokens=4, temperature=0.0).ids) == 4


def test_the_source_measured_against_itself_has_not_moved(gguf: Path, tmp_path: Path) -> None:
    outcome = quantize_model(gguf, tmp_path / "x.gguf", wishes(Format.Q8_0))
    assert {row.how for row in outcome.rows} == {"copied"}
    assert outcome.card is not None
    assert (outcome.card.kl_mean, outcome.card.same_top1) == (0.0, 1.0)
    assert outcome.card.perplexity == outcome.card.source_perplexity


def test_metadata_travels_unchanged_to_the_byte(gguf: Path, tmp_path: Path) -> None:
    quantize_model(gguf, tmp_path / "x.gguf", wishes(Format.Q4_0, force=True))
    before, after = (raw_values(path.read_bytes(), path.stat().st_size) for path in (gguf, tmp_path / "x.gguf"))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for key in changed if not key.startswith(PREFIX)} == {"general.file_type"}
    assert GGUFFile.open(tmp_path / "x.gguf").metadata["general.file_type"] == 2


def test_an_unmeasured_file_has_no_card(gguf: Path, tmp_path: Path) -> None:
    """Neither a new one nor the source's."""
    outcome = quantize_model(gguf, tmp_path / "x.gguf", wishes(Format.Q6_K, check=False))
    assert outcome.card is None
    assert not [key for key in GGUFFile.open(tmp_path / "x.gguf").metadata if key.startswith(PREFIX)]


def test_the_bytes_are_those_of_the_quantiser(folder: Path, tmp_path: Path) -> None:
    quantize_model(folder, tmp_path / "x.gguf", wishes(Format.Q4_K, force=True))
    weights = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].float()
    found = GGUFFile.open(tmp_path / "x.gguf").tensors["blk.1.ffn_up.weight"]
    assert torch.equal(found.dense().view(-1, 256), dequantize(quantize(weights.view(-1, 256), found.type), found.type))


def test_a_grid_is_kept_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """As the releases trained for Q4_0: bfloat16 weights that are d * (q - 8)."""
    weights = load_file(folder / "model.safetensors")
    for name, one in weights.items():
        if "proj" in name:
            blocks = quantize(one.float().view(-1, 32), StoredType.Q4_0)
            weights[name] = dequantize(blocks, StoredType.Q4_0).view(one.shape).bfloat16()
    source = tmp_path / "grid"
    source.mkdir()
    for path in folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    save_file(weights, source / "model.safetensors")
    outcome = quantize_model(source, tmp_path / "x.gguf", wishes(Format.Q4_0, force=True))
    assert len(outcome.exact) == sum("proj" in name for name in weights)
    assert all(exact == blocks for exact, blocks in outcome.exact.values())
    back = open_checkpoint(resolve(tmp_path / "x.gguf")).tensors
    for name, one in weights.items():
        if "proj" in name:
            assert torch.equal(back[name.removeprefix("model.")].dense(torch.bfloat16), one), name


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_a_ruined_file_is_refused_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    for form in FIXED:
        with pytest.raises(RunError, match=r"not written, mean divergence \d"):
            quantize_model(folder, target, wishes(form, rounding=ruined))
        assert list(tmp_path.iterdir()) == []
    outcome = quantize_model(folder, target, wishes(Format.Q8_0, rounding=ruined, force=True))
    assert outcome.faults
    card = QualityCard.from_metadata(GGUFFile.open(target).metadata)
    assert card is not None
    assert not card.within_limits


def test_a_file_that_was_there_stays_when_the_new_one_is_refused(gguf: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_bytes(gguf.read_bytes())
    with pytest.raises(RunError, match="not written"):
        quantize_model(folder, target, wishes(Format.Q4_0, rounding=ruined))
    assert target.read_bytes() == gguf.read_bytes()


def test_the_source_is_never_the_target(gguf: Path) -> None:
    with pytest.raises(CheckpointError, match="is the source itself"):
        quantize_model(gguf, gguf.parent / "." / gguf.name, wishes(Format.Q4_0))


def test_weights_that_are_no_numbers_are_named(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][3, 5] = float("nan")
    source = tmp_path / "nan"
    source.mkdir()
    for path in folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    save_file(weights, source / "model.safetensors")
    with pytest.raises(WeightsError, match=r"blk.2.ffn_down.weight: holds weights that are not finite"):
        quantize_model(source, tmp_path / "x.gguf", wishes(Format.Q4_0))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"ab"])
def test_a_bad_calibration_text_is_refused(gguf: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match="calibration text"):
        quantize_model(gguf, tmp_path / "x.gguf", wishes(Format.Q4_0, calibration=tmp_path / "text"))


def test_limits_refuse_what_is_no_number() -> None:
    rows = [np.array([[0.0, 1.0, np.nan]]), np.array([[0.0, 1.0, 2.0]])]
    found = compare([np.array([[0.0, 1.0, 2.0]])] * 2, rows, [0, 1])
    assert LIMITS[Format.Q4_0].broken(found)
    assert not Limits(1.0, 1.0, 0.0).broken(compare([rows[1]] * 2, [rows[1]] * 2, [0, 1]))


# ---- auto ----------------------------------------------------------------------------------------------------------


def test_auto_measures_chooses_and_keeps_to_the_limit(folder: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    strict, loose = (
        quantize_model(
            folder,
            tmp_path / f"{kl}.gguf",
            wishes(Format.AUTO, max_kl=kl),
            watch=lambda stage, done, total: stages.append(stage) if done <= total else pytest.fail(stage),
        )
        for kl in (0.002, 0.2)
    )
    assert list(dict.fromkeys(stages)) == ["running the source", "measuring groups", "writing", "measuring the result"]
    assert strict.card is not None
    assert loose.card is not None
    assert strict.card.kl_mean <= 0.002 < loose.card.kl_mean <= 0.2
    assert loose.size < strict.size
    assert strict.plan.groups.keys() == {"embedding", "attention", "values", "MLP", "MLP down"}
    for options in strict.plan.groups.values():
        assert options[0].kl == 0.0  # as it is
        assert all(option.kl > 0 for option in options[1:])


def test_auto_keeps_to_a_size(folder: Path, tmp_path: Path) -> None:
    whole = plan_model(folder, wishes(Format.Q8_0)).nbytes
    size = int(whole * 0.75)
    outcome = quantize_model(folder, tmp_path / "x.gguf", wishes(Format.AUTO, size=size, force=True))
    assert 0.6 * whole < outcome.plan.nbytes <= size
    with pytest.raises(InputError, match="the smallest that can be made has"):
        plan_model(folder, wishes(Format.AUTO, size=1000))


def test_auto_says_when_it_goes_by_rules(folder: Path, tmp_path: Path) -> None:
    outcome = quantize_model(folder, tmp_path / "x.gguf", wishes(Format.AUTO, minutes=0.0, force=True))
    assert outcome.plan.note is not None
    assert "were not measured" in outcome.plan.note
    assert outcome.plan.groups == {}
    assert {row.type for row in outcome.rows if row.group == "values"} == {"Q8_0"}


OPTIONS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=4)


@given(groups=st.lists(OPTIONS, min_size=1, max_size=4), limit=st.floats(0, 2), size=st.integers(0, 200))
def test_the_choice_is_the_best_of_all(groups: list[list[tuple[int, float]]], limit: float, size: int) -> None:
    named = {str(i): [Option("", {}, nbytes, kl) for nbytes, kl in options] for i, options in enumerate(groups)}
    every: list[tuple[int, float]] = [(0, 0.0)]
    for options in groups:
        every = [(a + nbytes, b + kl) for a, b in every for nbytes, kl in options]
    chosen = smallest(named, limit)
    within = [nbytes for nbytes, kl in every if kl <= limit]
    if within:
        assert sum(option.nbytes for option in chosen.values()) == min(within)
    small = truest(named, size)
    least = [kl for nbytes, kl in every if nbytes <= size]
    assert (small is None) == (not least)
    if small is not None:
        assert sum(option.kl for option in small.values()) == pytest.approx(min(least))


# ---- killed, and a full disk ---------------------------------------------------------------------------------------

KILL = """
import os, random, signal, sys, time
from pathlib import Path
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.convert.groups import Format
from pocketgem.convert.quantize import Wishes, quantize_model
source, target = Path(sys.argv[1]), Path(sys.argv[2])
wishes = Wishes(form=Format.Q4_0, tokens=64, threads=2, force=True)

def child(delay):
    pid = os.fork()
    if pid == 0:
        quantize_model(source, target, wishes)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

start = time.monotonic()
assert child(None) == 0
whole, size = time.monotonic() - start, target.stat().st_size
target.unlink()
killed, dice = 0, random.Random(4)
for _ in range(10):
    killed += child(dice.uniform(0, whole)) != 0
    if target.exists():
        assert target.stat().st_size == size
        open_checkpoint(resolve(target))
        target.unlink()
    left = [path.name for path in target.parent.iterdir()]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left), left
assert child(None) == 0
assert [path.name for path in target.parent.iterdir()] == [target.name]
print("killed", killed)
"""


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a forked child has no threads of OpenMP's
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork and no SIGKILL")
def test_killed_at_any_moment_it_leaves_no_file_that_loads_wrong(gguf: Path, tmp_path: Path) -> None:
    done = python("-c", KILL, str(gguf), str(tmp_path / "x.gguf"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 5  # most died


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(gguf: Path, tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    words = ["quantize", str(gguf), str(tmp_path / "x.gguf"), "--format", "q4_0", "--tokens", "64"]
    done = python("-m", "pocketgem", *words, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'x.gguf'}: cannot be written (")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ---- the verb ------------------------------------------------------------------------------------------------------


def test_the_verb_writes_json_and_info_shows_the_card(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.gguf"
    words = ["quantize", str(folder), str(target), "--format", "q8_0", "--tokens", "64"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["target"] == str(target)
    assert report["bytes"] == target.stat().st_size
    assert report["quality"]["within_limits"] is True
    assert main(words) == 2
    assert "already there" in capfd.readouterr().err
    assert main([*words, "--replace", "--max-kl", "0"]) == 1
    assert "not written, mean divergence" in capfd.readouterr().err
    assert main(["info", str(target)]) == 0
    assert "Quality, measured when this file was made" in capfd.readouterr().out
    assert main(["info", str(target), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["quality"]["format"] == "q8_0"


def test_a_plan_writes_nothing(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(folder), "--format", "q4_k", "--plan"]) == 0
    out = capfd.readouterr().out
    assert "Q4_K" in out
    assert "bits a weight" in out
    assert main(["quantize", str(folder), str(tmp_path / "x.gguf"), "--plan", "--json", "--format", "q4_0"]) == 0
    assert json.loads(capfd.readouterr().out)["bytes"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["X"], "Give a DST"),
        (["X", "y.bin"], "must end in .gguf"),
        (["X", "y.gguf", "--format", "q9"], "there is no format q9"),
        (["X", "y.gguf", "--size", "1GB", "--format", "q4_0"], "--size goes with"),
        (["X", "y.gguf", "--size", "lots"], "--size takes bytes"),
        (["X", "y.gguf", "--no-check", "--force"], "--no-check measures nothing"),
        (["no-such-model-here", "y.gguf", "--format", "q4_0"], "no such file or folder"),
    ],
)
def test_wrong_command_lines_are_told_what_is_wrong(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", *words]) == 2
    assert says in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- the real one --------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_270m_passes_its_gates(real_model_path: Path, tmp_path: Path) -> None:
    """128 tokens; docs/quantize.md has 512."""
    for form in (Format.Q8_0, Format.Q4_0):
        outcome = quantize_model(real_model_path, tmp_path / f"{form}.gguf", Wishes(form=form, tokens=128))
        assert outcome.card is not None
        print(f"{form}: mean divergence {outcome.card.kl_mean:.5f}, same best token {outcome.card.same_top1:.1%}")


@pytest.mark.weights
def test_the_real_270m_ruined_is_refused(real_model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not written, mean divergence"):
        quantize_model(real_model_path, tmp_path / "x.gguf", Wishes(form=Format.Q4_0, tokens=32, rounding=ruined))
    assert list(tmp_path.iterdir()) == []
