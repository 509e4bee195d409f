"""A plan for a model by its name: a file, a folder, or a released layout as it would be stored."""

from __future__ import annotations

from pocketgem import kernels
from pocketgem.checkpoint.load import open_checkpoint, read_json
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import from_hf
from pocketgem.config.released import released_config
from pocketgem.info import find
from pocketgem.kernels import cpu
from pocketgem.kernels.cores import default_threads
from pocketgem.memory.holdings import Holdings, holdings_as, holdings_of
from pocketgem.memory.packed_place import default_cache
from pocketgem.memory.plan import Placement, Plan, Setting, chosen_form, plan
from pocketgem.memory.program import base_of_a_new_process

USUAL_FORMAT = StoredType.Q4_0  # of a layout without a file: what Google's quantisation-aware releases are
USUAL_CONTEXT = 4096


def plan_of(
    model: str,
    *,
    context: int | None = None,
    sequences: int = 1,
    threads: int | None = None,
    dtype: str | None = None,
    keep_packed: bool = True,
    offline: bool = False,
) -> Plan:
    held = held_by(model, None, offline=offline)
    form = form_of(held, dtype, device=False, keep_packed=keep_packed)
    count = threads or default_threads().count
    tokens = context or min(USUAL_CONTEXT, held.config.max_position_embeddings)
    return plan(held, Setting(tokens, form, sequences, count), Placement(), base_of_a_new_process())


def held_by(model: str, format: StoredType | None, *, offline: bool) -> Holdings:
    """What a model's files hold, or would hold in ``format``. Raises CheckpointError."""
    location = find(model, offline)
    if location is None:
        return holdings_as(from_hf(released_config(model), model), format or USUAL_FORMAT, model)
    if location.kind == "config":
        path = location.files[0]
        return holdings_as(from_hf(read_json(path), str(path)), format or USUAL_FORMAT, model)
    checkpoint = open_checkpoint(location)
    return holdings_of(checkpoint, model) if format is None else holdings_as(checkpoint.config, format, model)


def form_of(held: Holdings, dtype: str | None, *, device: bool, keep_packed: bool):
    native = kernels.choice().name is not None
    fast = StoredType.BF16 if cpu.multiplies_bfloat16(cpu.features()) else StoredType.F32
    named = {None: None, "bfloat16": StoredType.BF16, "float32": StoredType.F32}[dtype]
    keep = keep_packed and (held.file is None or default_cache(held.file) is not None)
    return chosen_form(held, dtype=named, native=native, device=device, keep=keep, fast=fast)
