"""GGUF: what we write we read back, what gguf reads we read, and what is wrong is refused with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from pocketgem.checkpoint.dequant import dequantize, dtype_of
from pocketgem.checkpoint.gguf import GGUFFile, first_part, split_paths
from pocketgem.checkpoint.header import MAX_COUNT, MAX_ENTRIES, TensorInfo, parse_header
from pocketgem.checkpoint.metadata import metadata_bool, metadata_float, metadata_int, metadata_list, metadata_str
from pocketgem.checkpoint.types import GGML_TYPES, StoredType, tensor_bytes
from pocketgem.checkpoint.write import write_gguf
from pocketgem.errors import CheckpointError, FormatError, PocketgemError, UnsupportedError, WeightsError
from tests import fuzz_checkpoint as fuzz
from tests.fuzz_checkpoint import ARCHITECTURE, ARRAY, STRING, VALUES, gguf_bytes

QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]  # what gguf can quantise to

# --- round trips


def write_one(path: Path, values: Tensor, kind: StoredType) -> GGUFFile:
    write_gguf(path, "gemma3", {}, [("first", torch.ones(3), StoredType.F32), ("t", values, kind)])
    return GGUFFile.open(path)


@pytest.mark.parametrize("name", [*QUANTISED, "F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"])
def test_values_of_every_writable_type_come_back(tmp_path: Path, name: str) -> None:
    kind = StoredType[name]
    values = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0)) * 20
    tensor = write_one(tmp_path / "x.gguf", values, kind).tensors["t"]
    assert (tensor.shape, tensor.type) == ((3, 2, 64), kind)
    if (dtype := dtype_of(kind)) is not None:
        assert torch.equal(tensor.dense(dtype), values.to(dtype))
    else:
        theirs = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[name])
        assert tensor.data.numpy().tobytes() == theirs.tobytes()
        assert (tensor.dense() - values).abs().max() < 6  # of values up to about 60


@pytest.mark.parametrize("kind", [kind for kind in StoredType if kind.packed])
def test_ready_blocks_of_every_block_type_come_back(tmp_path: Path, kind: StoredType) -> None:
    blocks = torch.randint(0, 256, (4, 3 * kind.type_size), dtype=torch.uint8)
    tensor = write_one(tmp_path / "x.gguf", blocks, kind).tensors["t"]
    assert tensor.shape == (4, 3 * kind.block_size)
    assert torch.equal(tensor.data, blocks.view(-1))
    expected = dequantize(blocks.view(-1, kind.type_size), kind).view(tensor.shape)
    assert torch.equal(tensor.dense().nan_to_num(), expected.nan_to_num())


def test_long_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(50, 32)
    whole = write_one(tmp_path / "whole.gguf", values, StoredType.Q8_0).tensors["t"].data
    monkeypatch.setattr("pocketgem.checkpoint.write.CHUNK", 100)
    assert torch.equal(write_one(tmp_path / "pieces.gguf", values, StoredType.Q8_0).tensors["t"].data, whole)


METADATA: dict[str, object] = {
    "bool": True, "text": "", "unicode": "gem 💎", "float": 0.25, "infinite": float("inf"), "double": 1e300,
    "u32": 2**32 - 1, "i32": -(2**31), "u64": 2**64 - 1, "i64": -(2**63), "bools": [True, False], "texts": ["a", ""],
    "floats": [0.5, -1.0], "ints": [-1, 2**31 - 1], "longs": [-(2**63), 2**63 - 1], "unsigned": [2**64 - 1, 0],
}  # fmt: skip


def test_metadata_comes_back_with_its_types(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", "gemma3", METADATA, [])
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert file.architecture == "gemma3"
    assert dict(file.metadata) == {"general.architecture": "gemma3", **METADATA}
    assert [type(file.metadata[key]) for key in METADATA] == [type(value) for value in METADATA.values()]


def test_metadata_about_the_old_file_is_not_passed_on(tmp_path: Path) -> None:
    old = {"general.architecture": "other", "general.alignment": 64, "split.count": 3, "split.no": 1, "kept": 1}
    write_gguf(tmp_path / "x.gguf", "gemma3", old, [("t", torch.ones(40), StoredType.F32)])
    assert GGUFFile.open(tmp_path / "x.gguf").metadata == {"general.architecture": "gemma3", "kept": 1}


@pytest.mark.parametrize("value", [[], [1, 2.0], [1, "a"], None, {"a": 1}, 1 << 64, [-1, 1 << 63], [[1]]])
def test_metadata_without_a_gguf_type_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UnsupportedError, match="metadata key k"):
        write_gguf(tmp_path / "x.gguf", "gemma3", {"k": value}, [])
    assert list(tmp_path.iterdir()) == []  # and no half-written file is left


def test_tensors_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    for values, kind, error in (
        (torch.ones(2, 256), StoredType.Q4_K, UnsupportedError),
        (torch.ones(2, 33), StoredType.Q8_0, WeightsError),
        (torch.ones(2, 0), StoredType.F32, WeightsError),
        (torch.ones(0, 2), StoredType.F32, WeightsError),
        (torch.ones(35, dtype=torch.uint8), StoredType.Q8_0, WeightsError),
    ):
        with pytest.raises(error, match="t: "):
            write_one(tmp_path / "x.gguf", values, kind)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_one(tmp_path / "nowhere" / "x.gguf", torch.ones(1), StoredType.F32)
    assert list(tmp_path.iterdir()) == []


# --- reading


@pytest.mark.parametrize("kind", list(VALUES))
def test_every_value_type_is_read(kind: int) -> None:
    example = VALUES[kind][1]
    built = gguf_bytes([ARCHITECTURE, ("one", kind, example), ("many", ARRAY, (kind, [example] * 3))], [])
    metadata = parse_header(bytes(built.data), len(built.data)).metadata
    assert metadata["many"] == [metadata["one"]] * 3
    assert metadata["one"] == (example if kind != 6 else np.float32(example))  # type: ignore[arg-type]
    assert type(metadata["one"]) is type(example)


@pytest.mark.weights
def test_the_real_file_as_gguf_reads_it(real_model_path: Path) -> None:
    ours, theirs = GGUFFile.open(real_model_path), gguf.GGUFReader(real_model_path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert mine.type.name == tensor.tensor_type.name
        assert mine.nbytes == tensor.n_bytes
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "gemma3.rope.freq_base", "general.tags"):
        assert ours.metadata[key] == theirs.fields[key].contents()
    assert len({tensor.type for tensor in ours.tensors.values()}) >= 5
    for name in ("output_norm", "blk.0.attn_k", "blk.0.attn_output", "blk.0.attn_v", "blk.0.ffn_down"):
        found = next(tensor for tensor in theirs.tensors if tensor.name == f"{name}.weight")
        expected = torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
        assert torch.equal(ours.tensors[found.name].dense(), expected)


# --- refusals


def refused(built: fuzz.Built | bytes, match: str, error: type[PocketgemError] = FormatError) -> None:
    data = built if isinstance(built, bytes) else bytes(built.data)
    with pytest.raises(error, match=match) as caught:
        parse_header(data, len(data), "x.gguf")
    assert str(caught.value).startswith("x.gguf: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_gguf_say_so() -> None:
    good = bytes(fuzz.GGUF_SEEDS[0].data)
    refused(b"PK\3\4" + good[4:], "not a GGUF file")
    refused(b"", "magic")
    refused(good[:4] + (1).to_bytes(4, "little") + good[8:], "version 1", UnsupportedError)
    refused(good[:4] + (3).to_bytes(4, "big") + good[8:], "big-endian", UnsupportedError)
    refused(good + b"more", "4 bytes after the last tensor")


def test_bad_keys_are_named() -> None:
    refused(gguf_bytes([ARCHITECTURE, ARCHITECTURE], []), "'general.architecture' is there twice")
    refused(gguf_bytes([("", 4, 1)], []), "not a printable name")
    refused(gguf_bytes([("a\n", 4, 1)], []), "not a printable name")
    refused(gguf_bytes([("nested", ARRAY, (ARRAY, [array]))], []), "nested.*array of arrays", UnsupportedError)
    built = gguf_bytes([("flag", 7, True)], [])
    refused(bytes(built.data).rstrip(b"\0")[:-1] + b"\2", "flag.*neither 0 nor 1")
    text = ("bad", STRING, b"\xff\xfe")
    refused(gguf_bytes([text], []), "bad.*not valid UTF-8")
    refused(gguf_bytes([("bad", ARRAY, (STRING, ["ok", b"\xff"]))], []), "bad.*string 1, is not valid UTF-8")
    refused(gguf_bytes([("k" * 65536, 4, 1)], []), "65536 bytes long")


array = (4, [1])  # the inner array of the nested case


@pytest.mark.parametrize("alignment", [0, 1, 3, 4, 48, 1 << 17, 1 << 31])
def test_impossible_alignments_are_refused(alignment: int) -> None:
    refused(gguf_bytes([("general.alignment", 4, alignment)], []), "general.alignment")


def test_bad_tensors_are_named() -> None:
    refused(gguf_bytes([], [("a", (4,), 0), ("a", (4,), 0)]), "'a' is there twice")
    refused(gguf_bytes([], [("", (4,), 0)]), "not a printable name")
    refused(gguf_bytes([], [("a\0", (4,), 0)]), "not a printable name")
    refused(gguf_bytes([], [("n" * 65, (4,), 0)]), "65 bytes long")
    refused(gguf_bytes([], [("a", (1, 1, 1, 1, 1), 0)]), "5 dimensions")
    refused(gguf_bytes([], [("a", (4, 0), 0)]), "'a' has shape")
    refused(gguf_bytes([], [("a", (33, 2), 2)]), r"'a' has shape \[2, 33\], impossible for Q4_0")
    for kind, match, error in ((16, "IQ2_XXS", UnsupportedError), (4, "unknown type 4", FormatError)):
        built = gguf_bytes([], [("a", (32,), 0)])
        offset = next(offset for offset, _, what in built.fields if what == "tensor type")
        built.data[offset : offset + 4] = kind.to_bytes(4, "little")
        refused(built, f"'a'.*{match}", error)


def test_padding_must_be_zero() -> None:
    built = gguf_bytes([], [("a", (4,), 0), ("b", (4,), 0)])
    header = parse_header(built.data, len(built.data))
    for place in (header.tensors[0].start - 1, len(built.data) - 1):
        refused(bytes(built.data[:place]) + b"\1" + bytes(built.data[place + 1 :]), "padding")


@pytest.mark.parametrize("offset", [0, 16, 31, 33, 96, 1 << 40, 2**64 - 1])
def test_offsets_that_are_unaligned_overlap_leave_a_gap_or_the_file(offset: int) -> None:
    built = gguf_bytes([], [("a", (5,), 0), ("b", (5,), 0)])  # b belongs at 32
    where = [place for place, _, what in built.fields if what == "offset"][1]
    built.data[where : where + 8] = offset.to_bytes(8, "little")
    refused(built, "'b' starts at byte")


def test_sizes_are_exact_beyond_machine_integers() -> None:
    huge = (2**63, 2**64 - 1, 3)
    assert tensor_bytes(huge, StoredType.F16) == 2 * 3 * 2**63 * (2**64 - 1)
    assert tensor_bytes((7, 1 << 40, 256), StoredType.Q6_K) == 7 * (1 << 40) * 210


# --- typed reads


WRONG: dict[str, object] = {
    "int": 3, "float": 0.5, "str": "x", "bool": True, "ints": [1], "strs": ["a"], "bools": [True], "nan": float("nan"),
}  # fmt: skip
READERS: dict[str, tuple[Callable[[str], object], set[str]]] = {  # what reads a key, and which of WRONG it accepts
    "int": (lambda key: metadata_int(WRONG, key), {"int"}),
    "float": (lambda key: metadata_float(WRONG, key), {"int", "float"}),
    "str": (lambda key: metadata_str(WRONG, key), {"str"}),
    "bool": (lambda key: metadata_bool(WRONG, key), {"bool"}),
    "ints": (lambda key: metadata_list(WRONG, key, int, length=1), {"ints"}),
    "strs": (lambda key: metadata_list(WRONG, key, str), {"strs"}),
    "bools": (lambda key: metadata_list(WRONG, key, bool), {"bools"}),
}


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("key", list(WRONG))
def test_metadata_of_the_wrong_type_is_refused(reader: str, key: str) -> None:
    read, accepted = READERS[reader]
    if key in accepted:
        assert read(key) == WRONG[key]
    else:
        with pytest.raises(FormatError, match=f"{key} is"):
            read(key)


def test_metadata_bounds_lengths_and_defaults() -> None:
    assert metadata_int({}, "k", 5) == 5
    assert metadata_list({}, "k", str, []) == []
    with pytest.raises(FormatError, match=r"x\.gguf: the key k is missing"):
        metadata_int({}, "k", where="x.gguf")
    for call in (
        lambda: metadata_int({"k": -1}, "k"),
        lambda: metadata_int({"k": 11}, "k", high=10),
        lambda: metadata_float({"k": 0.0}, "k", low=0.1),
        lambda: metadata_list({"k": [1]}, "k", int, length=2),
    ):
        with pytest.raises(FormatError, match="GGUF metadata: k "):
            call()


# --- split sets: names (their contents: tests/attacks/test_model_files.py, G16)


def test_names_of_split_sets() -> None:
    paths = [Path(f"d/m-0000{i}-of-00003.gguf") for i in (1, 2, 3)]
    assert split_paths(paths[1]) == paths
    assert first_part(paths[2]) == paths[0]
    for plain in (Path("d/m.gguf"), Path("m-1-of-3.gguf"), Path("m-00001-of-00000.gguf")):
        assert split_paths(plain) == [plain]
        assert first_part(plain) == plain


# --- mutations: 4,000 damaged files through everything; 40,000, every truncation and every bit flip through the parser


def test_mutated_headers_are_refused_or_consistent() -> None:
    accepted = sum(fuzz.check_gguf_header(fuzz.gguf_case(1, number)) is not None for number in range(40_000))
    assert accepted > 2000  # the mutator still reaches past the first checks


def test_mutated_files_are_refused_or_readable(tmp_path: Path) -> None:
    accepted = sum(fuzz.check_gguf_file(fuzz.gguf_case(2, number), tmp_path) for number in range(4000))
    assert accepted > 200


@pytest.mark.parametrize("seed", range(len(fuzz.GGUF_SEEDS)))
def test_every_truncation_is_refused(seed: int) -> None:
    data = bytes(fuzz.GGUF_SEEDS[seed].data)
    header = fuzz.check_gguf_header(data)
    assert header is not None
    needed = header.tensors[-1].end if header.tensors else len(data) - 31  # what follows is padding
    for size in range(len(data)):
        cut = fuzz.check_gguf_header(data[:size])
        assert cut is None or (size >= needed and cut == header)


@pytest.mark.parametrize("seed", range(len(fuzz.GGUF_SEEDS)))
def test_no_single_bit_moves_a_tensor(seed: int) -> None:
    """A flipped bit is refused, or changes a name or a value, but never which bytes are read as what.

    One hole is the format's own: a tensor can grow into the zeros that pad it.
    """
    data = bytearray(fuzz.GGUF_SEEDS[seed].data)
    header = fuzz.check_gguf_header(bytes(data))
    assert header is not None
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        flipped = fuzz.check_gguf_header(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
        for was, now in zip(header.tensors, flipped.tensors, strict=True) if flipped else ():
            grown = was.start == now.start and was.end < now.end and not any(data[was.end : now.end])
            assert layout(was) == layout(now) or grown


def layout(tensor: TensorInfo) -> tuple[object, ...]:
    return tensor.shape, tensor.type, tensor.start, tensor.end


def test_small_lies_cannot_allocate_much() -> None:
    for number in range(400):
        data = fuzz.gguf_case(3, number)
        assert fuzz.peak_bytes(fuzz.check_gguf_header, data) < len(data) + fuzz.SLACK


@pytest.mark.parametrize("kind", list(VALUES))
def test_large_arrays_cost_a_known_multiple(kind: int) -> None:
    """The Python objects of an array entry are at most about 60 bytes, so 2^22 entries bound them all."""
    count = 50_000
    data = bytes(gguf_bytes([("k", ARRAY, (kind, [VALUES[kind][1]] * count))], []).data)
    assert fuzz.peak_bytes(fuzz.check_gguf_header, data) < len(data) + 100 * count
    built = gguf_bytes([("k", ARRAY, (kind, []))], [])
    place = next(offset for offset, _, what in built.fields if what == "array count")
    built.data[place : place + 8] = (MAX_ENTRIES + 1).to_bytes(8, "little")
    refused(bytes(built.data) + bytes(8), "array entries")


def test_too_many_keys_or_tensors_are_refused_before_they_are_read() -> None:
    for what in ("tensor count", "key count"):
        built = gguf_bytes([], [])
        place = next(offset for offset, _, name in built.fields if name == what)
        for number in (MAX_COUNT, MAX_COUNT + 1):
            built.data[place : place + 8] = number.to_bytes(8, "little")
            refused(built, "do not fit" if number == MAX_COUNT else "more than the limit")


def test_the_types_of_the_seeds_cover_everything() -> None:
    types = {tensor.type for seed in fuzz.GGUF_SEEDS for tensor in parse_header(seed.data, len(seed.data)).tensors}
    assert types == set(GGML_TYPES.values())
