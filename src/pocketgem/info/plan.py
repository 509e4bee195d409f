"""A plan for a model by its name: a file, a folder, or a released layout as it would be stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pocketgem.checkpoint.load import open_checkpoint, read_json
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import from_hf
from pocketgem.config.released import released_config
from pocketgem.info import find
from pocketgem.memory.fit import Wish, largest_context, meets
from pocketgem.memory.holdings import Holdings, holdings_as, holdings_of
from pocketgem.memory.plan import Plan
from pocketgem.sizes import gib

USUAL_FORMAT = StoredType.Q4_0  # of a layout without a file: what Google's quantisation-aware releases are


def held_by(model: str, format: StoredType | None = None, *, offline: bool = False) -> Holdings:
    """What a model's files hold, or would hold in ``format``. Raises CheckpointError as ``inspect``."""
    location = find(model, offline)
    if location is None:
        return holdings_as(from_hf(released_config(model), model), format or USUAL_FORMAT, model)
    if location.kind == "config":
        path = location.files[0]
        return holdings_as(from_hf(read_json(path), str(path)), format or USUAL_FORMAT, model)
    checkpoint = open_checkpoint(location)
    return holdings_of(checkpoint, model) if format is None else holdings_as(checkpoint.config, format, model)


# ---- what it comes to ------------------------------------------------------------------------------------------------

# What the parts of a bar are called, in the order they stand in it.
PARTS = ("weights, mapped", "weights", "experts' memory", "tables' rows", "keys and values", "work", "program")


@dataclass(frozen=True)
class Bar:
    """One place and what is in it, in bytes. limit: the budget, where there is one."""

    place: str
    parts: dict[str, int]
    limit: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def bars_of(plan: Plan, wish: Wish) -> tuple[Bar, ...]:
    """The card where there is one, RAM while the model runs, and the disk: the parts that stay there."""
    memory = Bar("RAM", _parts(plan, ("ram", "disk")), wish.memory)
    card = (Bar("card", _parts(plan, ("device",)), wish.device_memory),) if plan.setting.device else ()
    left = {name: size for name, size in _left_on_disk(plan) if size > 0}
    return (*card, memory, *((Bar("disk", left),) if left else ()))


def _parts(plan: Plan, places: tuple[str, ...]) -> dict[str, int]:
    sums = dict.fromkeys(PARTS, 0)
    for line in plan.lines:
        if line.place in places:
            sums[_part(line.section, line.name, line.place, line.mapped)] += line.size
    return {name: size for name, size in sums.items() if size}


def _part(section: str, name: str, place: str, mapped: bool) -> str:
    if section != "weights":
        return {"cache": "keys and values", "step": "work", "program": "program"}[section]
    if place == "disk":
        return "tables' rows"
    if name == "experts" and not mapped:
        return "experts' memory"
    return "weights, mapped" if mapped else "weights"


def _left_on_disk(plan: Plan) -> Iterator[tuple[str, int]]:
    """What is read from there while the model runs, or never."""
    for line in plan.lines:
        if line.section == "weights" and line.place == "disk":
            yield line.name, line.stored or 0
        elif line.name == "experts" and plan.placement.expert_bytes is not None:
            yield "experts", sum(t.packed for t in plan.held.group("experts")) - line.size


def title(plan: Plan) -> str:
    """What the plan is for, in one line."""
    setting = plan.setting
    number = "one sequence" if setting.sequences == 1 else f"{setting.sequences} sequences"
    types = sorted({tensor.type.value for tensor in plan.held.used if tensor.is_matrix})
    place = "a card" if setting.device else f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    return f"{plan.held.model}: {', '.join(types)}; context {setting.context:,}, {number}, {place}"


def answer(plan: Plan, wish: Wish) -> str:
    """Whether it fits, in a sentence."""
    what = f"{plan.held.model} with a context of {plan.setting.context:,}"
    if plan.setting.sequences > 1:
        what += f" for each of {plan.setting.sequences} sequences"
    if wish.memory is None and wish.device_memory is None:
        return f"{what} takes {gib(plan.peak)} of memory at the highest, {gib(plan.needed)} of it in use at once."
    fits = []
    if wish.device_memory is not None:
        fits.append(f"{gib(plan.on_device)} of the card's {gib(wish.device_memory)}")
    if wish.memory is not None:
        fits.append(f"{gib(plan.needed)} of {gib(wish.memory)} memory")
    return f"Yes, it fits: {what} takes {' and '.join(fits)}. {_reach(plan, wish)}{_passing(plan, wish)}"


def _passing(plan: Plan, wish: Wish) -> str:
    """What a peak may show beyond the budget."""
    if wish.memory is None or plan.peak <= wish.memory:
        return ""
    return (
        f" The first start's peak may show {gib(plan.peak)}: pages of files that pass through once, which the "
        "system takes away as soon as something limits the process."
    )


def _reach(plan: Plan, wish: Wish) -> str:
    limit = plan.held.config.max_position_embeddings
    tokens = max(plan.setting.context, largest_context(plan.held, plan.setting, wish, plan.base, plan.placement))
    if tokens >= limit:
        return f"So does its whole context of {limit:,} tokens."
    if tokens == plan.setting.context:
        return f"That is about the longest context that fits; the model's own limit is {limit:,}."
    return f"At these places the context can be up to {tokens:,} tokens; the model's own limit is {limit:,}."


def as_data(plan: Plan, wish: Wish) -> dict[str, object]:
    """Everything as plain values, in bytes and tokens, for JSON."""
    return {
        "model": plan.held.model,
        "context": plan.setting.context,
        "sequences": plan.setting.sequences,
        "threads": plan.setting.threads,
        "device": "cuda" if plan.setting.device else "cpu",
        "placement": asdict(plan.placement),
        "memory": wish.memory,
        "device_memory": wish.device_memory,
        "fits": meets(plan, wish),
        "peak": plan.peak,
        "needed": plan.needed,
        "on_device": plan.on_device,
        "highest": plan.highest.name,
        "lines": [asdict(line) for line in plan.lines],
        "phases": [asdict(phase) | {"total": phase.total} for phase in plan.phases],
        "answer": answer(plan, wish),
    }
