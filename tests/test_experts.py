"""Experts under a budget: the bits of all in memory, whatever fits, and nothing lost when a turn breaks off."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketgem import SamplingParams, kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.synth import write_synthetic
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import CheckpointError, InputError, RunError
from pocketgem.kernels.compute import Compute
from pocketgem.memory import direct
from pocketgem.memory.experts import ExpertStore
from pocketgem.memory.residents import NOWHERE, Residents
from pocketgem.model.build_packed import build_packed
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.model.quant import store_of
from pocketgem.parts import model_of
from tests.test_parity import PROMPT_TOKENS, prompt, run
from tests.test_synth import small
from tests.twins import BLOCKS, make_twin

pytestmark = pytest.mark.native
LAYERS, EXPERTS, TOP = 4, 8, 3  # of the twin


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The 26B-A4B's twin in Q4_0."""
    folder = tmp_path_factory.mktemp("experts")
    source = open_checkpoint(resolve(make_twin("26B-A4B", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q4_0)
    return open_checkpoint(resolve(folder / "twin.gguf"))


def built(checkpoint: Checkpoint, budget: int | None, threads: int = 2) -> Gemma:
    name = kernels.choice().name
    assert name is not None
    cache = Path(f"{checkpoint.where}.pocketgem")
    return build_packed(checkpoint, Compute(name, threads), cache, expert_memory=budget)[0]


def store(model: Gemma) -> ExpertStore:
    found = store_of(model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint) -> Gemma:
    return built(checkpoint, None)


@pytest.fixture(scope="module")
def slot(checkpoint: Checkpoint) -> int:
    """Bytes of a slot."""
    return store(built(checkpoint, 1 << 30)).slot_size


@pytest.mark.parametrize("slots", [TOP, TOP + 1, 7, 13, LAYERS * EXPERTS])
@pytest.mark.parametrize("sizes", [[PROMPT_TOKENS], [1] * 9, [7, 1, PROMPT_TOKENS - 8]], ids=["whole", "one", "some"])
def test_every_budget_gives_the_same_bits(
    checkpoint: Checkpoint, whole: Gemma, slot: int, slots: int, sizes: list[int]
) -> None:
    ours = built(checkpoint, slots * slot)
    assert store(ours).slots == slots
    for _ in range(2):  # the second time some are in memory
        assert torch.equal(run(ours, sizes), run(whole, sizes))


@torch.inference_mode()
def test_ten_sequences_at_once_give_the_same_bits(checkpoint: Checkpoint, whole: Gemma, slot: int) -> None:
    def batched(model: Gemma) -> torch.Tensor:
        caches = [model.new_cache() for _ in range(10)]
        rows = []
        for sizes in ([5 + i for i in range(10)], [1] * 10, [1] * 10):
            step = Step.packed(caches, sizes)
            rows.append(model.logits(model(model.embed(torch.arange(20, 20 + sum(sizes))), step)))
            step.commit()
        return torch.cat(rows)

    assert torch.equal(batched(built(checkpoint, 5 * slot)), batched(whole))


def test_threads_change_no_bit(checkpoint: Checkpoint, whole: Gemma, slot: int) -> None:
    assert torch.equal(run(built(checkpoint, 4 * slot, threads=3), [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]))


def test_aborting_one_of_two_requests_changes_nothing(checkpoint: Checkpoint, whole: Gemma, slot: int) -> None:
    def answer(model: Gemma) -> list[int]:
        engine, params = Engine(model, Scheduler(chunk=4)), SamplingParams(temperature=0.0, max_tokens=8)
        stranger = engine.submit(Request("stranger", tuple(prompt()[:20]), params))
        ours = engine.submit(Request("ours", tuple(prompt()), params))
        for _ in range(4):
            engine.step()
        engine.abort(stranger)
        while ours.finish is None:
            engine.step()
        return ours.output_ids

    assert answer(built(checkpoint, 4 * slot)) == answer(whole)


# ---- what is counted, and what is refused ----------------------------------------------------------------------------


def test_use_is_counted(checkpoint: Checkpoint, slot: int) -> None:
    model = built(checkpoint, LAYERS * EXPERTS * slot)
    run(model, [1] * 4)
    first = store(model).use
    run(model, [1] * 4)
    again = store(model).use - first
    assert first.found + first.read == again.found == 4 * LAYERS * TOP
    assert (again.read, again.bytes_read, again.wait_seconds, again.hit_rate) == (0, 0, 0.0, 1.0)
    assert first.read * store(model).slot_size >= first.bytes_read > 0
    assert first.wait_seconds > 0


def test_a_budget_is_kept(checkpoint: Checkpoint, slot: int) -> None:
    assert store(built(checkpoint, 5 * slot - 1)).arena_bytes == 4 * slot
    assert store(built(checkpoint, 1 << 40)).arena_bytes == LAYERS * EXPERTS * slot  # no more than there are


def test_the_smallest_budget_is_told(checkpoint: Checkpoint, slot: int) -> None:
    built(checkpoint, TOP * slot)
    with pytest.raises(InputError, match=rf"at least {TOP * slot} bytes .* a token uses {TOP} at a time"):
        built(checkpoint, TOP * slot - 1)


def test_what_cannot_have_a_budget_says_why(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain, dense = tmp_path / "plain.gguf", tmp_path / "dense.gguf"
    export_gguf(checkpoint, plain, StoredType.BF16)
    export_gguf(open_checkpoint(resolve(make_twin("31B", tmp_path / "twin", BLOCKS).folder)), dense, StoredType.Q4_0)
    for file, options, reason in (
        (dense, {}, "no routed experts"),
        (plain, {}, "needs quantised weights"),
        (Path(checkpoint.where), {"dtype": torch.float32}, "and no dtype"),
        (Path(checkpoint.where), {"keep_packed": False}, "--no-keep-packed"),
    ):
        with pytest.raises(InputError, match=reason):
            model_of(open_checkpoint(resolve(file)), threads=1, expert_memory=1 << 30, **{"dtype": None, **options})
    with pytest.raises(RunError, match="there is no place to keep packed weights"):
        build_packed(checkpoint, Compute(str(kernels.choice().name), 1), None, expert_memory=1 << 30)


# ---- what breaks off -------------------------------------------------------------------------------------------------


def test_a_turn_that_breaks_off_leaves_every_slot_free(checkpoint: Checkpoint, whole: Gemma, slot: int) -> None:
    model = built(checkpoint, TOP * slot)
    chosen = torch.tensor([[0, 3, 5], [5, 6, 1]])
    store(model).begin(0, chosen)  # and nobody takes what comes
    store(model).begin(2, chosen)
    batches = store(model).batches(2, chosen)
    next(batches)
    batches.close()
    for batch in store(model).batches(1, chosen):
        if (batch[:, 0] != 0).any():
            break
    assert torch.equal(run(model, [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]))


def test_an_interrupt_while_waiting_loses_nothing(
    checkpoint: Checkpoint, whole: Gemma, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(checkpoint, (TOP + 1) * slot)
    readers = store(model).readers
    answer, left = readers.next, iter(range(8))

    def interrupted() -> tuple[int, Exception | None]:
        done = answer()
        if next(left, None) is None:  # what had just arrived is lost count of
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(readers, "next", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, [PROMPT_TOKENS])
    monkeypatch.undo()
    assert torch.equal(run(model, [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]))


def test_every_expert_comes_once_and_where_it_is(checkpoint: Checkpoint, slot: int) -> None:
    """Batches hold all that was chosen, never more at a time than there are slots, and each address its bytes."""
    ours = store(built(checkpoint, TOP * slot))
    seen: list[int] = []
    for batch in ours.batches(1, torch.arange(EXPERTS)[:, None]):
        present = batch[:, 0].nonzero().flatten().tolist()
        assert 1 <= len(present) <= TOP
        seen += present
        for expert in present:
            start, _ = ours.layers[1][2].of(expert)
            size = ours.layers[1][2].each
            with Path(f"{checkpoint.where}.pocketgem").open("rb") as file:
                file.seek(start)
                assert ctypes.string_at(batch[expert, 2].item(), size) == file.read(size)
    assert sorted(seen) == list(range(EXPERTS))


def damaged(checkpoint: Checkpoint, tmp_path: Path, slot: int) -> tuple[Path, Checkpoint]:
    """A copy of the twin whose packed file has one byte of one expert changed."""
    copy, cache = tmp_path / "copy.gguf", tmp_path / "copy.gguf.pocketgem"
    shutil.copy2(checkpoint.where, copy)
    twin = open_checkpoint(resolve(copy))
    at = store(built(twin, slot * TOP)).layers[2][1].of(4)[0] + 7
    with cache.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 16]))
    return cache, twin


def test_a_damaged_expert_is_met_when_it_is_read_and_never_used(
    checkpoint: Checkpoint, whole: Gemma, tmp_path: Path, slot: int
) -> None:
    cache, twin = damaged(checkpoint, tmp_path, slot)
    model = built(twin, 6 * slot)
    for _ in range(2):  # also the second time
        with pytest.raises(CheckpointError, match="damaged; delete it"):
            run(model, [PROMPT_TOKENS])
    cache.unlink()
    assert torch.equal(run(built(twin, 6 * slot), [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]))


def test_a_file_that_changes_in_use_is_told(checkpoint: Checkpoint, tmp_path: Path, slot: int) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy2(checkpoint.where, copy)
    model = built(open_checkpoint(resolve(copy)), TOP * slot)
    with (tmp_path / "copy.gguf.pocketgem").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="changed while in use"):
        run(model, [PROMPT_TOKENS])


