"""Packing changes no number: a plain reader of the planes gives what checkpoint.dequant gives; so do gathered rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.types import StoredType
from pocketgem.kernels import native

pytestmark = pytest.mark.native

PANEL, SUPER = 16, 256
ROW_COUNTS = [1, 15, 16, 17, 33]
SPECIAL = [0.0, -0.0, 6e-8, -6e-5, 65504.0, float("inf"), float("-inf"), float("nan")]  # as float16


@dataclass(frozen=True)
class Form:
    """A line of the table in native/packed.h, written down a second time."""

    bits: int
    group: int
    units: bool = False  # scales are small integers times a unit
    minimum: bool = False
    zero: int = 0


FORMS = {
    "Q4_0": Form(4, 32, zero=8),
    "Q4_1": Form(4, 32, minimum=True),
    "Q5_0": Form(5, 32, zero=16),
    "Q5_1": Form(5, 32, minimum=True),
    "Q8_0": Form(8, 32),
    "Q2_K": Form(4, 16, units=True, minimum=True),
    "Q3_K": Form(4, 16, units=True, zero=4),
    "Q4_K": Form(4, 32, units=True, minimum=True),
    "Q5_K": Form(5, 32, units=True, minimum=True),
    "Q6_K": Form(6, 16, units=True, zero=32),
    "IQ4_NL": Form(8, 32),
    "IQ4_XS": Form(8, 32, units=True),
}
BLOCK_TYPES = [StoredType(name) for name in FORMS]
ROW_TYPES = [*BLOCK_TYPES, StoredType.F32, StoredType.F16, StoredType.BF16]


class Planes:
    """Reads packed bytes by the drawing in native/packed.h; every number comes back as [columns or groups, rows]."""

    def __init__(self, packed: NDArray[np.uint8], form: Form, rows: int, cols: int) -> None:
        self.packed, self.form, self.cols = packed, form, cols
        self.panels = -(-rows // PANEL)
        self.end = 0
        blocks, groups, supers = cols // 32, cols // form.group, cols // SUPER
        self.base = self.next_plane(np.uint8, blocks, 8 if form.bits == 8 else 4, PANEL, 4)
        high = {5: 1, 6: 2}.get(form.bits, 0)
        self.high = self.next_plane(np.uint8, blocks, high, PANEL, 4)
        self.scale = self.next_plane(np.int8 if form.units else np.float16, groups, PANEL)
        self.scale_unit = self.next_plane(np.float16, supers if form.units else 0, PANEL)
        minimums = groups if form.minimum else 0
        self.minimum = self.next_plane(np.uint8 if form.units else np.float16, minimums, PANEL)
        self.minimum_unit = self.next_plane(np.float16, supers if form.units and form.minimum else 0, PANEL)

    def next_plane(self, dtype: type[Any], *shape: int) -> NDArray[Any]:
        """The plane that begins on the next 64 bytes, [panels, *shape]."""
        count = self.panels * int(np.prod(shape))
        start, self.end = self.end, self.end + -(-count * np.dtype(dtype).itemsize // 64) * 64
        return np.frombuffer(self.packed, dtype, count, start).reshape(self.panels, *shape)

    def q(self) -> NDArray[np.int32]:
        """The integers as stored, before `zero` is taken off: [cols, rows]."""
        return np.stack([self.column(k).reshape(-1) for k in range(self.cols)]).astype(np.int32)

    def column(self, k: int) -> NDArray[Any]:
        """q of column k: [panels, 16]."""
        block, within = divmod(k, 32)
        j, b = divmod(within, 4)
        if self.form.bits == 8:
            return self.base[:, block, j, :, b].view(np.int8)
        i, upper = divmod(j, 2)  # register i: columns 8 i + b low, 8 i + 4 + b high
        q = self.base[:, block, i, :, b] >> (4 * upper) & 15
        if self.form.bits == 5:
            q = q | (self.high[:, block, 0, :, b] >> j & 1) << 4
        if self.form.bits == 6:
            i, t = divmod(j, 4)
            q = q | (self.high[:, block, i, :, b] >> (2 * t) & 3) << 4
        return q

    def numbers(self, plane: NDArray[Any]) -> NDArray[np.float32]:
        """[panels, n, 16] -> [n, rows]."""
        return plane.transpose(1, 0, 2).reshape(plane.shape[1], self.panels * PANEL).astype(np.float32)

    def weights(self) -> NDArray[np.float32]:
        """scale * (q - zero) + minimum, [panels * 16, cols]."""
        form = self.form
        scale, minimum = self.numbers(self.scale), self.numbers(self.minimum)
        if form.units:
            scale = scale * np.repeat(self.numbers(self.scale_unit), SUPER // form.group, axis=0)
        if form.units and form.minimum:
            minimum = -(minimum * np.repeat(self.numbers(self.minimum_unit), SUPER // form.group, axis=0))
        weights = (self.q() - form.zero).astype(np.float32) * np.repeat(scale, form.group, axis=0)
        if form.minimum:
            weights = weights + np.repeat(minimum, form.group, axis=0)
        return weights.T


def pack(kind: str, blocks: Tensor, rows: int, cols: int) -> Tensor:
    """uint8 bytes of [rows, cols] in blocks -> the packed bytes; whatever is not written stays 0xAA."""
    packed = torch.full((native.packed_bytes(kind, rows, cols),), 0xAA, dtype=torch.uint8)
    address = (blocks.data_ptr(), blocks.numel(), rows, cols, packed.data_ptr(), packed.numel())
    native.pack(native.Pool(2), kind, *address)
    return packed


def planes_of(kind: StoredType, blocks: Tensor, rows: int, cols: int) -> Planes:
    planes = Planes(pack(kind, blocks, rows, cols).numpy(), FORMS[kind], rows, cols)
    assert planes.end == native.packed_bytes(kind, rows, cols)
    return planes


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    same = ours.contiguous().view(torch.int32) == theirs.contiguous().view(torch.int32)  # also tells -0 from 0
    assert bool((same | (ours.isnan() & theirs.isnan())).all())


def assert_packed_exactly(kind: StoredType, blocks: Tensor, rows: int, cols: int) -> None:
    with np.errstate(all="ignore"):  # infinite and NaN scales are part of the test
        ours = torch.from_numpy(planes_of(kind, blocks, rows, cols).weights()[:rows])
    assert_same_bits(ours, dequantize(blocks.view(-1, kind.type_size), kind).view(rows, cols))


def random_bytes(kind: StoredType, weights: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(kind) + weights)
    return torch.randint(0, 256, (weights // kind.block_size, kind.type_size), dtype=torch.uint8, generator=generator)


def halves_at(kind: StoredType) -> tuple[int, ...]:
    """Where in a block the float16 numbers are."""
    scale = {StoredType.Q2_K: 80, StoredType.Q3_K: 108, StoredType.Q6_K: 208}.get(kind, 0)
    return (scale, scale + 2) if FORMS[kind].minimum else (scale,)


# --- packing


def test_every_block_type_can_be_packed() -> None:
    for kind in StoredType:
        if kind.block_size > 1:
            assert native.packed_bytes(kind, 1, kind.block_size) > 0


@pytest.mark.parametrize("blocks_a_row", [1, 3])
@pytest.mark.parametrize("rows", ROW_COUNTS)
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_packed_blocks_are_the_same_weights(kind: StoredType, rows: int, blocks_a_row: int) -> None:
    cols = blocks_a_row * kind.block_size
    assert_packed_exactly(kind, random_bytes(kind, rows * cols), rows, cols)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_packed_blocks_with_every_kind_of_scale(kind: StoredType) -> None:
    blocks = random_bytes(kind, len(SPECIAL) ** 2 * kind.block_size)
    special = torch.tensor(SPECIAL, dtype=torch.float16).view(torch.uint8).view(-1, 2)
    for at, scales in zip(halves_at(kind), (special.repeat(8, 1), special.repeat_interleave(8, 0)), strict=False):
        blocks[:, at : at + 2] = scales
    assert_packed_exactly(kind, blocks, len(SPECIAL) * 2, 4 * kind.block_size)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_packed_blocks_of_one_byte_repeated(kind: StoredType) -> None:
    """All fields 0, all at their most, and everything between."""
    blocks = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, kind.type_size)
    assert_packed_exactly(kind, blocks, 256, kind.block_size)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_rows_past_the_end_are_zero_in_every_plane(kind: StoredType) -> None:
    cols = 2 * kind.block_size
    planes = planes_of(kind, torch.full_like(random_bytes(kind, 17 * cols), 255), 17, cols)
    for plane in (planes.base, planes.high):  # [panels, blocks, registers, 16, 4]
        assert not plane[1, :, :, 1:].any()
    for plane in (planes.scale, planes.scale_unit, planes.minimum, planes.minimum_unit):  # [panels, n, 16]
        assert not plane[1, :, 1:].view(np.uint8).any()
    assert planes.base[1, :, :, 0].any()  # the last row itself is there


def test_many_panels_are_many_tasks() -> None:
    rows, cols = 9000, 32  # more than two tasks' worth
    blocks = random_bytes(StoredType.Q8_0, rows * cols)
    planes = planes_of(StoredType.Q8_0, blocks, rows, cols)
    assert np.array_equal(planes.q().T[:rows], blocks[:, 2:].view(torch.int8).numpy())


def test_a_matrix_without_rows_is_no_bytes() -> None:
    assert native.packed_bytes("Q4_0", 0, 64) == 0
    assert pack("Q4_0", torch.empty(0, dtype=torch.uint8), 0, 64).numel() == 0


@pytest.mark.parametrize("kind", ["F16", "Q9_9", ""])
def test_a_type_without_a_format_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no format for"):
        native.packed_bytes(kind, 1, 256)


@pytest.mark.parametrize(("kind", "cols"), [("Q4_0", 33), ("Q4_K", 32), ("Q6_K", 0), ("Q8_0", -32)])
def test_rows_that_are_not_whole_blocks_are_refused(kind: str, cols: int) -> None:
    with pytest.raises(ValueError, match="not whole blocks"):
        native.packed_bytes(kind, 1, cols)
    with pytest.raises(ValueError, match="not whole blocks"):
        native.dequantize_rows(None, kind, 0, 1, cols, 0, 0, 1.0, 0)


@pytest.mark.parametrize(("rows", "cols"), [(-1, 32), (1 << 60, 32), (1, 1 << 59)])
def test_shapes_whose_bytes_cannot_be_counted_are_refused(rows: int, cols: int) -> None:
    with pytest.raises(ValueError, match="no matrix has"):
        native.packed_bytes("Q4_0", rows, cols)


def test_memory_of_the_wrong_size_is_refused() -> None:
    source, target = torch.zeros(18, dtype=torch.uint8), torch.zeros(384, dtype=torch.uint8)
    good = {
        "pool": native.Pool(1),
        "type": "Q4_0",
        "source_address": source.data_ptr(),
        "source_bytes": 18,
        "rows": 1,
        "cols": 32,
        "target_address": target.data_ptr(),
        "target_bytes": native.packed_bytes("Q4_0", 1, 32),
    }
    native.pack(**good)
    with pytest.raises(ValueError, match="source has 17 bytes, not 18"):
        native.pack(**{**good, "source_bytes": 17})
    with pytest.raises(ValueError, match="target has 256 bytes"):
        native.pack(**{**good, "target_bytes": 256})
    with pytest.raises(ValueError, match="64 bytes"):
        native.pack(**{**good, "target_address": target.data_ptr() + 2})


# --- rows


def rows_of(kind: str, data: Tensor, shape: tuple[int, int], ids: Tensor, factor: float, threads: int = 0) -> Tensor:
    out = torch.full((len(ids), shape[1]), 7.0)
    pool = native.Pool(threads) if threads else None
    native.dequantize_rows(pool, kind, data.data_ptr(), *shape, ids.data_ptr(), len(ids), factor, out.data_ptr())
    return out


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", ROW_TYPES)
def test_gathered_rows_are_the_same_bits(kind: StoredType, threads: int) -> None:
    shape = (70, 3 * kind.block_size)
    table = random_bytes(kind, shape[0] * shape[1])
    ids = torch.cat((torch.arange(69, -1, -1), torch.tensor([5, 5, 0, 69, 5])))
    expected = dequantize(table, kind).view(shape)[ids]
    assert_same_bits(rows_of(kind, table, shape, ids, 1.0, threads), expected)
    assert_same_bits(rows_of(kind, table, shape, ids, 0.3, threads), expected * 0.3)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_gathered_rows_with_every_scale(kind: StoredType) -> None:
    """Every seventh float16 in turn: zeros, subnormals, the largest, infinities and NaNs."""
    scales = torch.arange(0, 1 << 16, 7, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(-1, 2)
    shape = (len(scales), kind.block_size)
    blocks = random_bytes(kind, shape[0] * shape[1])
    for at in halves_at(kind):
        blocks[:, at : at + 2] = scales
    expected = dequantize(blocks, kind)
    assert_same_bits(rows_of(kind, blocks, shape, torch.arange(shape[0]), 1.0), expected)


@pytest.mark.parametrize("kind", [StoredType.F16, StoredType.BF16])
def test_every_number_of_sixteen_bits_is_widened(kind: StoredType) -> None:
    data = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8)
    expected = dequantize(data.view(-1, 2), kind).view(16, -1)
    assert_same_bits(rows_of(kind, data, (16, 1 << 12), torch.arange(16), 1.0), expected)


def test_subnormal_scales_count_where_subnormals_are_flushed() -> None:
    data = torch.tensor([1, 1023, 1024], dtype=torch.int32).to(torch.uint16).view(torch.uint8)
    torch.set_flush_denormal(True)
    try:
        out = rows_of("F16", data, (1, 3), torch.tensor([0]), 1.0)
    finally:
        torch.set_flush_denormal(False)
    assert out.tolist() == [[2.0**-24, 1023 * 2.0**-24, 2.0**-14]]


def test_rows_at_odd_addresses_are_read() -> None:
    """safetensors promises no alignment."""
    values = torch.tensor([[1.5, -2.0], [3.0, 4.0]])
    data = torch.cat((torch.zeros(1, dtype=torch.uint8), values.view(torch.uint8).view(-1)))[1:]
    assert rows_of("F32", data, (2, 2), torch.tensor([1, 0]), 1.0).tolist() == [[3.0, 4.0], [1.5, -2.0]]


def test_no_ids_are_no_rows() -> None:
    out = rows_of("Q4_0", random_bytes(StoredType.Q4_0, 64), (2, 32), torch.empty(0, dtype=torch.int64), 1.0, threads=2)
    assert out.shape == (0, 32)


@pytest.mark.parametrize("ids", [[2], [-1], [0, 1, 1 << 40]])
def test_rows_outside_the_table_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="outside the 2 rows"):
        rows_of("Q4_0", random_bytes(StoredType.Q4_0, 64), (2, 32), torch.tensor(ids), 1.0)


def test_rows_of_an_unknown_type_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot read rows of I8"):
        rows_of("I8", torch.zeros(4, dtype=torch.uint8), (2, 2), torch.tensor([0]), 1.0)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="ids"):
        native.dequantize_rows(None, "Q4_0", 0, 2, 32, 0, -1, 1.0, 0)
