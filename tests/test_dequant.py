"""Block types against gguf.quants, bit for bit; and reading stored tensors whole or by rows."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from pocketgem.checkpoint import unpack
from pocketgem.checkpoint.dequant import dequantize, dtype_of
from pocketgem.checkpoint.tensor import MappedFile, StoredTensor
from pocketgem.checkpoint.types import GGML_NOT_RUN, GGML_TYPES, StoredType
from pocketgem.errors import WeightsError

BLOCK_TYPES = [kind for kind in StoredType if kind.packed]
PLAIN_TYPES = [kind for kind in StoredType if not kind.packed]


def reference(blocks: Tensor, kind: StoredType) -> Tensor:
    with np.errstate(all="ignore"):  # infinite and NaN scales are part of the test
        return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind.name]))


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    same = ours.view(torch.int32) == theirs.view(torch.int32)  # also tells -0 from 0
    assert bool((same | (ours.isnan() & theirs.isnan())).all())


def random_blocks(kind: StoredType, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(kind) + count)
    return torch.randint(0, 256, (count, kind.type_size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_random_blocks_give_the_same_bits(kind: StoredType) -> None:
    blocks = random_blocks(kind, 4096)
    assert_same_bits(dequantize(blocks, kind), reference(blocks, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_kind_of_scale_gives_the_same_bits(kind: StoredType) -> None:
    """Zeros, subnormals, the largest, infinities and NaNs: every seventh float16 in turn, at both ends of the block."""
    scales = torch.arange(0, 1 << 16, 7, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(-1, 2)
    for at in (0, kind.type_size - 2, kind.type_size - 4):
        blocks = random_blocks(kind, len(scales))
        blocks[:, at : at + 2] = scales
        assert_same_bits(dequantize(blocks, kind), reference(blocks, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_constant_bytes_give_the_same_bits(kind: StoredType) -> None:
    blocks = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, kind.type_size)
    assert_same_bits(dequantize(blocks, kind), reference(blocks, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_strided_and_empty_blocks(kind: StoredType) -> None:
    blocks = random_blocks(kind, 8)
    assert_same_bits(dequantize(blocks[::2], kind), dequantize(blocks, kind)[::2])
    assert dequantize(blocks[:0], kind).shape == (0, kind.block_size)


def test_sizes_and_numbers_are_those_of_ggml() -> None:
    for number, kind in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert theirs.name == kind.name
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_size, kind.type_size)
    assert set(GGML_TYPES.values()) == set(StoredType)
    for number, name in GGML_NOT_RUN.items():
        assert gguf.GGMLQuantizationType(number).name == name


# --- stored tensors


class Memory(MappedFile):
    """Bytes that lie in memory and never change, in a file's place."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def check_unchanged(self) -> None:
        pass


def stored(kind: StoredType, shape: tuple[int, ...], data: Tensor | None = None) -> StoredTensor:
    blocks = int(torch.tensor(shape).prod()) // kind.block_size
    data = random_blocks(kind, blocks).view(-1) if data is None else data
    return StoredTensor("t", shape, kind, Memory(data), 0, data.numel())


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_dense_is_the_same_in_any_number_of_chunks(kind: StoredType, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = stored(kind, (3, 5, 2 * kind.block_size))
    whole = tensor.dense()
    assert whole.shape == tensor.shape
    assert_same_bits(whole.view(-1, kind.block_size), reference(tensor.data.view(-1, kind.type_size), kind))
    monkeypatch.setattr(unpack, "CHUNK", 7 * kind.block_size)
    assert_same_bits(tensor.dense(), whole)
    assert torch.equal(tensor.dense(torch.bfloat16).nan_to_num(), whole.bfloat16().nan_to_num())


@pytest.mark.parametrize("kind", list(StoredType))
def test_rows_are_rows_of_the_whole(kind: StoredType, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = stored(kind, (4, 3, 2 * kind.block_size))
    ids = torch.tensor([11, 0, 5, 5, 2])
    expected = tensor.dense().view(12, -1)[ids]
    assert_same_bits(tensor.rows(ids), expected)
    monkeypatch.setattr(unpack, "CHUNK", 1)
    assert_same_bits(tensor.rows(ids), expected)
    assert tensor.rows(ids[:0]).shape == (0, 2 * kind.block_size)


@pytest.mark.parametrize("ids", [[12], [-1], [0, 99]])
def test_rows_outside_the_table_are_refused(ids: list[int]) -> None:
    with pytest.raises(WeightsError, match="t has 12 rows"):
        stored(StoredType.Q8_0, (4, 3, 32)).rows(torch.tensor(ids))


@pytest.mark.parametrize("kind", PLAIN_TYPES)
def test_plain_values_are_the_bytes_themselves(kind: StoredType) -> None:
    dtype = dtype_of(kind)
    assert dtype is not None
    values = torch.tensor([[-2, 0, 1], [5, 100, 7]]).to(dtype)
    tensor = stored(kind, (2, 3), values.view(torch.uint8).view(-1))
    assert torch.equal(tensor.dense(dtype), values)
    assert tensor.dense(dtype).data_ptr() == values.data_ptr()  # a view, not a copy
    assert torch.equal(tensor.dense(), values.float())
    assert torch.equal(tensor.rows(torch.tensor([1])), values[1:].float())


def test_plain_conversions_do_not_pass_through_float32() -> None:
    numbers = torch.tensor([2**53 + 1, -(2**62)])
    tensor = stored(StoredType.I64, (2,), numbers.view(torch.uint8))
    assert torch.equal(tensor.dense(torch.int64), numbers)
    tensor = stored(StoredType.F64, (1,), torch.tensor([0.1], dtype=torch.float64).view(torch.uint8))
    assert tensor.dense(torch.float64).item() == 0.1


def test_bytes_at_odd_places_are_read(tmp_path: Path) -> None:
    """safetensors promises no alignment."""
    (tmp_path / "x").write_bytes(b"\0" + torch.tensor([1.5, -2.0]).numpy().tobytes())
    file = MappedFile(tmp_path / "x")
    tensor = StoredTensor("t", (2,), StoredType.F32, file, 1, file.size)
    assert tensor.numbers() == [1.5, -2.0]
    assert tensor.dense().tolist() == [1.5, -2.0]
    assert tensor.rows(torch.tensor([0])).tolist() == [[1.5, -2.0]]


def test_a_scalar_is_a_table_of_one_row() -> None:
    tensor = stored(StoredType.F32, (), torch.tensor([3.0]).view(torch.uint8))
    assert tensor.dense().shape == ()
    assert tensor.rows(torch.tensor([0])).tolist() == [[3.0]]
    assert (tensor.numel, tensor.nbytes) == (1, 4)
