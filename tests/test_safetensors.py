"""safetensors files and folders: what the library writes we read; what is wrong is refused with its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pocketgem.checkpoint.dequant import dtype_of
from pocketgem.checkpoint.safetensors import (
    INDEX,
    MAX_HEADER,
    SINGLE,
    open_safetensors,
    parse_header,
    safetensors_files,
)
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError
from tests import fuzz_checkpoint as fuzz
from tests.fuzz_checkpoint import entry, safetensors_bytes

DTYPES = ["F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"]


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def shards(folder: Path, homes: dict[str, str]) -> Path:
    """A folder whose index says ``homes``, tensor -> file name, and whose files agree."""
    for file in set(homes.values()):
        save(folder / file, {name: torch.full((2,), float(len(name))) for name in homes if homes[name] == file})
    return write_index(folder, homes)


def write_index(folder: Path, homes: dict[str, str]) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    return folder


# --- one file


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, name: str) -> None:
    dtype = dtype_of(StoredType(name))
    assert dtype is not None
    values = (torch.randn(3, 4) * 50).to(dtype)
    tensor = open_safetensors(save(tmp_path / "x.safetensors", {"t": values}))["t"]
    assert (tensor.name, tensor.shape, tensor.type) == ("t", (3, 4), StoredType(name))
    assert torch.equal(tensor.dense(dtype), values)
    assert torch.equal(tensor.rows(torch.tensor([2, 0])), values[[2, 0]].float())


def test_dense_is_a_view_of_the_mapped_file(tmp_path: Path) -> None:
    tensor = open_safetensors(save(tmp_path / "x.safetensors", {"t": torch.ones(8)}))["t"]
    assert tensor.dense().data_ptr() == tensor.data.data_ptr()


def test_a_foreign_dtype_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"flag": torch.tensor([True]), "t": torch.ones(2)})
    file = open_safetensors(path)
    assert set(file) == {"flag", "t"}
    assert file["t"].dense().tolist() == [1, 1]
    with pytest.raises(UnsupportedError, match="'flag' is stored as BOOL"):
        file["flag"]


def test_a_file_larger_than_memory_opens(tmp_path: Path) -> None:
    """A hole of 1 TiB: mapping it private and writable, as the library does for torch, is refused by Linux."""
    rows = 1 << 28
    raw = json.dumps({"t": entry("F32", [rows, 1024], 0, rows * 4096)}).encode()
    path = tmp_path / "x.safetensors"
    try:
        with path.open("wb") as out:
            out.write(safetensors_bytes(raw))
            out.truncate(8 + len(raw) + rows * 4096)
    except OSError:
        pytest.skip("this file system has no files of that size")
    assert open_safetensors(path)["t"].rows(torch.tensor([0, rows - 1])).abs().sum() == 0


GOOD = entry("F32", [1], 0, 4)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"__metadata__": "x", "t": GOOD}, "must map text to text"),
        ({"__metadata__": {"x": 1}, "t": GOOD}, "must map text to text"),
        ({"": GOOD}, "must have a name"),
        ({"t": 5}, "exactly dtype, shape and data_offsets"),
        ({"t": {**GOOD, "more": 1}}, "exactly dtype, shape and data_offsets"),
        ({"t": {**GOOD, "dtype": 5}}, "exactly dtype, shape and data_offsets"),
        ({"t": {**GOOD, "shape": {}}}, "lists of whole numbers"),
        ({"t": {**GOOD, "shape": [True]}}, "lists of whole numbers"),
        ({"t": {**GOOD, "shape": [1.0]}}, "lists of whole numbers"),
        ({"t": {**GOOD, "data_offsets": [0]}}, "does not end after it starts"),
        ({"t": {**GOOD, "data_offsets": [0, 4, 4]}}, "does not end after it starts"),
        ({"t": entry("U8", [1], 4, 4)}, "does not end after it starts"),
        ({"t": entry("U8", [0], 0, 4)}, "is empty"),
        ({"t": entry("F32", [1] * 9, 0, 4)}, "over 8 dimensions"),
        ({"t": entry("F32", [2], 0, 4)}, r"F32 of shape \(2,\) does not take 4 bytes"),
        ({"t": GOOD, "u": GOOD}, "'u' starts at byte"),
        ([], "not one JSON object"),
        (b"{}[]{}", "not valid JSON"),
    ],
)
def test_bad_headers_are_named(header: object, match: str) -> None:
    data = safetensors_bytes(header, bytes(4))
    with pytest.raises(FormatError, match=match):
        parse_header(data, len(data))


def test_impossible_header_lengths_are_named() -> None:
    data = safetensors_bytes({"t": GOOD}, bytes(4))
    with pytest.raises(FormatError, match="too few"):
        parse_header(data[:7], 7)
    with pytest.raises(FormatError, match="not a possible header length"):
        parse_header(data[:40], 40)


# --- folders


def test_a_folder_with_one_file_several_files_or_an_index(tmp_path: Path) -> None:
    save(tmp_path / "b.safetensors", {"b": torch.ones(2)})
    save(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert [path.name for path in safetensors_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    both = open_safetensors(tmp_path)
    assert sorted(both) == ["a", "b"]
    assert len(both) == 2
    assert both["b"].dense().tolist() == [1, 1]
    save(tmp_path / SINGLE, {"only": torch.ones(2)})
    assert list(open_safetensors(tmp_path)) == ["only"]
    write_index(tmp_path, {"a": "a.safetensors"})
    assert list(open_safetensors(tmp_path)) == ["a"]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    assert safetensors_files(tmp_path) == ()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        open_safetensors(tmp_path)


def test_the_index_and_the_files_must_agree(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    folder = shards(tmp_path, {"a": one, "bb": two})
    assert open_safetensors(folder)["bb"].dense().tolist() == [2, 2]
    for wrong, match in (
        ({"a": two, "bb": two}, f"puts tensor 'a' in {two}"),
        ({"a": one, "bb": two, "c": two}, "'c'.*no file"),
        ({"a": one, "bb": one}, "'bb'"),
    ):
        write_index(folder, wrong)
        with pytest.raises(FormatError, match=match):
            open_safetensors(folder)
    write_index(folder, {"a": one, "bb": two})
    save(folder / two, {"a": torch.ones(2), "bb": torch.ones(2)})
    with pytest.raises(FormatError, match="'a' is also in"):
        open_safetensors(folder)
    (folder / two).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", '{"a":1,"a":2}']
)
def test_bad_indexes_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=INDEX):
        open_safetensors(tmp_path)


def test_an_endless_index_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as out:
        out.truncate(MAX_HEADER + 1)
    with pytest.raises(FormatError, match=f"{MAX_HEADER + 1} bytes, more than"):
        open_safetensors(tmp_path)


# --- agreement with the library


def test_whatever_we_accept_the_library_accepts(tmp_path: Path) -> None:
    """Our rules are the stricter ones (but which words are dtypes is the library's to say): 3,000 damaged files."""
    accepted = 0
    for number in range(3000):
        data = fuzz.safetensors_case(4, number)
        entries = fuzz.check_safetensors_header(data)
        if entries and all(item.dtype in DTYPES for item in entries.values()):
            accepted += 1
            path = fuzz.fresh(tmp_path / "x.safetensors", data)
            with safe_open(path, framework="numpy") as theirs:
                assert set(theirs.keys()) == set(entries)
    assert accepted > 100


# --- mutations: 4,000 damaged files through everything; 40,000, every truncation and every bit flip through the parser


def test_mutated_headers_are_refused_or_consistent() -> None:
    accepted = sum(fuzz.check_safetensors_header(fuzz.safetensors_case(1, n)) is not None for n in range(40_000))
    assert accepted > 2000


def test_mutated_files_are_refused_or_readable(tmp_path: Path) -> None:
    accepted = sum(fuzz.check_safetensors_file(fuzz.safetensors_case(2, number), tmp_path) for number in range(4000))
    assert accepted > 100


@pytest.mark.parametrize("seed", range(len(fuzz.ST_SEEDS)))
def test_every_truncation_is_refused(seed: int) -> None:
    for size in range(len(fuzz.ST_SEEDS[seed])):
        assert fuzz.check_safetensors_header(fuzz.ST_SEEDS[seed][:size]) is None


@pytest.mark.parametrize("seed", range(len(fuzz.ST_SEEDS)))
def test_no_single_bit_moves_a_tensor(seed: int) -> None:
    """A flipped bit is refused, or changes a name or a value, but never which bytes are read as what shape of size."""
    data = bytearray(fuzz.ST_SEEDS[seed])
    good = fuzz.check_safetensors_header(bytes(data))
    assert good is not None
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        flipped = fuzz.check_safetensors_header(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
        if flipped is not None:
            assert [(item.start, item.end) for item in flipped.values()] == [(i.start, i.end) for i in good.values()]


def test_small_lies_cannot_allocate_much() -> None:
    for number in range(400):
        data = fuzz.safetensors_case(3, number)
        assert fuzz.peak_bytes(fuzz.check_safetensors_header, data) < len(data) + fuzz.SLACK


@pytest.mark.parametrize("length", fuzz.ABSURD)
def test_absurd_header_lengths_are_refused(length: int) -> None:
    data = safetensors_bytes({"t": entry("F32", [1], 0, 4)}, bytes(4), length)
    assert fuzz.peak_bytes(fuzz.check_safetensors_header, data) < len(data) + fuzz.SLACK
    with pytest.raises(FormatError, match="safetensors header: "):
        parse_header(data, len(data))


@pytest.mark.parametrize("number", [*fuzz.ABSURD[2:], -1])
@pytest.mark.parametrize("place", ["dim", "start", "end"])
def test_absurd_numbers_in_the_header_are_refused(number: int, place: str) -> None:
    numbers = {"dim": 1, "start": 0, "end": 4, place: number}
    data = safetensors_bytes({"t": entry("F32", [numbers["dim"]], numbers["start"], numbers["end"])}, bytes(4))
    with pytest.raises(FormatError, match="'t'"):
        parse_header(data, len(data))
