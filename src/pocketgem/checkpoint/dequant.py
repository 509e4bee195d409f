"""How the bytes of stored weights become float32.

A block type packs 32 or 256 consecutive weights of one row into a block of bytes: a half-precision scale (some add a
minimum), sometimes small integer scales for sub-blocks, and 2 to 8 bits a weight. The layouts, drawn above each
function as ``field bytes | field bytes``, are those of ggml's block structs (ggml-common.h). Sums and products are
taken in the same order as ggml's reference, one rounding each, so the results are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pocketgem.checkpoint.types import StoredType

# The sixteen steps of IQ4_NL and IQ4_XS, finer near zero.
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dtype_of(type: StoredType) -> torch.dtype | None:
    """The torch dtype whose bytes these are; None for a block type."""
    return _PLAIN.get(type)


def dequantize(blocks: Tensor, type: StoredType) -> Tensor:
    """``blocks`` uint8 [n, type_size] -> float32 [n, block_size], a new tensor."""
    dtype = dtype_of(type)
    if dtype is not None:
        return blocks.contiguous().view(dtype).to(torch.float32, copy=True)  # [n, 1]
    return _UNPACK[type](blocks)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of every block, as float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [n, groups, k] -> uint8 [n, groups, 2, k]: all low nibbles of a group, then all high ones."""
    n, groups, k = packed.shape
    out = packed.new_empty(n, groups, 2, k)
    torch.bitwise_and(packed, 15, out=out[:, :, 0])
    torch.bitwise_right_shift(packed, 4, out=out[:, :, 1])
    return out


def _fields(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 [n, groups, k] -> uint8 [n, groups, count, k]: the ``count`` lowest fields of ``bits`` bits."""
    n, groups, k = packed.shape
    out = packed.new_empty(n, groups, count, k)
    for i in range(count):
        torch.bitwise_right_shift(packed, bits * i, out=out[:, :, i])
    return out.bitwise_and_((1 << bits) - 1)


# d 2 | 16 bytes: weights 0..15 in the low nibbles, 16..31 in the high ones
def _q4_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, None, 2:]).view(torch.int8).sub_(8)  # [n, 1, 2, 16]
    return q.view(-1, 32).float().mul_(_half(blocks, 0))


# d 2 | min 2 | 16 bytes as Q4_0
def _q4_1(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, None, 4:])
    return q.view(-1, 32).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """Fifth bits uint8 [n, 4] (weight i: bit i of 32) and nibbles uint8 [n, 16] -> uint8 [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=high.device)
    fifth = high[:, :, None].bitwise_right_shift(shifts).bitwise_and_(1).bitwise_left_shift_(4)  # [n, 4, 8]
    return _nibbles(low[:, None]).view(-1, 32).bitwise_or_(fifth.view(-1, 32))


# d 2 | fifth bits 4 | 16 bytes as Q4_0
def _q5_0(blocks: Tensor) -> Tensor:
    q = _five_bits(blocks[:, 2:6], blocks[:, 6:]).view(torch.int8).sub_(16)
    return q.float().mul_(_half(blocks, 0))


# d 2 | min 2 | fifth bits 4 | 16 bytes as Q4_0
def _q5_1(blocks: Tensor) -> Tensor:
    q = _five_bits(blocks[:, 4:8], blocks[:, 8:])
    return q.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


# d 2 | 32 signed bytes
def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


# scale (low) and min (high) nibbles of 16 sub-blocks 16 | two-bit weights 64 | d 2 | dmin 2
def _q2_k(blocks: Tensor) -> Tensor:
    scale = (blocks[:, :16] & 15).float().mul_(_half(blocks, 80))  # [n, 16]
    low = (blocks[:, :16] >> 4).float().mul_(_half(blocks, 82))  # [n, 16]
    q = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).view(-1, 16, 16)
    return q.float().mul_(scale[:, :, None]).sub_(low[:, :, None]).view(-1, 256)


# inverted third bits 32 (byte l, bit j: weight 32 j + l) | two-bit weights 64 | 16 six-bit scales 12 | d 2
def _q3_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).view(-1, 256)
    third = _fields(blocks[:, None, :32], 1, 8).view(-1, 256).bitwise_left_shift_(2)
    q = low.bitwise_or_(third).view(torch.int8).sub_(4)  # the bit is set where nothing is to be taken off
    scale = _scales_q3_k(blocks[:, 96:108]).float().mul_(_half(blocks, 108))  # [n, 16]
    return q.view(-1, 16, 16).float().mul_(scale[:, :, None]).view(-1, 256)


def _scales_q3_k(packed: Tensor) -> Tensor:
    """uint8 [n, 12] -> int8 [n, 16]: four low bits in bytes 0..7, two high bits in bytes 8..11, less 32."""
    low = _nibbles(packed[:, None, :8]).view(-1, 16)
    high = _fields(packed[:, None, 8:], 2, 4).view(-1, 16)
    return low.bitwise_or_(high.bitwise_left_shift_(4)).view(torch.int8).sub_(32)


