"""Rows of large tables: the same bits from every place, whatever is asked and in whatever order (law 10)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem import LLM, kernels
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import CheckpointError, PromptError, WeightsError
from pocketgem.kernels.compute import Compute
from pocketgem.memory import row_file
from pocketgem.memory.disk_rows import FEWEST, DiskRows
from pocketgem.memory.gather import by_torch
from pocketgem.memory.place import Place
from pocketgem.memory.row_file import LONGEST, neighbours
from pocketgem.memory.rows import RowSource, row_source
from pocketgem.memory.shelf import Shelf
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed
from pocketgem.model.gemma import Gemma
from tests.cli_models import save_model
from tests.test_parity import PROMPT_TOKENS, run
from tests.text_fixtures import gemma4_metadata, spm_metadata
from tests.twins import BLOCKS, make_twin

ROWS = 3 * FEWEST + 7  # more than are kept at hand, so that rows are given up and read again
TYPES = [StoredType.Q4_0, StoredType.Q6_K, StoredType.Q8_0, StoredType.F32, StoredType.BF16, StoredType.F16]
PLACES = [Place.DEVICE, Place.RAM, Place.DISK]
GATHERS = ["torch", pytest.param("kernel", marks=pytest.mark.native)]
anything = st.lists(st.integers(0, ROWS - 1), max_size=2 * ROWS)


def table_in(folder: Path, type: StoredType = StoredType.Q4_0, rows: int = ROWS) -> StoredTensor:
    """A table at an odd place of a file, other bytes before and after it."""
    width = 2 * type.block_size if type.packed else 24
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    if type.packed:
        blocks = rows * width // type.block_size
        data = torch.randint(0, 255, (blocks, type.type_size), generator=torch.Generator().manual_seed(1))
        raw = data.to(torch.uint8).flatten()  # scales of every kind, never a NaN by the high byte 255
    else:
        kinds = {StoredType.F32: torch.float32, StoredType.BF16: torch.bfloat16, StoredType.F16: torch.float16}
        raw = values.to(kinds[type]).view(torch.uint8).flatten()
    path = folder / f"{type}.bin"
    path.write_bytes(b"head!" + raw.numpy().tobytes() + b"tail")
    return StoredTensor("table", (rows, width), type, MappedFile(path), 5, 5 + raw.numel())


def compute_of(gather: str) -> Compute | None:
    return Compute(str(kernels.choice().name), threads=2) if gather == "kernel" else None


def source_of(table: StoredTensor, place: Place = Place.DISK, gather: str = "torch") -> RowSource:
    return row_source(table, place, compute_of(gather), hot_bytes=0)  # the fewest rows


def bits(rows: torch.Tensor) -> torch.Tensor:
    """NaNs are one: which of them a product gives is the processor's choice."""
    return torch.where(rows.isnan(), torch.nan, rows).view(torch.int32)


