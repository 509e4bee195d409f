"""What this computer offers, and what this package chooses because of that. Looked at without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pocketgem import kernels
from pocketgem.kernels import cpu
from pocketgem.kernels.cores import Cores
from pocketgem.kernels.cpu import SetStatus

# What decides the speed of matrix products, by Linux's names: x86 first, then Arm.
FEATURES = (
    "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2",
)  # fmt: skip
AMX = ("amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """The computer this runs on. ``features`` are those of ``FEATURES`` it has, ``kernel_set`` the one in use."""

    architecture: str
    cpu: str
    cores: Cores
    features: tuple[str, ...]
    torch: str
    threads: int
    threads_reason: str
    native_kernels: bool
    kernel_set: str | None
    kernels: str
    sets: tuple[SetStatus, ...]
    amx: str | None  # how the tile unit is used, where there is one
    dtype: str


def describe_machine() -> Machine:
    """Look at this computer: what it does not tell is left empty. Raises InputError as ``kernels.choice``."""
    found = kernels.report()
    return Machine(
        architecture=found.architecture,
        cpu=found.processor,
        cores=found.cores,
        features=tuple(name for name in FEATURES if name in found.features),
        torch=_torch_version(),
        threads=found.threads.count,
        threads_reason=found.threads.reason,
        native_kernels=kernels.status.native,
        kernel_set=found.kernels,
        kernels=kernels.status.reason,
        sets=found.sets,
        amx=_amx(found.features, found.kernels),
        dtype=_dtype(found.features),
    )


def _torch_version() -> str:
    """As installed; importing torch to ask it takes a second."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _amx(features: frozenset[str], kernel_set: str | None) -> str | None:
    has = ", ".join(name for name in AMX if name in features)
    if not has:
        return None
    if kernel_set == "amx":
        return f"{has}: bytes by these kernels, bfloat16 through torch's oneDNN"
    return f"{has}: used through torch's oneDNN only"


def _dtype(features: frozenset[str]) -> str:
    if not features:  # the system tells nothing: torch looks for itself when a model is loaded
        return "float32, or bfloat16 where torch finds that it is native"
    return "bfloat16" if cpu.multiplies_bfloat16(features) else "float32"
