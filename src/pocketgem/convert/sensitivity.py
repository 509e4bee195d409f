"""How much each group of weights matters: it alone is made coarser, and the model is measured against its source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from pocketgem.checkpoint import names
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.stream import SourceTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType, tensor_bytes
from pocketgem.convert.choice import Choice, Option, smallest, truest
from pocketgem.convert.encode import Encoding, RoundedMatrix, Rounding, encoding
from pocketgem.convert.gate import Text, compared, hidden_states
from pocketgem.convert.groups import Types, fitting, grouped, kept
from pocketgem.convert.quality import Quality
from pocketgem.errors import InputError
from pocketgem.model.gemma import Gemma
from pocketgem.model.streamed import Matrix, StoredMatrix, build_streamed

CANDIDATES = (StoredType.Q4_0, StoredType.Q4_K, StoredType.Q6_K, StoredType.Q8_0)
QUANTISED_PER_SECOND = 10e6  # weights; only to say beforehand how long it takes
TRIES = 4  # ways measured whole, each more careful than the one before


@dataclass
class Bench:
    """A source that was run once, and what it takes to run it again with some tensors made coarser."""

    checkpoint: Checkpoint
    text: Text
    pool: ThreadPoolExecutor
    workers: int
    rounding: Rounding
    model: Gemma
    hidden: Tensor
    perplexity: float
    seconds: float  # one run and comparison

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, text: Text, pool: ThreadPoolExecutor, workers: int, rounding: Rounding
    ) -> Bench:
        """Run the source."""
        model, start = build_streamed(checkpoint), time.monotonic()
        hidden = hidden_states(model, text.ids)
        perplexity = compared(model, hidden, model, hidden, text.ids).perplexity
        return cls(checkpoint, text, pool, workers, rounding, model, hidden, perplexity, time.monotonic() - start)

    def measure(self, plans: Mapping[str, Encoding]) -> Quality:
        """The source with the tensors of ``plans`` as they will read once encoded."""

        def read(name: str, stored: StoredTensor) -> Matrix:
            plan = plans.get(gguf_name(self.checkpoint, name, stored))
            if plan is None or plan.how == "copied":
                return StoredMatrix(stored)
            return RoundedMatrix(plan, stored, self.pool, self.workers)

        model = build_streamed(self.checkpoint, read)
        return compared(self.model, self.hidden, model, hidden_states(model, self.text.ids), self.text.ids)


def gguf_name(checkpoint: Checkpoint, name: str, stored: StoredTensor) -> str:
    """What the new file calls a tensor that a model reads: a GGUF source's name stays, a stack's is its members'."""
    return stored.name if checkpoint.location.kind == "gguf" else names.gguf_name(name)


def options_of(members: Sequence[SourceTensor]) -> list[Option]:
    """Every way to store a group that saves bytes, its divergence still open, and the group as it is."""
    found: dict[tuple[StoredType, ...], Option] = {}
    asis = _option("as it is", {one.name: kept(one) for one in members}, members)
    for type in CANDIDATES:
        option = _option(str(type), {one.name: fitting(one, type) for one in members}, members)
        if option.nbytes < asis.nbytes:
            found.setdefault(tuple(option.types.values()), option)
    return [*found.values(), asis]


def _option(label: str, types: Types, members: Sequence[SourceTensor]) -> Option:
    return Option(label, types, sum(tensor_bytes(one.shape, types[one.name]) for one in members), 0.0)


def expected_seconds(bench: Bench, groups: Mapping[str, Sequence[SourceTensor]]) -> float:
    """How long ``measured`` will take, about."""
    seconds = 0.0
    for members in groups.values():
        each = bench.seconds + sum(one.numel for one in members) / QUANTISED_PER_SECOND / bench.workers
        seconds += each * (len(options_of(members)) - 1)
    return seconds


def measured(
    bench: Bench, tensors: Sequence[SourceTensor], watch: Callable[[int, int], None]
) -> dict[str, list[Option]]:
    """Group -> its options with their divergences. ``watch`` is called with (runs done, runs in all)."""
    groups = {group: (members, options_of(members)) for group, members in grouped(tensors).items()}
    total, done = sum(len(options) - 1 for _, options in groups.values()), 0
    found: dict[str, list[Option]] = {}
    for group, (members, options) in groups.items():
        *coarser, asis = options
        found[group] = [asis]
        for option in coarser:
            kl = bench.measure(dict(_plans(members, option.types, bench.rounding))).kl_mean
            found[group].append(Option(option.label, option.types, option.nbytes, kl))
            done += 1
            watch(done, total)
    return found


def _plans(tensors: Sequence[SourceTensor], types: Types, rounding: Rounding) -> Iterator[tuple[str, Encoding]]:
    for one in tensors:
        if one.name in types:
            yield one.name, encoding(one, types[one.name], rounding)


def chosen(
    bench: Bench,
    tensors: Sequence[SourceTensor],
    groups: Mapping[str, Sequence[Option]],
    *,
    max_kl: float,
    size: int | None,
    rest: int,
) -> Choice:
    """The cheapest choice that keeps to ``max_kl`` when it is measured whole, or the truest in ``size`` bytes.

    ``rest``: bytes of the file beside the groups. Raises InputError if no choice is as small as ``size``.
    """
    if size is not None:
        choice = truest(groups, size - rest)
        if choice is None:
            least = rest + sum(min(option.nbytes for option in options) for options in groups.values())
            raise InputError(f"--size {size}: the smallest that can be made has {least} bytes")
        return choice
    limit = max_kl
    for _ in range(TRIES):
        choice = smallest(groups, limit)
        types = {name: type for option in choice.values() for name, type in option.types.items()}
        found = bench.measure(dict(_plans(tensors, types, bench.rounding))).kl_mean
        if found <= max_kl:
            break
        limit *= 0.9 * max_kl / found  # together they do more harm than the sum of each alone
    return choice