@pytest.mark.parametrize("past_the_cache", [True, False])
def test_a_file_cut_short_is_an_error_of_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_the_cache: bool
) -> None:
    path, target = tmp_path / "x", mmap.mmap(-1, 1 << 16)
    path.write_bytes(bytes(range(256)) * 256)
    if not past_the_cache:
        monkeypatch.setattr(direct, "_open_direct", lambda mapped: None)
    file = direct.DirectFile(MappedFile(path))
    file.read(memoryview(target), 0)
    assert target[:] == path.read_bytes()
    os.truncate(path, 40_000)
    with pytest.raises(CheckpointError, match="cut short"):
        file.read(memoryview(target), 0)


def test_reads_through_the_page_cache_give_the_same_bits(
    checkpoint: Checkpoint, whole: Gemma, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_open_direct", lambda mapped: None)
    model = built(checkpoint, 4 * slot)
    assert torch.equal(run(model, [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]))


# ---- who leaves ------------------------------------------------------------------------------------------------------


def use(residents: Residents, layer: int, experts: list[int]) -> int:
    """One row's turn; how many were missing."""
    residents.note(layer, np.array(experts), 1)
    missing = [expert for expert in experts if residents.slot(layer, expert) == NOWHERE]
    residents.pin(residents.slot(layer, expert) for expert in set(experts) - set(missing))
    for expert in missing:
        slot = residents.take()
        assert slot is not None
        residents.settle(slot, layer, expert)
    residents.unpin_all()
    return len(missing)


@given(
    turns=st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 7), min_size=1, max_size=4)), max_size=60),
    slots=st.integers(4, 24),
)
def test_nobody_is_in_two_slots_and_who_is_wanted_stays(turns: list[tuple[int, set[int]]], slots: int) -> None:
    residents = Residents(3, 8, slots)
    for layer, experts in turns:
        use(residents, layer, sorted(experts))
        places = [residents.slot(layer, expert) for expert in experts]
        assert NOWHERE not in places
        every = [residents.slot(one, expert) for one in range(3) for expert in range(8)]
        held = [place for place in every if place != NOWHERE]
        assert len(held) == len(set(held)) == residents.count <= slots