@pytest.fixture(params=["calls", pytest.param("compiled", marks=pytest.mark.native)])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read call by call, or by the compiled reader where this system has it."""
    if request.param == "calls":
        monkeypatch.setattr(row_file, "compiled", lambda: None)
    elif row_file.compiled() is None:
        pytest.skip("the compiled reader is for Linux")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read call by call."""
    monkeypatch.setattr(row_file, "compiled", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


# --- law 10


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.usefixtures("reads")
def test_rows_are_the_same_bits_from_every_place(folder: Path, type: StoredType, gather: str) -> None:
    table = table_in(folder, type)
    whole, sources = table.dense(), [source_of(table, place, gather) for place in PLACES]

    @settings(max_examples=40)
    @given(anything, st.sampled_from([1.0, 16.0, 0.3]), st.booleans())
    def check(ids: list[int], factor: float, ahead: bool) -> None:
        expected = bits(whole[ids] * factor)
        for source in sources:
            if ahead:
                source.expect(ids)
            assert torch.equal(bits(source.rows(torch.tensor(ids, dtype=torch.int64), factor)), expected)

    check()


@pytest.mark.usefixtures("calls")
def test_without_positioned_reads_rows_come_from_the_mapping(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    table, ids = table_in(folder), torch.tensor([5, 6, 7, 0, 5])
    source = source_of(table)
    source.expect([1, 2])
    assert torch.equal(bits(source.rows(ids)), bits(table.dense()[ids]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ids", [[ROWS], [-1], [0, 1 << 40], [3, -(1 << 40)]])
def test_rows_outside_the_table_are_refused_and_not_expected(folder: Path, place: Place, ids: list[int]) -> None:
    source = source_of(table_in(folder), place)
    source.expect(ids)
    with pytest.raises(WeightsError, match=f"table has {ROWS} rows"):
        source.rows(torch.tensor(ids))


# --- what is read


@pytest.mark.usefixtures("reads")
def test_a_row_is_read_once_while_it_is_at_hand(folder: Path) -> None:
    source = DiskRows(table := table_in(folder), lambda data, which, factor: data[which], 0)
    size = table.nbytes // ROWS
    source.rows(torch.tensor([3, 3, 4, 3, 9]))
    assert (source.traffic.asked, source.traffic.read, source.traffic.bytes) == (5, 3, 3 * size)
    source.rows(torch.tensor([4, 10]))
    assert (source.traffic.asked, source.traffic.read, source.traffic.bytes) == (7, 4, 4 * size)
    source.rows(torch.arange(100, 100 + FEWEST))  # pushes all others out
    source.rows(torch.tensor([3]))
    assert source.traffic.read == 4 + FEWEST + 1


@pytest.mark.usefixtures("calls")
def test_neighbours_come_in_one_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = MappedFile.read_into_each

    def counting(file: MappedFile, targets: Sequence[memoryview], start: int) -> None:
        calls.append(len(targets))
        real(file, targets, start)

    monkeypatch.setattr(MappedFile, "read_into_each", counting)
    source_of(table_in(folder)).rows(torch.tensor([8, 7, 20, 6, 7, 1]))
    assert calls == [1, 3, 1]


@given(st.sets(st.integers(0, 3 * LONGEST)))
def test_neighbours_are_all_ids_in_order(ids: set[int]) -> None:
    runs = list(neighbours(ids))
    assert [id for run in runs for id in run] == sorted(ids)
    assert all(run == list(range(run[0], run[0] + len(run))) and len(run) <= LONGEST for run in runs)


@pytest.mark.usefixtures("calls")
def test_what_is_at_hand_or_on_its_way_is_not_asked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(MappedFile, "read_soon", lambda file, start, size: asked.append((start, size)))
    table = table_in(folder)
    source, size = source_of(table), table.nbytes // ROWS
    source.rows(torch.tensor([2]))
    source.expect([5, 2, 4, 5, 9, -1, ROWS])
    assert asked == [(table.start + 4 * size, 2 * size), (table.start + 9 * size, size)]
    source.expect([5, 9])
    source.rows(torch.tensor([4, 5, 9]))
    source.expect([9])
    assert len(asked) == 2


def test_giving_up_what_was_expected_costs_no_memory(folder: Path) -> None:
    source = row_source(table_in(folder, rows=40 * FEWEST), Place.DISK, hot_bytes=0)
    assert isinstance(source, DiskRows)
    for start in range(0, 40 * FEWEST, FEWEST):
        source.expect(range(start, start + FEWEST))
        assert len(source._coming) <= 2 * FEWEST


class Oldest:
    """The shelf's definition: a list of rows, the longest unused first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.rows = capacity, list[int]()

    def take(self, rows: list[int]) -> list[int]:
        new = []
        for row in rows:
            if row in self.rows:
                self.rows.remove(row)
            else:
                new.append(row)
                self.rows = self.rows[-self.capacity + 1 :] if len(self.rows) == self.capacity else self.rows
            self.rows.append(row)
        return new


@given(st.integers(2, 6), st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=12))
def test_the_shelf_keeps_the_rows_used_last(capacity: int, calls: list[list[int]]) -> None:
    shelf, definition, lying = Shelf(capacity), Oldest(capacity), dict[int, int]()  # lying: place -> row
    for rows in calls:
        places, new = shelf.take(rows[:capacity])
        assert list(new) == definition.take(rows[:capacity])
        lying.update({place: row for row, place in new.items()})
        assert [lying[place] for place in places] == rows[:capacity]
        assert all(0 <= place < capacity for place in places)
        assert all(row in shelf for row in definition.rows)
        if rows and rows[0] % 4 == 0:  # as after a read that failed
            shelf.forget(rows[:1])
            definition.rows = [row for row in definition.rows if row != rows[0]]


# --- what can go wrong


@pytest.mark.usefixtures("reads")
def test_a_file_cut_short_is_an_error_at_the_use(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    source = source_of(table)
    source.rows(torch.tensor([1]))
    source.expect([2, ROWS - 1])
    os.truncate(table.source.path, 100)
    source.expect([3])
    for ids in ([ROWS - 1], [1]):  # also of rows at hand: the model they belong to is gone
        with pytest.raises(CheckpointError, match="changed while in use"):
            source.rows(torch.tensor(ids))


@pytest.mark.usefixtures("reads")
def test_a_file_cut_during_a_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_in(tmp_path)
    source = source_of(table)
    monkeypatch.setattr(MappedFile, "check_unchanged", lambda file: None)
    os.truncate(table.source.path, table.start + 3)
    with pytest.raises(CheckpointError, match="cut short"):
        source.rows(torch.tensor([0]))


def test_a_file_written_to_is_an_error(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    source = source_of(table)
    source.rows(torch.tensor([1]))
    with table.source.path.open("r+b") as file:
        file.seek(table.start)
        file.write(b"other")
    os.utime(table.source.path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while in use"):
        source.rows(torch.tensor([1]))


@pytest.mark.usefixtures("calls")
def test_a_read_that_failed_leaves_no_wrong_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, ids = table_in(folder), torch.tensor([1, 7, 30])
    source = source_of(table)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(CheckpointError, match=r"Q4_0\.bin: cannot be read \(Input/output error\)"):
            source.rows(ids)
    assert torch.equal(bits(source.rows(ids)), bits(table.dense()[ids]))


@pytest.mark.native
def test_a_compiled_read_that_failed_leaves_no_wrong_row(folder: Path) -> None:
    table, ids = table_in(folder), torch.tensor([1, 7, 30])
    source = DiskRows(table, by_torch(table), 0)
    if not isinstance(source._file, row_file.CompiledRowFile):
        pytest.skip("the compiled reader is for Linux")
    good, source._file._where = source._file._where, (-1, *source._file._where[1:])
    source.expect([2, 3])
    with pytest.raises(CheckpointError, match=r"Q4_0\.bin: cannot be read \(Bad file descriptor\)"):
        source.rows(ids)
    source._file._where = good
    assert torch.equal(bits(source.rows(ids)), bits(table.dense()[ids]))


@pytest.mark.usefixtures("calls")
def test_reading_ahead_never_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: (_ for _ in ()).throw(OSError(29, "no")), raising=False)
    table = table_in(folder)
    source = source_of(table)
    source.expect([4, 5])
    assert torch.equal(bits(source.rows(torch.tensor([4]))), bits(table.dense()[[4]]))


def test_a_held_table_outlives_its_file_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    expected, seen = bits(table.dense()), list[tuple[int, int]]()
    held = row_source(table, Place.RAM, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (table.nbytes, table.nbytes)
    os.truncate(table.source.path, 100)
    assert torch.equal(bits(held.rows(torch.arange(ROWS))), expected)
    with pytest.raises(CheckpointError, match="changed while in use"):
        row_source(table, Place.RAM)


# --- whole models


@pytest.fixture(scope="module", params=["E2B", "E4B", "gemma3n"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin in Q4_0, for both ways of building it."""
    folder = tmp_path_factory.mktemp("twin")
    source = open_checkpoint(resolve(make_twin(request.param, folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", StoredType.Q4_0)
    return folder / "twin.gguf"


def built(path: Path, place: Place, gather: str) -> Gemma:
    checkpoint, compute = open_checkpoint(resolve(path)), compute_of(gather)
    if compute is None:
        return build_model(checkpoint, torch.float32, ple=place)
    return build_packed(checkpoint, compute, ple=place)[0]


@pytest.mark.parametrize("gather", GATHERS)
def test_logits_are_the_same_bits_from_every_place(twin: Path, gather: str) -> None:
    """The prompt has ids past Gemma 3n's table, which take row 0."""
    threads = threading.active_count()
    disk, ram, device = (
        run(built(twin, place, gather), [PROMPT_TOKENS]) for place in (Place.DISK, Place.RAM, Place.DEVICE)
    )
    assert torch.equal(disk, ram)
    assert torch.equal(disk, device)
    assert threading.active_count() == threads


class Watched:
    """A row source that writes down what it is asked."""

    def __init__(self, real: RowSource) -> None:
        self.real, self.seen = real, list[tuple[str, list[int]]]()

    def rows(self, ids: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        self.seen.append(("rows", ids.tolist()))
        return self.real.rows(ids, factor)

    def expect(self, ids: Sequence[int]) -> None:
        if ids:
            self.seen.append(("expect", list(ids)))


def test_the_next_chunk_and_the_sampled_token_are_asked_for_ahead(twin: Path) -> None:
    model = built(twin, Place.DISK, "torch")
    assert model.per_layer is not None
    assert model.per_layer.table is not None
    model.per_layer.table = watched = Watched(model.per_layer.table)
    engine, ids = Engine(model, Scheduler(chunk=8)), tuple(range(20, 40))
    sequence = engine.submit(Request("test", ids, SamplingParams(max_tokens=3)))
    while sequence.finish is None:
        engine.step()
    inside = [id if id < model.per_layer.vocab_size else 0 for id in sequence.output_ids]
    first, second, third = list(ids[:8]), list(ids[8:16]), list(ids[16:])
    assert watched.seen == [
        ("rows", first), ("expect", second), ("rows", second), ("expect", third), ("rows", third),
        ("expect", inside[:1]), ("rows", inside[:1]), ("expect", inside[1:2]), ("rows", inside[1:2]),
        ("expect", inside[2:]),
    ]  # fmt: skip


# --- the choice


@pytest.fixture(scope="module")
def e2b_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    source = open_checkpoint(resolve(make_twin("E2B", folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "e2b.gguf", StoredType.Q4_0, vocabulary=gemma4_metadata())
    return folder / "e2b.gguf"


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_answer_does_not_depend_on_the_place(e2b_file: Path, dtype: torch.dtype | None) -> None:
    found = {
        LLM.load(e2b_file, ple=place, dtype=dtype).generate("hello world", max_tokens=12, temperature=0).ids
        for place in ("auto", "device", "ram", "disk")
    }
    assert len(found) == 1


def test_a_model_whose_table_is_held_does_not_mind_its_file(e2b_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(e2b_file.read_bytes())
    held, read = (LLM.load(copy, ple=place, dtype=torch.float32) for place in ("ram", "disk"))
    os.truncate(copy, 100)
    held.generate("hello", max_tokens=2)
    with pytest.raises(CheckpointError, match="changed while in use"):
        read.generate("hello", max_tokens=2)


def test_a_wish_that_cannot_be_granted_is_refused(e2b_file: Path, tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("gemma3", tmp_path / "twin").folder))
    export_gguf(source, tmp_path / "flat.gguf", StoredType.F32, vocabulary=spm_metadata())
    with pytest.raises(PromptError, match="expected one of auto, device, ram, disk"):
        LLM.load(e2b_file, ple="tape")
    with pytest.raises(PromptError, match="no per-layer embeddings"):
        LLM.load(tmp_path / "flat.gguf", ple="ram")
    assert LLM.load(tmp_path / "flat.gguf", ple="auto").generate("hello", max_tokens=1).ids


def test_the_command_line_passes_the_choice_on(e2b_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for place in ("ram", "disk"):
        options = ("--raw", "--max-tokens", "8", "--temperature", "0", "--ple", place, "-q")
        assert main(["run", str(e2b_file), "hello world", *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("verb", [["run", "hello"], ["bench"]])
def test_the_command_line_refuses_before_it_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    flat = str(save_model(tmp_path / "flat"))
    assert main([verb[0], flat, *verb[1:], "--ple", "ram"]) == 2
    assert "no per-layer embeddings" in capsys.readouterr().err
    assert main([verb[0], flat, *verb[1:], "--ple", "tape"]) == 2
    assert "'auto', 'device', 'ram', 'disk'" in capsys.readouterr().err
