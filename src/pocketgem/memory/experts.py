"""Routed experts under a budget: as many as fit are in memory, the others are read from the packed file when a row
chooses them.

One arena of slots serves all layers. A layer's turn has two halves: ``begin``, as soon as the router has chosen, asks
for what is missing; ``batches`` then gives the experts as they are there, those in memory first, so that the disk works
while the processor does. When a step chooses more experts than there are slots, they pass through in batches.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.errors import CheckpointError, RunError
from pocketgem.memory.direct import DirectFile, Readers
from pocketgem.memory.expert_slots import rooms_of, slot_bytes, slots_for
from pocketgem.memory.packed import Place
from pocketgem.memory.packed_file import checksums, cut
from pocketgem.memory.packed_place import ALIGNMENT, aligned
from pocketgem.memory.residents import NOWHERE, Residents
from pocketgem.sizes import gib

IN_FLIGHT = 8  # experts asked for at once: enough for the disk, few enough that a long prompt leaves most slots alone
PARTS = 3  # gate, up, down


Layer = tuple[Place, Place, Place]  # gate, up and down of all experts


@dataclass(frozen=True)
class ExpertUse:
    """What an expert cache did since the model was loaded. Differences of two of these are what a run did."""

    found: int = 0  # experts a layer wanted in a step and found in memory
    read: int = 0  # and those it did not
    bytes_read: int = 0
    wait_seconds: float = 0.0  # with nothing to compute before the next bytes came

    @property
    def hit_rate(self) -> float | None:
        wanted = self.found + self.read
        return self.found / wanted if wanted else None

    def __sub__(self, earlier: ExpertUse) -> ExpertUse:
        return ExpertUse(*(getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)))


class ExpertStore:
    """All routed experts of one model: a file, an arena of slots, and who is where. For one thread at a time."""

    def __init__(self, file: MappedFile, layers: Sequence[Layer], experts: int, top_k: int, budget: int) -> None:
        """Raises InputError for a budget too small for one row, RunError where there is no such memory."""
        sizes = [[place.each for place in layer] for layer in layers]
        self.slots = slots_for(budget, sizes, experts, top_k, str(file.path))
        self.experts, self.layers = experts, layers
        self._seen = np.zeros((len(layers), experts), np.bool_)  # read once, and found as they were written
        self.slot_size, self._rooms = slot_bytes(sizes), rooms_of(sizes)
        self._within = [self._places(layer) for layer in layers]  # [layers] of [experts, 3]
        self._mapped, self._file = file, DirectFile(file)
        self._arena = _memory(self.slots * self.slot_size)
        self._view = memoryview(self._arena)
        self._base = torch.frombuffer(self._arena, dtype=torch.uint8).data_ptr()
        self.residents = Residents(len(layers), experts, self.slots)
        self.readers = Readers(self._file)
        self._turn: _Turn | None = None
        self.found = self.read = self.bytes_read = 0
        self.wait_seconds = 0.0

    @property
    def arena_bytes(self) -> int:
        """What the slots take when all are in use."""
        return self.slots * self.slot_size

    @property
    def use(self) -> ExpertUse:
        return ExpertUse(self.found, self.read, self.bytes_read, self.wait_seconds)

    def begin(self, layer: int, indices: Tensor) -> None:
        """A layer's rows chose experts, ``indices`` [rows, top_k] int64: start to read those that are missing."""
        self.end()
        self._mapped.check_unchanged()
        chosen = indices.flatten().numpy()
        if len(chosen):
            self.residents.note(layer, chosen, len(indices))
        self._turn = _Turn(self, layer, indices)

    def batches(self, layer: int, indices: Tensor) -> Iterator[Tensor]:
        """Every expert chosen, each in one batch: addresses [experts, 3] int64 of gate, up and down, 0 for the others.

        A batch's bytes stay until the next is asked for. Raises CheckpointError where the file cannot be read.
        """
        if self._turn is None or self._turn.indices is not indices:
            self.begin(layer, indices)
        try:
            if self._turn is not None:
                yield from self._turn.batches()
        finally:
            self.end()

    def end(self) -> None:
        """End the turn in work, if any: what was asked for arrives, then every slot is free to be taken again."""
        if self._turn is not None:
            turn, self._turn = self._turn, None
            turn.close()

    # ---- for the turn ------------------------------------------------------------------------------------------------

    def ask(self, layer: int, expert: int, slot: int) -> None:
        """Have an expert's three matrices read into a slot, and checked the first time they are."""
        at, seen = slot * self.slot_size, self._seen[layer, expert]
        for place, room in zip(self.layers[layer], self._rooms, strict=True):
            start, end = place.of(expert)
            first = start // ALIGNMENT * ALIGNMENT
            target = self._view[at : at + aligned(end) - first]
            check = None if seen else partial(_check, self._mapped, start - first, end - first, place.sums[expert])
            self.readers.ask(expert, target, first, check)
            self.bytes_read += len(target)
            at += room

    def arrived(self, layer: int, expert: int, slot: int) -> None:
        """All three are there."""
        self.residents.settle(slot, layer, expert)
        self._seen[layer, expert] = True

    def addresses(self, layer: int, slots: Mapping[int, int]) -> Tensor:
        """int64 [experts, 3] of gate, up and down of the experts in ``slots``; 0 for the others."""
        found = np.zeros((self.experts, PARTS), np.int64)
        experts, places = list(slots), np.fromiter(slots.values(), np.int64, len(slots))
        found[experts] = self._base + places[:, None] * self.slot_size + self._within[layer][experts]
        return torch.from_numpy(found)

    def _places(self, layer: Layer) -> np.ndarray:
        """Where in a slot the matrices of each expert begin: int64 [experts, 3]."""
        starts = np.array([[place.of(expert)[0] for place in layer] for expert in range(self.experts)])
        within: np.ndarray = starts % ALIGNMENT + np.cumsum([0, *self._rooms[:-1]])
        return within


