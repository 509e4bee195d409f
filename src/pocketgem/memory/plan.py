"""A plan: where every byte of a model will lie, and the most that will be in memory at once, before anything loads.

What counts is what Linux calls VmHWM: all pages of the process that were in memory at one time, those of mapped files
too. Of these the kernel may drop mapped pages and read them again; a plan tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pocketgem.checkpoint.types import StoredType
from pocketgem.config import ModelConfig
from pocketgem.kernels import HEAD_DIM_STEP
from pocketgem.memory.holdings import Holdings
from pocketgem.memory.kv_rows import KindCost, kv_costs
from pocketgem.memory.program import EXPERT_OBJECTS, LATER_CODE, LAYER_OBJECTS, Base, TextBytes, text_bytes
from pocketgem.memory.step_bytes import PREFILL_CHUNK, step_bytes
from pocketgem.memory.weights import (
    Form,
    Line,
    Places,
    largest_packed,
    largest_unpacked,
    packing_bytes,
    unpacking_bytes,
    weight_lines,
)

DEVICE_BASE = 600 << 20  # a card's context and libraries. An estimate: no card was at hand when this was written
UNPACKED_PIECE = 112 << 20  # ``model/blocks.py``: 8 M weights as bytes, as float32 twice and as they are multiplied
LAST = "last conversation"


@dataclass(frozen=True)
class Placement:
    """The choices a plan makes. ``expert_bytes``: memory for routed experts, None for all; ``kept``: finished pasts
    that are kept for the next turn of a conversation."""

    ple: str = "disk"
    expert_bytes: int | None = None
    kept: int = 1


@dataclass(frozen=True)
class Setting:
    """What a model is to be run with. Lengths in tokens."""

    context: int
    form: Form
    sequences: int = 1
    threads: int = 1
    chunk: int = PREFILL_CHUNK
    media: frozenset[str] = frozenset()  # of ``vision`` and ``audio``: which towers will be used

    @property
    def device(self) -> bool:
        return self.form.device


@dataclass(frozen=True)
class Phase:
    """Bytes in memory during a part of a run: ``private`` ones cannot be given back, ``mapped`` ones can.

    passing: of the mapped ones, those that are not looked at again in this phase: a limit takes them away unnoticed.
    """

    name: str
    private: int
    mapped: int
    passing: int = 0

    @property
    def total(self) -> int:
        return self.private + self.mapped


@dataclass(frozen=True)
class Plan:
    """Lines add up to what runs; ``phases`` are the moments that may be the highest, on the way and then."""

    held: Holdings
    setting: Setting
    placement: Placement
    base: Base
    lines: tuple[Line, ...]
    phases: tuple[Phase, ...]

    @property
    def highest(self) -> Phase:
        """The phase with the most bytes in RAM."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Predicted peak of resident memory, in bytes: VmHWM."""
        return self.highest.total

    @property
    def needed(self) -> int:
        """Bytes of RAM that are in use at once: the peak of a process that is given no more."""
        return max(phase.total - phase.passing for phase in self.phases)

    @property
    def on_device(self) -> int:
        """Bytes on the card."""
        return self.at("device")

    @property
    def kept_bytes(self) -> int:
        """What finished pasts may take that are kept for the next turn."""
        return sum(line.size for line in self.lines if line.name == LAST)

    def at(self, place: str) -> int:
        """Bytes of the lines at a place while the model runs."""
        return sum(line.size for line in self.lines if line.place == place)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)


def plan(held: Holdings, setting: Setting, placement: Placement, base: Base) -> Plan:
    """What these choices come to. Nothing is opened or read."""
    if placement.expert_bytes is not None:  # the others are read from the file that keeps packed weights
        setting = replace(setting, form=replace(setting.form, kept=setting.form.packed))
    text = text_bytes(held.config.vocab_size, held.listed_merges)
    places = Places(placement.ple, setting.context * setting.sequences, placement.expert_bytes, setting.media)
    lines = (
        *weight_lines(held, setting.form, places),
        *_cache_lines(held.config, setting, placement),
        *_step_lines(held.config, setting),
        *_media_lines(held, setting),
        *_program_lines(held, base, text, setting),
    )
    return Plan(held, setting, placement, base, lines, tuple(_phases(held, setting, lines, base, text)))


# ---- keys and values -------------------------------------------------------------------------------------------------


def cache_itemsize(config: ModelConfig, form: Form) -> int:
    """Bytes of a number in the cache: bfloat16 where layers are fused, else as activations are."""
    fused = form.packed and all(layer.head_dim % HEAD_DIM_STEP == 0 for layer in config.layers)
    return 2 if fused else form.itemsize


def cache_costs(config: ModelConfig, setting: Setting) -> tuple[KindCost, ...]:
    return kv_costs(config, setting.context, setting.chunk, cache_itemsize(config, setting.form))


def _cache_lines(config: ModelConfig, setting: Setting, placement: Placement) -> Iterator[Line]:
    place: Literal["device", "ram"] = "device" if setting.device else "ram"
    costs = cache_costs(config, setting)
    for cost in costs:
        size = cost.touched * setting.sequences
        yield Line("cache", f"{cost.kind} keys and values", None, size, place, _growth(cost, setting))
    if growing := max((cost.moving for cost in costs if cost.window is None), default=0):
        yield Line("cache", "growing", None, growing, place, "one layer's old buffers while it moves to larger ones")
    if placement.kept:
        past = placement.kept * sum(cost.held for cost in costs)
        yield Line("cache", LAST, None, past, place, "kept, so that its next turn need not read it again")


