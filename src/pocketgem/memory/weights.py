"""Where each group of weights lies, in how many bytes, and why; and what loading them takes on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pocketgem.checkpoint.types import StoredType
from pocketgem.memory.holdings import Holding, Holdings
from pocketgem.memory.place import HOT_BYTES, HOT_EMBEDDINGS
from pocketgem.sizes import gib

PLAIN_MAPPED = (StoredType.F32, StoredType.BF16, StoredType.F16)  # what the kernels read as the file has it
Where = Literal["device", "ram", "disk"]


@dataclass(frozen=True)
class Line:
    """One row of a plan. ``size``: bytes in memory at ``place``; of what stays on the disk, those of its cache.

    mapped: the bytes are pages of a file, which the system may drop and read again. stored: bytes in the model's file.
    """

    section: Literal["weights", "cache", "step", "program"]
    name: str
    stored: int | None
    size: int
    place: Where
    why: str
    mapped: bool = False


@dataclass(frozen=True)
class Form:
    """What weights become. ``packed``: the kernels' layout, else ``dtype``. ``kept``: packed into a mapped file.

    packs, keepable: whether weights in blocks would be packed, and whether there is a place to keep them. device: on a
    card; blocks: those stored in blocks stay so, and are unpacked to ``dtype`` piece by piece in use.
    """

    packed: bool
    kept: bool
    dtype: StoredType  # of what is not packed
    device: bool = False
    packs: bool = True
    keepable: bool = True
    blocks: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an activation: over packed weights they are float32."""
        return 4 if self.packed else self.dtype.type_size


@dataclass(frozen=True)
class Places:
    """The choices among places. ``expert_bytes``: memory for routed experts, None for all of them. ``media``: what will
    be shown to the model, so that its towers count."""

    ple: str  # device, ram or disk
    tokens: int  # of all sequences: as many rows of a table are used at the most
    expert_bytes: int | None = None
    media: frozenset[str] = frozenset()  # of ``vision`` and ``audio``


def weight_lines(held: Holdings, form: Form, places: Places) -> tuple[Line, ...]:
    """One line for each group of weights, and for the parts of the files that are not loaded."""
    return tuple(
        line
        for line in (*_groups(held, form, places), *_towers(held, places), *_rest(held))
        if line.stored or line.size
    )


def _groups(held: Holdings, form: Form, places: Places) -> Iterator[Line]:
    tied = held.config.tied_head
    if form.packed:
        yield _looked_up(held, "embedding", "embedding", places.tokens, HOT_EMBEDDINGS)
        yield _held(held, form, "embedding" if tied else "head", "head", _why(form, "read whole for each token"))
    else:
        yield _held(held, form, "embedding", "embedding and head" if tied else "embedding", _why(form, "both ways"))
        if not tied:
            yield _held(held, form, "head", "head", _why(form, "read whole for each token"))
    yield _held(held, form, "core", "layers", _why(form, "read whole for each token"))
    if held.group("experts"):
        yield _experts(held, form, places.expert_bytes)
    if held.group("per_layer_table"):
        yield _table(held, form, places)


def _held(held: Holdings, form: Form, group: str, name: str, why: str) -> Line:
    """A group in memory. A tied head is made of the embedding's bytes, which its own line has counted."""
    members = held.group(group)
    stored = None if name == "head" and group == "embedding" else held.stored(group)
    return Line(
        "weights",
        name,
        stored,
        sum(_size(t, form) for t in members),
        _home(form),
        why,
        mapped=_is_mapped(members, form),
    )


def _home(form: Form) -> Where:
    return "device" if form.device else "ram"


def _why(form: Form, use: str) -> str:
    if form.blocks:
        return f"as they are stored, unpacked piece by piece; {use}"
    if not form.packed:
        return f"as {form.dtype.lower()}; {use}"
    return f"packed for the kernels, {use}" + (", mapped from the file that keeps them" if form.kept else "")


def _experts(held: Holdings, form: Form, budget: int | None) -> Line:
    config, stored = held.config.experts, held.stored("experts")
    whole = sum(_size(t, form) for t in held.group("experts"))
    chosen = "" if config is None else f"{config.top_k} of {config.num_experts} a token"
    if budget is None or budget >= whole:
        mapped = _is_mapped(held.group("experts"), form)
        return Line("weights", "experts", stored, whole, _home(form), f"{chosen}; all at hand", mapped=mapped)
    why = f"{chosen}; {budget / whole:.0%} of them at hand, the others are read from disk when chosen"
    return Line("weights", "experts", stored, budget, _home(form), why)


