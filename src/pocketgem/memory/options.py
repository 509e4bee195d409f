"""What a model is to be run with, and the plan that comes of it on this computer. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem import kernels
from pocketgem.checkpoint.types import StoredType
from pocketgem.kernels import cpu
from pocketgem.kernels.cores import default_threads
from pocketgem.memory.fit import USUAL_CONTEXT, Wish, fitted
from pocketgem.memory.holdings import Holdings
from pocketgem.memory.packed_place import default_cache
from pocketgem.memory.place import checked_place
from pocketgem.memory.plan import Plan, Setting, chosen_form
from pocketgem.memory.program import Base
from pocketgem.memory.weights import Form

DTYPES = {"bfloat16": StoredType.BF16, "float32": StoredType.F32}


@dataclass(frozen=True, kw_only=True)
class Options:
    """As ``LLM.load`` takes them. dtype: ``bfloat16``, ``float32`` or None; device: whether weights lie on a card."""

    sequences: int = 1
    threads: int | None = None
    device: bool = False
    dtype: str | None = None
    keep_packed: bool = True


def plan_for(held: Holdings, wish: Wish, options: Options, base: Base) -> Plan:
    """The plan for what is held. Raises InputError for a budget that cannot be met, PromptError for a bad place."""
    checked_place(wish.ple, held.config)
    setting = Setting(
        USUAL_CONTEXT, form_of(held, options), options.sequences, options.threads or default_threads().count
    )
    return fitted(held, setting, wish, base)


def form_of(held: Holdings, options: Options) -> Form:
    """What the loader would make of the weights here."""
    return chosen_form(
        held,
        dtype=None if options.dtype is None else DTYPES[options.dtype],
        native=kernels.choice().name is not None,
        device=options.device,
        keepable=options.keep_packed and (held.file is None or default_cache(held.file) is not None),
        fast=StoredType.BF16 if cpu.multiplies_bfloat16(cpu.features()) else StoredType.F32,
    )
