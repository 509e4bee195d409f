"""What the processor offers, which kernels run on it, and what this package chooses because of that."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pocketgem import kernels
from pocketgem.parts import fast_dtype

# What decides the speed of matrix products, by torch's names: x86 first, then ARM.
FEATURES = (
    "avx2", "f16c", "fma3", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "dot", "i8mm", "fp16_arith", "bf16", "sve", "sve2", "sme", "sme2",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The computer this runs on. ``features`` are those of ``FEATURES`` it has."""

    architecture: str
    cpu: str
    cores: int | None
    features: tuple[str, ...]
    torch: str
    threads: int
    native_kernels: bool
    kernels: str
    dtype: str


def describe_machine() -> Machine:
    """Look at this computer. Never fails: what torch cannot tell is left empty."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return Machine(
        architecture=platform.machine(),
        cpu=str(found.get("cpu_name") or platform.processor() or "unknown"),
        cores=found.get("num_physical_cores"),
        features=tuple(name for name in FEATURES if found.get(name)),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        native_kernels=kernels.status.native,
        kernels=kernels.status.reason,
        dtype=str(fast_dtype()).removeprefix("torch."),
    )
