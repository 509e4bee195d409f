"""The only door to C++: says which compiled kernels exist here and why, and knows nothing of models.

Each kernel has a plain torch twin of the same meaning in ``pocketgem.model.ops``; that page decides which one runs.
``POCKETGEM_KERNELS=torch`` keeps the compiled ones out, for tests and for finding a fault.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class KernelStatus:
    """Whether compiled kernels run, and one line that says why."""

    native: bool
    reason: str


def _open() -> tuple[ModuleType | None, KernelStatus]:
    wish = os.environ.get("POCKETGEM_KERNELS", "native")
    if wish != "native":
        return None, KernelStatus(False, f"pure torch, because POCKETGEM_KERNELS={wish}")
    try:
        import pocketgem.kernels._native as _native
    except ImportError as error:
        return None, KernelStatus(False, f"pure torch: the compiled kernels are not in this install ({error})")
    return _native, KernelStatus(True, "compiled kernels: rms_norm (portable C++)")


native, status = _open()  # decided once at import, constant after it