def _growth(cost: KindCost, setting: Setting) -> str:
    each = f"{cost.layers} layers" + ("" if setting.sequences == 1 else f" x {setting.sequences} sequences")
    if cost.window is None:
        return f"{each}, {cost.token:,} bytes a token; buffers double"
    return f"{each}, {cost.token:,} bytes a token up to {cost.window:,} and a chunk"


# ---- work and program ------------------------------------------------------------------------------------------------


def _step_lines(config: ModelConfig, setting: Setting) -> Iterator[Line]:
    rows = min(setting.chunk, setting.context)
    step = step_bytes(
        config,
        rows=rows,
        sequences=setting.sequences,
        context=setting.context,
        threads=setting.threads,
        packed=setting.form.packed,
        itemsize=setting.form.itemsize,
    )
    place: Literal["device", "ram"] = "device" if setting.device else "ram"
    if step.buffers:
        why = f"rows as int8, products, tiles; {rows} rows a step"
        yield Line("step", "kernel buffers", None, step.buffers, place, why)
    yield Line("step", "activations", None, step.activations, place, f"{rows} rows between layers")
    if setting.form.blocks:
        yield Line(
            "step", "unpacking", None, UNPACKED_PIECE, place, "a piece of a matrix in blocks, on its way to a product"
        )
    logits = f"{setting.sequences} x {config.vocab_size:,} scores as float32, with the sampler's copies"
    yield Line("step", "logits", None, step.logits, place, logits)


def _media_lines(held: Holdings, setting: Setting) -> Iterator[Line]:
    for tower in held.towers:
        if tower.kind in setting.media:
            what = {"vision": "one image", "audio": "30 s of sound"}[tower.kind]
            yield Line("step", what, None, tower.work, "ram", f"rows of the {tower.kind} tower while it works")


def _program_lines(held: Holdings, base: Base, text: TextBytes, setting: Setting) -> Iterator[Line]:
    source = "measured" if base.measured else "as measured on another machine"
    yield Line("program", "Python, torch", None, base.private, "ram", f"interpreter and libraries, {source}")
    yield Line("program", "libraries", None, base.mapped + LATER_CODE, "ram", f"their code, {source}", mapped=True)
    yield Line("program", "tokenizer", None, text.kept, "ram", f"{held.config.vocab_size:,} tokens and their merges")
    yield Line("program", "objects", None, _objects(held.config), "ram", "modules, norms and names")
    if held.header:
        yield Line("program", "header", None, held.header, "ram", "the file's names and vocabulary", mapped=True)
    if setting.device:
        yield Line("program", "card's own", None, DEVICE_BASE, "device", "context and libraries: an estimate")


def _objects(config: ModelConfig) -> int:
    experts = 3 * config.experts.num_experts if config.experts else 0
    return config.num_layers * (LAYER_OBJECTS + experts * EXPERT_OBJECTS)


# ---- phases ----------------------------------------------------------------------------------------------------------


def _phases(held: Holdings, setting: Setting, lines: tuple[Line, ...], base: Base, text: TextBytes) -> Iterator[Phase]:
    """The tokenizer is made; weights come; the first answer; answers after it."""
    program_private, program_mapped = _sums(lines, "program")
    yield Phase("making the tokenizer", base.private + text.made, base.mapped + held.header)
    private, mapped = _sums(lines, "weights")
    if setting.form.packed:
        within = packing_bytes(held)
        if setting.form.kept:
            passing = within - largest_packed(held)
            yield Phase("packing, at the first start", program_private, program_mapped + within, passing)
        else:
            source = max(0, within - private)  # a matrix of the file, beside what it becomes
            yield Phase("packing", program_private + private, program_mapped + source, source)
    elif setting.device:
        through = largest_unpacked(held, setting.form), unpacking_bytes(held, setting.form)
        yield Phase(
            "bringing weights to the card", program_private + through[0], program_mapped + through[1], through[1]
        )
    else:
        mapped += unpacking_bytes(held, setting.form)
    work = sum(_sums(lines, section)[0] for section in ("cache", "step"))
    kept = sum(line.size for line in lines if line.name == LAST and line.place == "ram")
    running, passed = program_private + private + work, mapped - _sums(lines, "weights")[1]
    yield Phase("the first answer", running - kept, program_mapped + mapped, passed)
    if kept:
        yield Phase("answers after it", running, program_mapped + mapped, passed)


def _sums(lines: tuple[Line, ...], section: str) -> tuple[int, int]:
    """(private, mapped) bytes in RAM of a section."""
    here = [line for line in lines if line.section == section and line.place != "device"]
    return sum(x.size for x in here if not x.mapped), sum(x.size for x in here if x.mapped)


def chosen_form(
    held: Holdings,
    *,
    dtype: StoredType | None,
    native: bool,
    device: bool,
    keepable: bool,
    fast: StoredType,
    blocks: bool = False,
) -> Form:
    """What the loader will make of the weights; ``dtype``: None where it may choose. See ``parts.model_of``."""
    packs = dtype is None and native and not device and not blocks
    packed = packs and held.can_pack
    usual = StoredType.BF16 if device else fast
    return Form(packed, packed and keepable and held.worth_keeping, dtype or usual, device, packs, keepable, blocks)
