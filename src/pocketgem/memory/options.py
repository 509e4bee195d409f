"""What a model is to be run with, and the plan that comes of it on this computer. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocketgem import kernels
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import InputError
from pocketgem.kernels import cpu
from pocketgem.kernels.cores import default_threads
from pocketgem.memory.fit import USUAL_CONTEXT, Wish, can_budget, fitted, least_expert_bytes
from pocketgem.memory.holdings import Holdings, holdings_of
from pocketgem.memory.packed_place import default_cache
from pocketgem.memory.place import checked_place
from pocketgem.memory.plan import Plan, Setting, chosen_form
from pocketgem.memory.program import Base, base_here, listed_bytes
from pocketgem.memory.weights import Form
from pocketgem.sizes import gib

STORED = "stored"  # weights in blocks stay so, unpacked piece by piece in use
DTYPES = {"bfloat16": StoredType.BF16, "float16": StoredType.F16, "float32": StoredType.F32}


@dataclass(frozen=True, kw_only=True)
class Options:
    """As ``LLM.load`` takes them. dtype: ``bfloat16``, ``float32``, ``stored`` or None; device: whether weights lie on
    a card; media: which of ``vision`` and ``audio`` will be used."""

    sequences: int = 1
    threads: int | None = None
    device: bool = False
    dtype: str | None = None
    keep_packed: bool = True
    media: frozenset[str] = frozenset()


def plan_for(held: Holdings, wish: Wish, options: Options, base: Base) -> Plan:
    """The plan for what is held. Raises InputError for a budget that cannot be met, PromptError for a bad place."""
    checked_place(wish.ple, held.config)
    if options.device and options.dtype is None and wish.device_memory is not None and held.can_pack:
        try:
            return plan_for(held, wish, replace(options, dtype="bfloat16"), base)
        except InputError:  # the card has no room for unpacked weights
            options = replace(options, dtype=STORED)
    form = form_of(held, options)
    if wish.expert_bytes is not None:
        _check_experts(held, form, wish.expert_bytes)
    threads = options.threads or default_threads().count
    setting = Setting(USUAL_CONTEXT, form, options.sequences, threads, media=options.media)
    return fitted(held, setting, wish, base)


def _check_experts(held: Holdings, form: Form, budget: int) -> None:
    """Raises InputError where experts cannot be read from disk as they are chosen, or not with so little memory."""
    if not can_budget(held, form):
        raise InputError(
            f"{held.model}: memory for experts needs a model with routed experts in quantised weights, compiled "
            "kernels and a place that keeps packed weights"
        )
    if budget < (least := least_expert_bytes(held)):
        raise InputError(f"{held.model}: {gib(budget)} for experts is too little: one token's take {gib(least)}")


def form_of(held: Holdings, options: Options) -> Form:
    """What the loader would make of the weights here."""
    return chosen_form(
        held,
        dtype=None if options.dtype in (None, STORED) else DTYPES[str(options.dtype)],
        blocks=options.dtype == STORED,
        native=kernels.choice().name is not None,
        device=options.device,
        keepable=options.keep_packed and (held.file is None or default_cache(held.file) is not None),
        fast=StoredType.BF16 if cpu.multiplies_bfloat16(cpu.features()) else StoredType.F32,
    )


def outgrows(checkpoint: Checkpoint, free: int) -> bool:
    """Whether a card with ``free`` bytes has no room for the weights unpacked, but may have for them in blocks."""
    held = holdings_of(checkpoint, checkpoint.where)
    try:
        made = plan_for(held, Wish(device_memory=free), Options(device=True), base_here())
    except InputError:
        return held.can_pack
    return made.setting.form.blocks


def plan_here(checkpoint: Checkpoint, wish: Wish, options: Options) -> Plan:
    """The plan for loading an opened checkpoint into this process, which holds what it holds already."""
    held, base = holdings_of(checkpoint, checkpoint.where), base_here()
    if base.measured and checkpoint.metadata:  # its lists are part of making the tokenizer
        listed = listed_bytes(held.config.vocab_size, held.listed_merges)
        base = replace(base, private=max(0, base.private - listed), mapped=max(0, base.mapped - held.header))
    return plan_for(held, wish, options, base)