def test_all_slots_pinned_leaves_none_to_take() -> None:
    residents = Residents(1, 4, 2)
    assert {residents.take(), residents.take()} == {0, 1}
    assert residents.take() is None


def test_what_is_used_often_survives_a_long_prompt() -> None:
    residents = Residents(1, 64, 16)
    for _ in range(50):
        use(residents, 0, list(range(8)))
    residents.note(0, np.repeat(np.arange(64), 4), 32)  # a prompt of 32 rows that wants every expert four times
    for expert in range(64):
        if residents.slot(0, expert) == NOWHERE:
            slot = residents.take()
            assert slot is not None
            residents.settle(slot, 0, expert)
            residents.unpin([slot])
    assert use(residents, 0, list(range(8))) == 0


def test_habits_that_end_are_forgotten() -> None:
    residents = Residents(1, 64, 16)
    for _ in range(1000):
        use(residents, 0, list(range(8)))
    missing = [use(residents, 0, list(range(32, 48))) for _ in range(1000)]
    assert missing[-1] == 0


def test_a_skewed_cache_finds_more_than_its_share() -> None:
    dice = np.random.default_rng(0)
    weights = np.arange(1, 129.0) ** -1
    residents, missed = Residents(1, 128, 43), 0  # a third
    for _ in range(400):
        missed += use(residents, 0, dice.choice(128, 8, replace=False, p=weights / weights.sum()).tolist())
    assert 1 - missed / 3200 > 0.6