def _scales_k(packed: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 12] -> six-bit scales and mins of eight sub-blocks, each uint8 [n, 8].

    Bytes 0..3 and 4..7 hold scales and mins of sub-blocks 0..3; their two top bits belong to sub-blocks 4..7, whose
    four low bits are the nibbles of bytes 8..11 (low: scale, high: min).
    """
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = torch.cat((first & 63, (rest & 15) | (first >> 2 & 48)), dim=1)
    low = torch.cat((second & 63, (rest >> 4) | (second >> 2 & 48)), dim=1)
    return scale, low


def _affine_k(q: Tensor, blocks: Tensor) -> Tensor:
    """``q`` uint8 [n, 256] -> d * scale * q - dmin * min for a block that starts d 2 | dmin 2 | scales 12."""
    scale, low = _scales_k(blocks[:, 4:16])
    scales = scale.float().mul_(_half(blocks, 0))  # [n, 8]
    lows = low.float().mul_(_half(blocks, 2))  # [n, 8]
    return q.view(-1, 8, 32).float().mul_(scales[:, :, None]).sub_(lows[:, :, None]).view(-1, 256)


# d 2 | dmin 2 | scales and mins 12 | nibbles 128: four groups of 32 bytes, low nibbles first
def _q4_k(blocks: Tensor) -> Tensor:
    return _affine_k(_nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 256), blocks)


# d 2 | dmin 2 | scales and mins 12 | fifth bits 32 (byte l, bit j: weight 32 j + l) | nibbles 128 as Q4_K
def _q5_k(blocks: Tensor) -> Tensor:
    fifth = _fields(blocks[:, None, 16:48], 1, 8).view(-1, 256).bitwise_left_shift_(4)
    low = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 256)
    return _affine_k(low.bitwise_or_(fifth), blocks)


# nibbles 128: two groups of 64 | two high bits 64: two groups of 32 | 16 signed scales 16 | d 2
def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 256)
    high = _fields(blocks[:, 128:192].view(-1, 2, 32), 2, 4).view(-1, 256).bitwise_left_shift_(4)
    q = low.bitwise_or_(high).view(torch.int8).sub_(32)
    scale = blocks[:, 192:208].view(torch.int8).float().mul_(_half(blocks, 208))  # [n, 16]
    return q.view(-1, 16, 16).float().mul_(scale[:, :, None]).view(-1, 256)


def _nonlinear(q: Tensor) -> Tensor:
    """Nibbles uint8 of any shape -> their float32 steps."""
    return torch.tensor(_NONLINEAR, dtype=torch.float32, device=q.device)[q.int()]


# d 2 | 16 bytes as Q4_0, each nibble an index of _NONLINEAR
def _iq4_nl(blocks: Tensor) -> Tensor:
    return _nonlinear(_nibbles(blocks[:, None, 2:]).view(-1, 32)).mul_(_half(blocks, 0))


# d 2 | two high bits of 8 scales 2 | four low bits of 8 scales 4 | nibbles 128: eight groups of 16
def _iq4_xs(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 4:8, None], 4, 2).view(-1, 8)
    high = _fields(blocks[:, 2:4, None], 2, 4).view(-1, 8).bitwise_left_shift_(4)
    scale = low.bitwise_or_(high).view(torch.int8).sub_(32).float().mul_(_half(blocks, 0))  # [n, 8]
    values = _nonlinear(_nibbles(blocks[:, 8:].view(-1, 8, 16)).view(-1, 8, 32))
    return values.mul_(scale[:, :, None]).view(-1, 256)


_PLAIN = {
    StoredType.F32: torch.float32,
    StoredType.F16: torch.float16,
    StoredType.BF16: torch.bfloat16,
    StoredType.F64: torch.float64,
    StoredType.I8: torch.int8,
    StoredType.I16: torch.int16,
    StoredType.I32: torch.int32,
    StoredType.I64: torch.int64,
}
_UNPACK: dict[StoredType, Callable[[Tensor], Tensor]] = {
    StoredType.Q4_0: _q4_0,
    StoredType.Q4_1: _q4_1,
    StoredType.Q5_0: _q5_0,
    StoredType.Q5_1: _q5_1,
    StoredType.Q8_0: _q8_0,
    StoredType.Q2_K: _q2_k,
    StoredType.Q3_K: _q3_k,
    StoredType.Q4_K: _q4_k,
    StoredType.Q5_K: _q5_k,
    StoredType.Q6_K: _q6_k,
    StoredType.IQ4_NL: _iq4_nl,
    StoredType.IQ4_XS: _iq4_xs,
}
