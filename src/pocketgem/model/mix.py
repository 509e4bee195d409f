"""Several adapters on one model, whose rows are mixed in one pass.

    mix = Mix(model)
    number = mix.put(deltas)                 known to the modules it changes, and no row is its own yet
    with mix.rows(owners, kept): model(...)  each row of the pass has the adapter of this number, or none
    mix.drop(number); mix.close()            the very modules that were there before

Forward does not know of them: modules ask the mix whose the rows before them are. A row's arithmetic is its own
adapter's or the base's, whoever is in the pass with it. Over packed weights the changes are added inside the fused
calls (``native/lowrank.inl``), row by row with the same bits in any company; elsewhere by torch, for each run of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

from pocketgem.errors import RunError, UnsupportedError, WeightsError
from pocketgem.kernels.compute import Compute, Segment, nobodys
from pocketgem.kernels.low_rank import PackedLowRank
from pocketgem.model import ops
from pocketgem.model.experts import Experts
from pocketgem.model.fused import FusedLayer, MixedChanges
from pocketgem.model.gemma import Gemma
from pocketgem.model.low_rank import (
    STACKS,
    Changed,
    Deltas,
    LowRank,
    Place,
    check_fits,
    fused_layers,
    packed,
    places,
    row_factors,
)
from pocketgem.model.quant import PackedLinear

NOBODY = -1
PARTS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "per_layer_input_gate": "into", "per_layer_projection": "back",
}  # fmt: skip
_MIX = "_mix"  # on the model


def mix_of(model: Gemma) -> Mix | None:
    """The mix of a model, where it has one."""
    found: Mix | None = getattr(model, _MIX, None)
    return found


class Mix:
    """The adapters that are on a model at once, by number, and whose the rows of the pass at hand are."""

    def __init__(self, model: Gemma) -> None:
        if mix_of(model) is not None:
            raise WeightsError("the model has a mix of adapters already")
        self.model = model
        self.usual = NOBODY  # whose rows are that nobody claims
        self.sizes: dict[int, int] = {}  # bytes of each adapter's numbers, as they are used
        self.named: dict[str, int] = {}  # by the adapters' identities
        self._last = 0
        self._replaced: dict[str, nn.Module] = {}
        self._owners: dict[int, list[int]] = {}  # of the pass at hand, by how many rows there are
        self._runs: dict[int, tuple[Segment, ...]] = {}
        for layer in fused_layers(model).values():
            layer.layer.whose = self.whose
        setattr(model, _MIX, self)

    # ---- adapters --------------------------------------------------------------------------------------------------

    def put(self, deltas: Deltas, identity: str | None = None) -> int:
        """Make an adapter known; returns its number. identity: what requests call it.

        Raises WeightsError where it does not fit, UnsupportedError for DoRA over packed weights, and then nothing was
        changed.
        """
        check_fits(self.model, deltas)
        if packed(self.model) and any(delta.magnitude is not None for delta in deltas.values()):
            raise UnsupportedError("DoRA needs the base's weights unpacked: load the model with a dtype")
        self._last += 1
        number, fused = self._last, fused_layers(self.model)
        held = [place for place in places(self.model) if any(name in deltas for name in place.shapes)]
        self.sizes[number] = 0
        for index, layer in fused.items():
            here = [place for place in held if place.layer == index and _is_fused(layer, place)]
            self.sizes[number] += _put_fused(layer, number, {place.part: deltas[place.name] for place in here})
            held = [place for place in held if place not in here]
        for place in held:
            self.sizes[number] += self._mixed(place).put(number, place.name, deltas)
        if identity is not None:
            self.named[identity] = number
        return number

    def number(self, identity: str) -> int:
        """Of the adapter that requests call so. Raises RunError where it is not on the model."""
        if (found := self.named.get(identity)) is None:
            raise RunError(f"the adapter {identity[:12]} is not on the model (any more)")
        return found

    def drop(self, number: int) -> None:
        """Forget an adapter."""
        self.sizes.pop(number, None)
        self.named = {identity: known for identity, known in self.named.items() if known != number}
        for layer in fused_layers(self.model).values():
            _drop_fused(layer, number)
        for path in self._replaced:
            cast(Mixed, self.model.get_submodule(path)).drop(number)

    def close(self) -> None:
        """The modules of before are back, with no adapter."""
        for number in list(self.sizes):
            self.drop(number)
        for path, module in self._replaced.items():
            self.model.set_submodule(path, module)
        self._replaced.clear()
        for layer in fused_layers(self.model).values():
            layer.layer.whose = nobodys
        setattr(self.model, _MIX, None)

    def _mixed(self, place: Place) -> Mixed:
        if isinstance(place.module, Mixed):
            return place.module
        mixed: Mixed = (
            MixedExperts(self, place.module) if isinstance(place.module, Experts) else MixedLinear(self, place.module)
        )
        self._replaced[place.path] = place.module
        self.model.set_submodule(place.path, mixed)
        return mixed

    # ---- rows ------------------------------------------------------------------------------------------------------

    @contextmanager
    def rows(self, owners: Sequence[int], kept: Sequence[int] = ()) -> Iterator[None]:
        """For the length of a pass: the adapter's number of each row, NOBODY for the base's.

        kept: the rows that stay in it to its end, where others leave early.
        """
        before = self._owners, self._runs
        everyone = [self.usual if owner == NOBODY else owner for owner in owners]
        self._owners = {len(kept): [everyone[row] for row in kept], len(everyone): everyone}
        self._runs = {count: _runs(known) for count, known in self._owners.items()}
        try:
            yield
        finally:
            self._owners, self._runs = before

    def whose(self, count: int) -> tuple[Segment, ...]:
        """Runs of rows with one adapter, of a call with so many rows. Raises RunError for rows nobody told of."""
        if (found := self._runs.get(count)) is not None:
            return found
        owners = {owner for known in self._owners.values() for owner in known}
        if len(owners) > 1:
            raise RunError(f"a pass came with {count} rows, and nobody said whose adapters they have")
        owner = owners.pop() if owners else self.usual
        return () if owner == NOBODY or not count else ((0, count, owner),)

    def owners(self, count: int) -> list[int]:
        """The same as a number for each row."""
        return self._owners.get(count, [self.usual] * count)


def _runs(owners: Sequence[int]) -> tuple[Segment, ...]:
    runs, start = [], 0
    for owner, group in groupby(owners):
        stop = start + sum(1 for _ in group)
        if owner != NOBODY:
            runs.append((start, stop, owner))
        start = stop
    return tuple(runs)


# ---- fused layers ----------------------------------------------------------------------------------------------------


def _is_fused(layer: FusedLayer, place: Place) -> bool:
    """Whether the fused layer itself computes what this plain part stands for."""
    return place.part in PARTS and ".routed." not in place.path


def _put_fused(layer: FusedLayer, number: int, deltas: dict[str, LowRank]) -> int:
    """By the plain parts' names; returns their bytes. The MLP of a layer with routed experts is computed by itself."""
    parts = {PARTS[name]: _packed_delta(layer.compute, delta) for name, delta in deltas.items()}
    if layer.plain.routed is not None:
        for part in ("gate", "up", "down"):
            if part in parts:
                layer.dense.changes.setdefault(part, MixedChanges(layer.layer)).known[number] = parts[part]
        layer.layer.put(number, {part: change for part, change in parts.items() if part in "qkvo"})
    elif parts:
        layer.layer.put(number, parts)
    return sum(change.nbytes for change in parts.values())