class _Turn:
    """One layer's experts of one step: in memory and pinned, asked for, or still to be asked for."""

    def __init__(self, store: ExpertStore, layer: int, indices: Tensor) -> None:
        self.store, self.layer, self.indices = store, layer, indices
        self.residents, self.readers = store.residents, store.readers
        places = {expert: self.residents.slot(layer, expert) for expert in torch.unique(indices).tolist()}
        self.ready = {expert: slot for expert, slot in places.items() if slot != NOWHERE}
        self.missing = deque(expert for expert, slot in places.items() if slot == NOWHERE)  # in the file's order
        self.asked: dict[int, int] = {}  # expert -> slot
        self.left: dict[int, int] = {}  # expert -> matrices not read yet
        store.found += len(self.ready)
        store.read += len(self.missing)
        self.residents.pin(self.ready.values())
        self._ask()

    def batches(self) -> Iterator[Tensor]:
        """See ``ExpertStore.batches``."""
        while self.ready or self.asked or self.missing:
            if not self.ready:
                self._wait()
            batch, self.ready = self.ready, {}
            yield self.store.addresses(self.layer, batch)
            self.residents.unpin(batch.values())
            self._collect()
            self._ask()

    def close(self) -> None:
        """Wait for reads in flight, whose slots nobody else may have before; nothing is pinned after this."""
        if self.asked:  # the turn was broken off
            self.readers.drain()
        self.residents.unpin_all()

    def _ask(self) -> None:
        while self.missing and len(self.asked) < IN_FLIGHT and (slot := self.residents.take()) is not None:
            expert = self.missing.popleft()
            self.asked[expert], self.left[expert] = slot, PARTS
            self.store.ask(self.layer, expert, slot)

    def _wait(self) -> None:
        """Until an expert is there, or several."""
        began = time.perf_counter()
        while not self.ready:
            self._take_one()
        self._collect()
        self.store.wait_seconds += time.perf_counter() - began

    def _collect(self) -> None:
        """Take what has arrived by now."""
        while self.asked and self.readers.has_next():
            self._take_one()

    def _take_one(self) -> None:
        """The next matrix that arrives; with its third an expert is there. Raises what its read raised."""
        expert, error = self.readers.next()
        if error is not None:
            raise error
        self.left[expert] -= 1
        if not self.left[expert]:
            self.ready[expert] = slot = self.asked.pop(expert)
            self.store.arrived(self.layer, expert, slot)


def _check(file: MappedFile, begin: int, end: int, sums: Sequence[int], target: memoryview) -> None:
    """Raise CheckpointError unless bytes [begin, end) are those that were packed."""
    body = torch.frombuffer(target, dtype=torch.uint8)[begin:end]
    if checksums(body, cut(0, end - begin)) != list(sums):
        raise CheckpointError(f"{file.path}: damaged; delete it, and it is made anew when the model is loaded")


def _memory(size: int) -> mmap.mmap:
    """Zeroed pages of this process alone, taken when they are written to; large ones where the system has them."""
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
            return mmap.mmap(-1, size)
        arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise RunError(f"there is no memory for {gib(size)} of experts ({error})") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            arena.madvise(mmap.MADV_HUGEPAGE)
    return arena
