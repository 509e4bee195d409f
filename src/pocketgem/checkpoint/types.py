"""The types weights are stored in: their sizes, and their numbers in GGUF.

A block type packs 32 or 256 consecutive weights of one row into a block of bytes; ``dequant.py`` says how. A plain type
is a block of one weight. Nothing here knows torch: headers are read, and a file is described, without importing it.
"""

from __future__ import annotations

import enum
import math
import mmap
from collections.abc import Callable, Sequence

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Buffer = bytes | bytearray | mmap.mmap  # what a header can be parsed from


class StoredType(enum.StrEnum):
    """How the weights of one tensor are written in a file."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    F64 = "F64"
    I8 = "I8"
    I16 = "I16"
    I32 = "I32"
    I64 = "I64"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"

    @property
    def block_size(self) -> int:
        """Weights a block."""
        return _BLOCKS[self][0] if self in _BLOCKS else 1

    @property
    def type_size(self) -> int:
        """Bytes a block."""
        return _BLOCKS[self][1] if self in _BLOCKS else _PLAIN[self]

    @property
    def packed(self) -> bool:
        """Whether this is a block type."""
        return self in _BLOCKS


def tensor_bytes(shape: Sequence[int], stored: StoredType) -> int:
    """Bytes of a tensor whose last dimension is a multiple of the block size; exact for numbers of any size."""
    return math.prod(shape) // stored.block_size * stored.type_size


_PLAIN = {  # bytes a weight
    StoredType.F32: 4,
    StoredType.F16: 2,
    StoredType.BF16: 2,
    StoredType.F64: 8,
    StoredType.I8: 1,
    StoredType.I16: 2,
    StoredType.I32: 4,
    StoredType.I64: 8,
}
_BLOCKS = {  # weights a block, bytes a block
    StoredType.Q4_0: (32, 18),
    StoredType.Q4_1: (32, 20),
    StoredType.Q5_0: (32, 22),
    StoredType.Q5_1: (32, 24),
    StoredType.Q8_0: (32, 34),
    StoredType.Q2_K: (256, 84),
    StoredType.Q3_K: (256, 110),
    StoredType.Q4_K: (256, 144),
    StoredType.Q5_K: (256, 176),
    StoredType.Q6_K: (256, 210),
    StoredType.IQ4_NL: (32, 18),
    StoredType.IQ4_XS: (256, 136),
}
GGML_TYPES = {  # ggml's enum ggml_type, where a file can hold it and we run it
    0: StoredType.F32,
    1: StoredType.F16,
    2: StoredType.Q4_0,
    3: StoredType.Q4_1,
    6: StoredType.Q5_0,
    7: StoredType.Q5_1,
    8: StoredType.Q8_0,
    10: StoredType.Q2_K,
    11: StoredType.Q3_K,
    12: StoredType.Q4_K,
    13: StoredType.Q5_K,
    14: StoredType.Q6_K,
    20: StoredType.IQ4_NL,
    23: StoredType.IQ4_XS,
    24: StoredType.I8,
    25: StoredType.I16,
    26: StoredType.I32,
    27: StoredType.I64,
    28: StoredType.F64,
    30: StoredType.BF16,
}
GGML_NOT_RUN = {  # known by name only
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
