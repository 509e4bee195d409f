"""Facts about the processor, without torch: its instruction sets, and the set of compiled kernels that fits them best.

Names are those of Linux's ``/proc/cpuinfo``, whatever the system. How many threads pay is in ``cores.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pocketgem.errors import InputError
from pocketgem.kernels.cores import ThreadChoice, default_threads
from pocketgem.kernels.system import System, this_system

__all__ = [
    "SETS",
    "VARIABLE",
    "Choice",
    "SetStatus",
    "ThreadChoice",
    "choose",
    "default_threads",
    "features",
    "multiplies_bfloat16",
    "processor_name",
]

VARIABLE = "POCKETGEM_KERNELS"
BEST, NONE = "native", "torch"  # what the variable may say beside the name of a set
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
SETS = {  # what each needs, the best first; native/sets.cmake says how each is compiled
    "amx": (*_AVX512, "amx_tile", "amx_int8"),
    "avx512": _AVX512,
    "avx2-vnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "neon-i8mm": ("asimddp", "i8mm"),
    "neon": ("asimddp",),
    "neon-base": ("asimd",),
    "portable": (),
}
# macOS's names -> Linux's.
_ARM_MACOS = {
    "AdvSIMD": "asimd", "FEAT_FP16": "asimdhp", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16",
    "FEAT_SME": "sme", "FEAT_SME2": "sme2",
}  # fmt: skip
_X86_MACOS = {"avx1.0": "avx", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}


@dataclass(frozen=True)
class SetStatus:
    """One set of kernels, whether it can run here, and why."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The set to use, None for pure torch; why; and what is so of each set, the best first."""

    name: str | None
    reason: str
    each: tuple[SetStatus, ...]


def features(system: System | None = None) -> frozenset[str]:
    """What the processor offers, by Linux's names; empty where the system does not tell (Windows)."""
    system = system or this_system()
    if system.name == "Linux":
        return _linux(system.text("proc/cpuinfo"))
    if system.name == "Darwin":
        return _macos(system)
    return frozenset()


def _linux(cpuinfo: str) -> frozenset[str]:
    """Flags that every processor of the list has: on some phones the kinds of cores differ."""
    lists = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset.intersection(*(frozenset(line.split()) for line in lists)) if lists else frozenset()


def _macos(system: System) -> frozenset[str]:
    if system.machine == "arm64":
        return frozenset(ours for theirs, ours in _ARM_MACOS.items() if system.entry(f"hw.optional.arm.{theirs}"))
    texts = (system.sysctl(f"machdep.cpu.{name}") or "" for name in ("features", "leaf7_features"))
    return frozenset(_X86_MACOS.get(word, word) for word in " ".join(texts).lower().split())


def processor_name(system: System | None = None) -> str:
    """What the maker calls it; the architecture where the system does not tell."""
    system = system or this_system()
    if system.name == "Darwin":
        told = system.sysctl("machdep.cpu.brand_string") or ""
    else:
        found = re.search(r"^(?:model name|Model|Hardware)[ \t]*:(.*)$", system.text("proc/cpuinfo"), re.MULTILINE)
        told = found[1] if found else ""
    return " ".join(told.split())[:120] or system.machine


def multiplies_bfloat16(features: Collection[str]) -> bool:
    """Whether products of bfloat16 are native, so that weights in it cost no conversion."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features)  # the last is Arm's


def _no_fault(name: str) -> str:
    return ""


def choose(
    wish: str | None, built: Sequence[str], features: Collection[str], fault_of: Callable[[str], str] = _no_fault
) -> Choice:
    """Which set of kernels to use.

    Args:
        wish: what POCKETGEM_KERNELS says: None or "native" for the best, "torch" for none, else the name of a set.
        built: the sets in this install.
        features: what the processor offers.
        fault_of: why a set that is built and has all it needs cannot be used here, empty where it can; asked of no
            other set.
    Raises InputError for a wish that cannot be granted, naming what can.
    """
    each = tuple(_status(name, built, features, fault_of) for name in SETS)
    usable = [status.name for status in each if status.usable]
    if wish == NONE:
        return Choice(None, f"pure torch, because {VARIABLE}={NONE}", each)
    if wish is not None and wish != BEST:
        return Choice(_granted(wish, each, usable), f"{wish}, because {VARIABLE}={wish}", each)
    if not usable:
        return Choice(None, "pure torch: the compiled kernels are not in this install", each)
    return Choice(usable[0], f"{usable[0]}, the best in this install that this processor can run", each)


def _granted(wish: str, each: Sequence[SetStatus], usable: Sequence[str]) -> str:
    if wish in usable:
        return wish
    known = next((status.reason for status in each if status.name == wish), "there is no such set")
    possible = ", ".join((*usable, BEST, NONE))
    raise InputError(f"{VARIABLE}={wish[:40]!r} is not possible here: {known}; it can be {possible}")


def _status(name: str, built: Sequence[str], features: Collection[str], fault_of: Callable[[str], str]) -> SetStatus:
    lacking = [feature for feature in SETS[name] if feature not in features]
    if lacking:
        return SetStatus(name, False, f"this processor lacks {', '.join(lacking)}")
    if name not in built:
        return SetStatus(name, False, "not built into this install")
    if fault := fault_of(name):
        return SetStatus(name, False, fault)
    return SetStatus(name, True, f"this processor has {', '.join(SETS[name])}" if SETS[name] else "runs everywhere")
