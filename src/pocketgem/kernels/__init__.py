"""The only door to C++: says which compiled kernels exist here and why, and knows nothing of models.

Each kernel has a plain torch twin of the same meaning in ``pocketgem.model.ops``; that page decides which one runs.
``POCKETGEM_KERNELS`` names a set of kernels (see ``cpu.SETS``) or keeps them all out (``torch``), for tests and for
finding a fault. A wish that cannot be granted is an error of ``choice()``, never of importing this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from pocketgem.errors import InputError
from pocketgem.kernels.cores import Cores, ThreadChoice, default_threads, find_cores
from pocketgem.kernels.cpu import NONE, VARIABLE, Choice, SetStatus, choose, features, processor_name
from pocketgem.kernels.system import this_system

HEAD_DIM_STEP = 32  # attention kernels take head sizes that are multiples of it


@dataclass(frozen=True)
class KernelStatus:
    """Whether compiled kernels run, and one line that says why."""

    native: bool
    reason: str


@dataclass(frozen=True)
class CpuReport:
    """This computer, as far as the kernels care."""

    architecture: str
    processor: str
    features: frozenset[str]
    cores: Cores
    threads: ThreadChoice
    kernels: str | None  # the set in use
    reason: str
    sets: tuple[SetStatus, ...]


def wish() -> str | None:
    """What the environment asks for; None where it asks for nothing."""
    return os.environ.get(VARIABLE) or None


def _import() -> tuple[ModuleType | None, str]:
    try:
        import pocketgem.kernels._native as _native
    except ImportError as error:
        return None, f"pure torch: the compiled kernels are not in this install ({error})"
    return _native, ""


def _built(module: ModuleType | None) -> list[str]:
    if module is None:
        return []
    listed = getattr(module, "built_sets", None)
    return list(listed()) if listed is not None else ["portable"]


@cache  # a set may have to be tried in a process of its own: once is enough
def _fault_of(name: str) -> str:
    fault_of: Callable[[str], str] | None = getattr(_import()[0], "fault_of", None)
    return fault_of(name) if fault_of is not None else ""


def choice() -> Choice:
    """The set of kernels in use. Raises InputError when the environment asks for what is not possible here."""
    module, missing = _import()
    chosen = choose(wish(), _built(module), features(), _fault_of)
    return chosen if module is not None or wish() == NONE else Choice(None, missing, chosen.each)


def _open() -> tuple[ModuleType | None, KernelStatus]:
    try:
        chosen = choice()
    except InputError as error:
        return None, KernelStatus(False, str(error))
    if chosen.name is None:
        return None, KernelStatus(False, chosen.reason)
    return _import()[0], KernelStatus(True, f"compiled kernels: {chosen.reason}")


def report() -> CpuReport:
    """Everything about this computer. Raises as ``choice``."""
    system, chosen = this_system(), choice()
    return CpuReport(
        architecture=system.machine,
        processor=processor_name(system),
        features=features(system),
        cores=find_cores(system),
        threads=default_threads(system),
        kernels=chosen.name,
        reason=chosen.reason,
        sets=chosen.each,
    )


native, status = _open()  # decided once at import, constant after it