# ---- how a person meets it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of the layout with a vocabulary."""
    path = tmp_path_factory.mktemp("file") / "small.gguf"
    write_synthetic(small("gemma-4-26B-A4B"), "gemma-4-26B-A4B", path)
    return path


def test_run_takes_a_budget_and_says_how_it_went(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(file), "w000001 hello", "--raw", "--max-tokens", "4", "--temperature", "0"]
    assert main([*command, "--json"]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert "experts" not in whole
    assert main([*command, "--expert-memory", "400KiB", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["ids"] == whole["ids"]
    assert found["experts"]["read"] > 0
    assert 0 <= found["experts"]["hit_rate"] < 1
    assert main([*command, "--expert-memory", "400KiB"]) == 0
    assert "found in memory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("size", "reason"), [("9KiB", "need at least"), ("some", "not a size"), ("0", "leaves nothing")]
)
def test_a_bad_budget_is_the_persons_to_mend(
    file: Path, capfd: pytest.CaptureFixture[str], size: str, reason: str
) -> None:
    for verb in (["run", str(file), "hello"], ["bench", str(file), "--prefill", "", "--depth", "4", "--decode", "1"]):
        code = main([*verb, "--expert-memory", size])
        said = capfd.readouterr().err
        assert reason in said
        assert code == (1 if verb[0] == "bench" and size == "9KiB" else 2), said  # there the worker meets it


def test_bench_reports_what_a_token_cost(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lengths = ["--prefill", "12", "--depth", "4", "--decode", "3", "--sequences", "2", "--runs", "1", "--threads", "1"]
    assert main(["bench", str(file), *lengths, "--expert-memory", "400KiB"]) == 0
    out = capfd.readouterr().out
    report = json.loads(out.splitlines()[-1])
    rows = {row["row"]: row["experts"] for row in report["rows"] if "experts" in row}
    assert set(rows) == {"prefill 12", "decode @4", "2 sequences"}
    assert all(0 <= cost["hit_rate"] <= 1 and cost["bytes_per_token"] > 0 for cost in rows.values())
    assert "experts, decode @4:" in out


def test_readers_are_gone_before_the_interpreter_is(file: Path) -> None:
    """A daemon thread that wakes later ends the process with SIGABRT, now and then: so look at the threads."""
    code = (
        "import atexit, sys, threading\n"
        "atexit.register(lambda: print([one.name for one in threading.enumerate() if 'reader' in one.name]))\n"
        "from pocketgem import LLM, SamplingParams\n"
        "llm = LLM.load(sys.argv[1], expert_memory=1 << 20)\n"
        "llm.generate([300, 301, 302], params=SamplingParams(max_tokens=2))\n"
        "print(sum('reader' in one.name for one in threading.enumerate()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n", 1)) == (0, ["4", "[]\n"]), done.stderr


def test_readers_go_with_their_model(checkpoint: Checkpoint, slot: int) -> None:
    before = threading.active_count()
    model = built(checkpoint, 4 * slot)
    assert threading.active_count() == before + direct.THREADS
    del model
    gc.collect()
    assert threading.active_count() == before
