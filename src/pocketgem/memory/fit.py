"""A budget becomes choices: places, experts' memory, kept pasts, context. What cannot be met is refused with what can.

A budget is for what must be in memory while the model runs. Pages that loading passes through once, which the kernel
drops as soon as something limits the process, may show in its peak beside that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import InputError
from pocketgem.memory.expert_slots import least_bytes
from pocketgem.memory.holdings import Holdings, holdings_as
from pocketgem.memory.place import Place, settled
from pocketgem.memory.plan import Placement, Plan, Setting, plan
from pocketgem.memory.program import Base
from pocketgem.memory.weights import Form
from pocketgem.sizes import gib

USUAL_CONTEXT = 4096  # where nobody says and nothing limits
LEAST_CONTEXT = 1024  # a budget that has no room for this is too small
CONTEXT_STEP = 256
CAREFUL = 0.97  # of a budget is filled with what is chosen freely: plans are near what is measured, not equal to it
SMALLEST_FORMAT = StoredType.Q4_0


@dataclass(frozen=True)
class Wish:
    """What a person asks for. ``memory``, ``device_memory``: bytes, None for no limit. context: None for the largest
    that fits, or the usual one where nothing limits it."""

    memory: int | None = None
    device_memory: int | None = None
    context: int | None = None
    ple: Place = Place.AUTO
    expert_bytes: int | None = None


@dataclass(frozen=True)
class Knob:
    """One thing that would make a plan smaller. ``saves``: bytes; ``enough``: whether it alone makes it fit."""

    name: str
    saves: int
    enough: bool


def fitted(held: Holdings, setting: Setting, wish: Wish, base: Base) -> Plan:
    """The plan that meets a wish, the best one first. ``setting``'s context is for where the wish names none.

    Raises InputError where none does.
    """
    if wish.context is not None:
        return _fitted_at(held, replace(setting, context=wish.context), wish, base)
    limit = held.config.max_position_embeddings
    if wish.memory is None and wish.device_memory is None:
        return _fitted_at(held, replace(setting, context=min(USUAL_CONTEXT, limit)), wish, base)
    sure = _usual_or_least(held, setting, wish, base, limit)
    if sure.placement.expert_bytes is not None and wish.expert_bytes is None:
        return sure  # a longer context would leave less for experts, which decide the speed
    tokens = largest_context(held, setting, wish, base, sure.placement)
    return _fitted_at(held, replace(setting, context=max(tokens, sure.setting.context)), wish, base)


def _usual_or_least(held: Holdings, setting: Setting, wish: Wish, base: Base, limit: int) -> Plan:
    try:
        return _fitted_at(held, replace(setting, context=min(USUAL_CONTEXT, limit)), wish, base)
    except InputError:
        return _fitted_at(held, replace(setting, context=min(LEAST_CONTEXT, limit)), wish, base)


def largest_context(held: Holdings, setting: Setting, wish: Wish, base: Base, placement: Placement) -> int:
    """The most tokens that fit at these places, a multiple of ``CONTEXT_STEP`` or the model's limit; 0 if none do.

    A little of the budget is left.
    """
    careful = replace(wish, memory=_most(wish.memory), device_memory=_most(wish.device_memory))

    def fits(tokens: int) -> bool:
        return meets(plan(held, replace(setting, context=tokens), placement, base), careful)

    limit = held.config.max_position_embeddings
    if fits(limit):
        return limit
    low, high = 0, limit // CONTEXT_STEP  # in steps; low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * CONTEXT_STEP) else (low, middle)
    return low * CONTEXT_STEP


def _most(budget: int | None) -> int | None:
    return None if budget is None else int(budget * CAREFUL)


def meets(made: Plan, wish: Wish) -> bool:
    """Whether a plan keeps both budgets."""
    return _over(made, wish) <= 0


def _over(made: Plan, wish: Wish) -> int:
    """Bytes by which a plan passes its budgets."""
    over = -1 if wish.memory is None else made.needed - wish.memory
    return max(over, -1 if wish.device_memory is None else made.on_device - wish.device_memory)


# ---- choices ---------------------------------------------------------------------------------------------------------


def _fitted_at(held: Holdings, setting: Setting, wish: Wish, base: Base) -> Plan:
    made = [plan(held, setting, placement, base) for placement in _placements(held, setting, wish, base)]
    for one in made:
        if meets(one, wish):
            return one
    raise InputError(_refusal(held, setting, wish, base, made))


def _placements(held: Holdings, setting: Setting, wish: Wish, base: Base) -> Iterator[Placement]:
    """Best first: all experts, then as many as fit, with the last conversation kept and then without."""
    ple = settled(wish.ple).value
    for kept in (1, 0):
        all_in = Placement(ple, wish.expert_bytes, kept)
        yield all_in
        if can_budget(held, setting.form) and wish.expert_bytes is None and wish.memory is not None:
            none = plan(held, setting, replace(all_in, expert_bytes=0), base)
            room = int(wish.memory * CAREFUL) - none.needed
            yield replace(all_in, expert_bytes=max(room, least_expert_bytes(held)))


def can_budget(held: Holdings, form: Form) -> bool:
    """Whether experts may be read from disk as they are chosen: it takes packed weights in a file."""
    experts = held.group("experts")
    return form.packed and form.keepable and bool(experts) and all(tensor.in_blocks for tensor in experts)


def least_expert_bytes(held: Holdings) -> int:
    """The smallest budget for experts: one token's."""
    assert held.config.experts is not None  # callers look first
    stacks = held.group("experts")
    gates = [tensor.packed_each for tensor in stacks if tensor.name.endswith(".gate_up_proj")]
    downs = [tensor.packed_each for tensor in stacks if not tensor.name.endswith(".gate_up_proj")]
    sizes = [[gate, gate, down] for gate, down in zip(gates, downs, strict=True)]
    return least_bytes(sizes, held.config.experts.top_k)


