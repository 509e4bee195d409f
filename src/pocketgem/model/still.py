"""Decoding one sequence over buffers that never move, so that a card can record the step once and play it again.

A step of decode is several hundred small operations, and starting them one by one costs a card more time than running
them. A recording starts all at once, but always at the same addresses with the same shapes: keys and values lie in
buffers of their own, the position is a number on the card, and what a query sees is a mask over a whole buffer.

A cache is borrowed: its rows are copied here once, new ones are written here, and they go back when somebody asks the
cache for its stores (another kind of step, a copy, a past that is kept). Nothing here is special to cards but
``_record``; on the CPU the same step runs unrecorded, which is how it is tested. **No card has run it yet.**
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pocketgem.model.cache import Cache, LayerStore, Span, Step
from pocketgem.model.gemma import Gemma, Inputs

LEAST_CAPACITY = 1024  # tokens; doubled when a sequence outgrows it, with a recording for each size
WARM_UP = 3  # steps before a recording: libraries choose and allocate in their first ones


@dataclass(slots=True)
class StillKeys:
    """K/V of one layer: position p lies in slot p % capacity. Sliding layers need no more slots than their window."""

    k: Tensor  # [capacity, kv_heads, head_dim]
    v: Tensor

    def visible(self, positions: Tensor, window: int | None, last: Tensor | None = None) -> Tensor:
        """See ``KeysValues.visible``: ``[rows, capacity]``."""
        slots = torch.arange(len(self.k), device=positions.device)
        age = (positions[:, None] - slots) % len(self.k)  # of the newest position that a slot can hold by now
        seen = age <= positions[:, None]
        return seen if window is None else seen & (age < window)


@dataclass(frozen=True)
class StillStep(Step):
    """One row at ``positions`` [1]."""

    keys: Mapping[int, StillKeys] = field(default_factory=dict)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[StillKeys, ...]:
        """See ``Step.write``."""
        kept = self.keys[layer]
        slot = self.positions % len(kept.k)
        kept.k.index_copy_(0, slot, k)
        kept.v.index_copy_(0, slot, v)
        return (kept,)


class StillDecoder:
    """``Gemma.forward`` for steps of one row. Experts choose weights on the host, so models with them stay out."""

    def __init__(self, model: Gemma) -> None:
        self.model, self._begun, self._capacity = model, 0, 0
        self.cache: Cache | None = None
        self._keys: dict[int, StillKeys] = {}
        self._position = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._inputs: Inputs | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden: Tensor | None = None

    def takes(self, step: Step, *, adapters: bool) -> bool:
        """Whether a step is one row that wants its logits; with an adapter it is none that was recorded."""
        return not adapters and len(step.positions) == 1 == len(step.logit_rows) and self.model.config.experts is None

    def ready(self, inputs: Inputs, step: Step) -> Callable[[], Tensor]:
        """See ``Gemma.ready``."""
        return partial(self, inputs, step)

    def __call__(self, inputs: Inputs, step: Step) -> Tensor:
        """See ``Gemma.forward``: ``[1, hidden]``."""
        cache = next(span.cache for span in step.spans if span.stop > span.start)
        if self.cache is not cache or not cache.is_lent or cache.length >= self._capacity:
            self._borrow(cache)
        self._position.copy_(step.positions)
        self._take(inputs)
        return self._run().clone()

    # ---- what is borrowed ------------------------------------------------------------------------------------------

    def _borrow(self, cache: Cache) -> None:
        if self.cache is not None and self.cache.is_lent:
            self._give_back(self.cache)
        stores = cache.stores  # brings home what an earlier loan left here
        self._make_room(cache, stores)
        for index, store in stores.items():
            first = store.room.oldest(cache.length)
            rows = slice(first - store.room.first, cache.length - store.room.first)
            slots = self._slots(index, first, cache.length)
            self._keys[index].k.index_copy_(0, slots, store.k[rows])
            self._keys[index].v.index_copy_(0, slots, store.v[rows])
        self.cache, self._begun = cache, cache.length
        cache.lend(self._give_back)

    def _make_room(self, cache: Cache, stores: Mapping[int, LayerStore]) -> None:
        capacity = LEAST_CAPACITY
        while capacity <= cache.length:
            capacity *= 2
        if capacity == self._capacity:
            return
        self._keys, self._graph, self._capacity = {}, None, capacity
        for index, store in stores.items():
            slots = min(store.room.window or capacity, capacity)
            k, v = (torch.zeros((slots, *store.row), dtype=store.dtype, device=store.device) for _ in range(2))
            self._keys[index] = StillKeys(k, v)

    def _slots(self, index: int, start: int, stop: int) -> Tensor:
        kept = self._keys[index].k
        return torch.arange(start, stop, device=kept.device) % len(kept)

    def _give_back(self, cache: Cache) -> None:
        """Bring a cache's new rows to its stores."""
        for index, store in cache.take_back().items():
            if store.room.window is None:
                start, count = self._begun, cache.length - self._begun
                slot = store.reserve(start, count)
                k, v = slot.k, slot.v
            else:
                start = store.room.oldest(cache.length)
                store.begin(start, cache.length - start)
                k, v = store.k[: cache.length - start], store.v[: cache.length - start]
            slots = self._slots(index, start, cache.length)
            k.copy_(self._keys[index].k.index_select(0, slots))
            v.copy_(self._keys[index].v.index_select(0, slots))

    # ---- the step --------------------------------------------------------------------------------------------------

    def _take(self, inputs: Inputs) -> None:
        if self._inputs is None:
            self._inputs = Inputs(inputs.x.clone(), None if inputs.per_layer is None else inputs.per_layer.clone())
            return
        self._inputs.x.copy_(inputs.x)
        if self._inputs.per_layer is not None and inputs.per_layer is not None:
            self._inputs.per_layer.copy_(inputs.per_layer)

    def _forward(self) -> Tensor:
        assert self.cache is not None
        assert self._inputs is not None
        row = torch.arange(1)  # on the CPU, as every step's
        step = StillStep((Span(self.cache, 0, 1),), self._position, row, skip=False, keys=self._keys)
        hidden: Tensor = self.model(self._inputs, step)
        return hidden

    def _run(self) -> Tensor:
        if self._position.device.type != "cuda":
            return self._forward()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        assert self._hidden is not None
        self._graph.replay()
        return self._hidden

    def _record(self) -> None:
        """Writes of the steps before it and of the recording go to the slot that the replay writes anew."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._hidden = self._forward()