def _table(held: Holdings, form: Form, places: Places) -> Line:
    if places.ple == "disk":
        return _looked_up(held, "per_layer_table", "per-layer table", places.tokens, HOT_BYTES)
    where: Where = "device" if places.ple == "device" and form.device else "ram"
    stored = held.stored("per_layer_table")
    return Line("weights", "per-layer table", stored, stored, where, "rows at hand, as they are stored")


def _looked_up(held: Holdings, group: str, name: str, tokens: int, hot: int) -> Line:
    """A table whose rows stay in the file: those used last are at hand, no more than there are tokens."""
    stored = held.stored(group)
    rows = held.group(group)[0].shape[0]
    size = min(hot, tokens * stored // rows)
    return Line("weights", name, stored, size, "disk", "a token's row is read when it comes; the last ones are at hand")


def _towers(held: Holdings, places: Places) -> Iterator[Line]:
    """Each tower: in memory from its first use on, which is planned for where somebody says that it will come."""
    for tower in held.towers:
        name, medium = f"{tower.kind} tower", {"vision": "image", "audio": "sound"}[tower.kind]
        size = tower.mapped + tower.private
        if tower.kind not in places.media:
            flag = {"vision": "--images", "audio": "--audio"}[tower.kind]
            why = f"in RAM at the first {medium}: {gib(size)}, and {gib(tower.work)} while it works; count it by {flag}"
            yield Line("weights", name, tower.stored, 0, "disk", why)
            continue
        mapped = 2 * tower.mapped > size
        yield Line("weights", name, tower.stored, size, "ram", f"in RAM at the first {medium}, then kept", mapped)


def _rest(held: Holdings) -> Iterator[Line]:
    others = held.others - sum(tower.stored for tower in held.towers)
    yield Line("weights", "other parts", others, 0, "disk", "whatever else is in the files and is not needed")


# ---- one tensor ------------------------------------------------------------------------------------------------------


def _size(tensor: Holding, form: Form) -> int:
    """Bytes of a tensor in memory."""
    if not tensor.is_matrix and (form.packed or "norm" in tensor.name):
        return tensor.numel * 4  # norms stay float32
    if form.blocks and tensor.in_blocks:
        return tensor.stored
    if not form.packed:
        return tensor.numel * form.dtype.type_size
    if tensor.in_blocks:
        return tensor.packed
    return tensor.stored if tensor.type in PLAIN_MAPPED else tensor.numel * 4


def _is_mapped(members: list[Holding], form: Form) -> bool:
    """Whether the larger part of a group are pages of a file."""
    if form.device:
        return False
    mapped = sum(_size(tensor, form) for tensor in members if tensor.is_matrix and _maps(tensor, form))
    return 2 * mapped > sum(_size(tensor, form) for tensor in members)


def _maps(tensor: Holding, form: Form) -> bool:
    if not form.packed:
        return tensor.type is form.dtype
    return form.kept if tensor.in_blocks else tensor.type in PLAIN_MAPPED


# ---- loading ---------------------------------------------------------------------------------------------------------


def packing_bytes(held: Holdings) -> int:
    """The most bytes in memory while weights are packed: those done, and one tensor of the file. The largest is first.

    The order is that of ``memory/packed.py``.
    """
    packed, most = 0, 0
    for tensor in sorted(_packable(held), key=lambda tensor: -tensor.packed_each):
        packed += tensor.packed
        most = max(most, packed + tensor.stored // tensor.matrices[0])
    return most


def largest_packed(held: Holdings) -> int:
    """Bytes of the largest matrix, packed and as it is stored: what packing into a file needs at a time."""
    largest = max(_packable(held), key=lambda tensor: tensor.packed_each)
    return largest.packed_each + largest.stored // largest.matrices[0]


def _packable(held: Holdings) -> list[Holding]:
    """What the loader packs: every matrix in blocks that is multiplied, so not the table, and an embedding if tied."""
    looked_up = {"per_layer_table"} | (set() if held.config.tied_head else {"embedding"})
    return [tensor for tensor in held.used if tensor.in_blocks and tensor.group not in looked_up]


def largest_unpacked(held: Holdings, form: Form) -> int:
    """Bytes of the largest tensor on its way to a card: they go one at a time."""
    return max(_size(tensor, form) for tensor in held.used if tensor.group != "per_layer_table")


def unpacking_bytes(held: Holdings, form: Form) -> int:
    """Pages of the files that loading leaves in memory where torch computes: it reads them through the mapping."""
    return sum(t.stored for t in held.used if t.group != "per_layer_table" and t.type is not form.dtype)