def _drop_fused(layer: FusedLayer, number: int) -> None:
    layer.layer.drop(number)
    if layer.plain.routed is not None:
        for mixed in layer.dense.changes.values():
            mixed.known.pop(number, None)


def _packed_delta(compute: Compute, delta: LowRank) -> PackedLowRank:
    return compute.low_rank(delta.A, delta.B, delta.scale)


# ---- modules ---------------------------------------------------------------------------------------------------------


class Mixed(Changed):
    """A module that asks a mix whose its rows are."""

    def put(self, number: int, name: str, deltas: Deltas) -> int:
        """Know an adapter's change of the module called ``name``; returns its bytes."""
        raise NotImplementedError

    def drop(self, number: int) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Plain:
    """A change that torch computes. factor: DoRA's, for each output."""

    delta: LowRank
    factor: Tensor | None

    def __call__(self, base: Tensor, x: Tensor) -> Tensor:
        out = base + self.delta.of(x)
        return out if self.factor is None else out * self.factor


class MixedLinear(Mixed):
    """A linear of any kind and what each adapter adds to it."""

    def __init__(self, mix: Mix, base: nn.Module) -> None:
        super().__init__()
        self.mix, self.base = mix, base
        self.plain: dict[int, Plain] = {}
        self.native: dict[int, PackedLowRank] = {}

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.base.weight)

    def put(self, number: int, name: str, deltas: Deltas) -> int:
        delta = deltas[name]
        if isinstance(self.base, PackedLinear):
            self.native[number] = _packed_delta(self.base.compute, delta)
            return self.native[number].nbytes
        here = _moved(delta, self.mix.model)
        self.plain[number] = Plain(here, None if delta.magnitude is None else row_factors(self.base, here))
        return delta.A.nbytes + delta.B.nbytes

    def drop(self, number: int) -> None:
        self.plain.pop(number, None)
        self.native.pop(number, None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        runs = self.mix.whose(len(x))
        if isinstance(self.base, PackedLinear):
            changes = [(start, stop, self.native[who]) for start, stop, who in runs if who in self.native]
            return self.base.compute.change_(out, x.contiguous(), changes) if changes else out
        for start, stop, who in runs:
            if who in self.plain:
                out[start:stop] = self.plain[who](out[start:stop], x[start:stop])
        return out


class MixedExperts(Mixed, Experts):
    """Plain routed experts and what each adapter adds to them."""

    def __init__(self, mix: Mix, base: Experts) -> None:
        nn.Module.__init__(self)
        self.mix = mix
        self.base: Experts = base
        self.known: dict[tuple[int, str], LowRank] = {}

    def put(self, number: int, name: str, deltas: Deltas) -> int:
        found = {key: _moved(deltas[f"{name}.{key}"], self.mix.model) for key in STACKS if f"{name}.{key}" in deltas}
        self.known |= {(number, key): delta for key, delta in found.items()}
        return sum(delta.A.nbytes + delta.B.nbytes for delta in found.values())

    def drop(self, number: int) -> None:
        self.known = {at: delta for at, delta in self.known.items() if at[0] != number}

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """The base's ``forward``, told whose each of an expert's rows is."""
        owners, out = torch.tensor(self.mix.owners(len(x)), device=x.device), torch.zeros_like(x)
        for expert in torch.unique(indices).tolist():
            rows, choice = torch.where(indices == expert)
            mixed = self._run(expert, x[rows], owners[rows]) * weights[rows, choice, None]
            out.index_add_(0, rows, mixed.to(x.dtype))
        return out

    def _run(self, expert: int, x: Tensor, owners: Tensor) -> Tensor:
        inner = self._product("gate_up_proj", expert, x, owners)
        gate, up = inner.chunk(2, dim=-1)
        return self._product("down_proj", expert, ops.geglu(gate, up), owners)

    def _product(self, key: str, expert: int, x: Tensor, owners: Tensor) -> Tensor:
        out = ops.linear(x, getattr(self.base, key)[expert])
        for who in set(owners.tolist()):
            if (delta := self.known.get((who, key))) is not None:
                out[owners == who] += delta.member(expert).of(x[owners == who])
        return out


def _moved(delta: LowRank, model: Gemma) -> LowRank:
    """On the model's device."""
    magnitude = None if delta.magnitude is None else delta.magnitude.to(model.device)
    return LowRank(delta.A.to(model.device), delta.B.to(model.device), delta.scale, magnitude)