# ---- a refusal -------------------------------------------------------------------------------------------------------


def smallest(held: Holdings, setting: Setting, wish: Wish, base: Base) -> Plan:
    """The plan with the least memory at this context: rows from disk, one token's experts, no past kept."""
    experts = least_expert_bytes(held) if can_budget(held, setting.form) else None
    return plan(held, setting, Placement(Place.DISK.value, experts, 0), base)


def knobs(held: Holdings, setting: Setting, wish: Wish, base: Base, now: Plan) -> list[Knob]:
    """What would make a plan smaller, the most helpful first."""
    found = []
    for name, other in _alternatives(held, setting, wish, base, now):
        saves = _size(now, wish) - _size(other, wish)
        if saves > 0:
            found.append(Knob(name, saves, meets(other, wish)))
    return sorted(found, key=lambda knob: -knob.saves)


def _size(made: Plan, wish: Wish) -> int:
    return made.needed if wish.device_memory is None else made.on_device


def _alternatives(held: Holdings, setting: Setting, wish: Wish, base: Base, now: Plan) -> Iterator[tuple[str, Plan]]:
    """The same plan with one thing changed."""
    at = now.placement
    if setting.context > LEAST_CONTEXT:
        tokens = largest_context(held, setting, wish, base, at) or min(USUAL_CONTEXT, setting.context // 2)
        yield f"a context of {tokens:,}", plan(held, replace(setting, context=tokens), at, base)
    if setting.sequences > 1:
        yield "one sequence at a time", plan(held, replace(setting, sequences=1), at, base)
    if at.ple != Place.DISK and held.config.per_layer is not None:
        yield "per-layer rows from disk (--ple disk)", plan(held, setting, replace(at, ple=Place.DISK.value), base)
    if can_budget(held, setting.form) and (least := least_expert_bytes(held)) < (at.expert_bytes or least + 1):
        yield (
            f"experts from disk (--expert-memory {gib(least)})",
            plan(held, setting, replace(at, expert_bytes=least), base),
        )
    smaller = holdings_as(held.config, SMALLEST_FORMAT, held.model)
    smaller = replace(smaller, header=held.header, listed_merges=held.listed_merges)
    kept = setting.form.keepable and smaller.worth_keeping
    form = replace(setting.form, packed=setting.form.packed or setting.form.packs, kept=kept)
    yield f"weights as {SMALLEST_FORMAT}", plan(smaller, replace(setting, form=form), at, base)
    if setting.device:
        form = replace(setting.form, blocks=True)
        name = f"{SMALLEST_FORMAT} weights, as they are stored (--dtype stored)"
        yield name, plan(smaller, replace(setting, form=form), at, base)


def _refusal(held: Holdings, setting: Setting, wish: Wish, base: Base, made: list[Plan]) -> str:
    closest = min(made, key=lambda one: _over(one, wish))
    least = smallest(held, setting, wish, base)
    on_card = wish.device_memory is not None and closest.on_device > wish.device_memory
    budget = wish.device_memory if on_card else wish.memory
    size, floor = (closest.on_device, least.on_device) if on_card else (closest.needed, least.needed)
    one = replace(wish, memory=None) if on_card else replace(wish, device_memory=None)
    helpful = [
        f"{knob.name} saves {gib(knob.saves)}" + (", enough" if knob.enough else "")
        for knob in knobs(held, setting, one, base, closest)
    ]
    return (
        f"{held.model}: {gib(budget or 0)} {'on the card' if on_card else 'of memory'} are not enough: with a context "
        f"of {setting.context:,} it needs {gib(size)}, and {gib(rounded_up(floor))} is the smallest budget that can be "
        f"met at this context. What would help: {'; '.join(helpful) or 'nothing but a smaller model'}"
    )


def rounded_up(size: int) -> int:
    """To what ``gib`` shows, so that the figure given back as a budget is enough."""
    step = (1 << 30) // 100 if size >= 1 << 30 else (1 << 20) // 10
    return (size // step + 2) * step
