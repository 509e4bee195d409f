"""From a source to a smaller GGUF file: how each tensor is stored, its bytes, the gate, the name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pocketgem.checkpoint.card import PREFIX, QualityCard
from pocketgem.checkpoint.draft import Draft, value_bytes
from pocketgem.checkpoint.export import metadata_of
from pocketgem.checkpoint.header import raw_values
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.quantize import quantize
from pocketgem.checkpoint.resolve import Location, resolve
from pocketgem.checkpoint.stream import SourceTensor, source_tensors
from pocketgem.checkpoint.tensor import MappedFile
from pocketgem.checkpoint.types import StoredType
from pocketgem.convert.choice import Option
from pocketgem.convert.encode import Encoding, Rounding, encoded, encoding
from pocketgem.convert.gate import Limits, Text, calibration, card_of, compared, hidden_states, limits_for
from pocketgem.convert.groups import Format, Types, by_rule, grouped
from pocketgem.convert.quality import Quality
from pocketgem.convert.sensitivity import Bench, chosen, expected_seconds, measured
from pocketgem.errors import CheckpointError, RunError
from pocketgem.kernels.cores import default_threads
from pocketgem.model.build import check_tensors
from pocketgem.model.streamed import build_streamed

DROPPED = ("general.alignment", "split.", "quantize.imatrix.", PREFIX)  # keys about the file that was the source
FILE_TYPES = {  # llama.cpp's number for a file whose matrices are mostly of a type
    StoredType.F32: 0, StoredType.F16: 1, StoredType.Q4_0: 2, StoredType.Q8_0: 7, StoredType.Q5_0: 8,
    StoredType.Q4_K: 15, StoredType.Q6_K: 18, StoredType.BF16: 32,
}  # fmt: skip
QUANTIZATION_VERSION = 2  # of ggml's block layouts
Watch = Callable[[str, int, int], None]  # stage, done, in all: bytes while writing, steps elsewhere


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked of a conversion.

    calibration: a UTF-8 text to measure over; None for the one that comes with the package. tokens: how many of its
    first ids. max_kl: another limit for the mean divergence than the format's own. size: for ``auto``, bytes the file
    may have. check: whether the result is measured. force: keep a result that breaks the limits. minutes: how long
    ``auto`` may take to measure groups before it goes by its rules. rounding: the quantiser (for tests).
    """

    form: Format
    calibration: Path | None = None
    tokens: int = 512
    max_kl: float | None = None
    size: int | None = None
    check: bool = True
    force: bool = False
    minutes: float = 30.0
    threads: int | None = None
    rounding: Rounding = quantize


@dataclass(frozen=True)
class Row:
    """All tensors of one group that are stored alike."""

    group: str
    source: str
    type: str
    how: str
    tensors: int
    weights: int
    source_bytes: int
    nbytes: int
    blocks: int = 0  # of tensors that lie on a Q4_0 grid
    exact: int = 0  # of these, blocks that are the source's weights bit for bit


@dataclass(frozen=True)
class Plan:
    """How every tensor of the new file will be stored. ``groups`` and ``note`` say how ``auto`` came to it."""

    checkpoint: Checkpoint = field(repr=False)
    encodings: list[Encoding] = field(repr=False)
    groups: dict[str, list[Option]]
    note: str | None

    @property
    def left_out(self) -> int:
        """How many tensors of a folder's towers the new file does not hold: GGUF keeps those in a file of their own."""
        return len(self.checkpoint.others) if self.checkpoint.location.kind == "safetensors" else 0

    @property
    def source_bytes(self) -> int:
        return sum(_source_bytes(one.tensor) for one in self.encodings)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.encodings)

    def rows(self, exact: Mapping[str, int] | None = None) -> list[Row]:
        """The plan as a table; ``exact``: tensor -> blocks that were found exactly."""
        groups = {one.name: group for group, members in grouped(self._tensors()).items() for one in members}
        rows: dict[tuple[str, ...], Row] = {}
        for one in self.encodings:
            row = _row(groups.get(one.tensor.name, "other"), one, (exact or {}).get(one.tensor.name, 0))
            key = (row.group, row.source, row.type, row.how)
            rows[key] = _sum(rows[key], row) if key in rows else row
        return sorted(rows.values(), key=lambda row: (row.group == "other", -row.nbytes))

    def _tensors(self) -> list[SourceTensor]:
        return [one.tensor for one in self.encodings]


@dataclass(frozen=True)
class Outcome:
    """A file that was written. ``faults``: the limits it breaks, kept all the same because that was asked for."""

    target: Path
    size: int
    rows: list[Row]
    exact: dict[str, tuple[int, int]]  # tensors on a Q4_0 grid -> blocks that are exact, blocks in all
    card: QualityCard | None
    limits: Limits
    faults: list[str]
    plan: Plan = field(repr=False)


def quantize_model(
    source: str | Path | Checkpoint, target: Path, wishes: Wishes, *, offline: bool = False, watch: Watch | None = None
) -> Outcome:
    """Write ``source`` (a GGUF file, a folder, a hub name) to ``target`` as GGUF, its matrices in ``wishes.form``.

    Beyond what a vocabulary takes, memory is some 10 MiB a thread while writing and 600 MiB while measuring. The target
    has its name only when it is complete, measured and within the limits; a file of that name is replaced then.
    Raises CheckpointError for a source that cannot be read or is the target, InputError for a bad calibration text or
    size, RunError when the result breaks its limits or the disk refuses.
    """
    job = _Job.of(source, wishes, offline=offline, watch=watch)
    job.check_target(target)
    with job.pool:
        return job.write(job.plan(), target)


def plan_model(
    source: str | Path | Checkpoint, wishes: Wishes, *, offline: bool = False, watch: Watch | None = None
) -> Plan:
    """What ``quantize_model`` would write; ``auto`` measures for it. Raises as that does."""
    job = _Job.of(source, wishes, offline=offline, watch=watch)
    with job.pool:
        return job.plan()


@dataclass
class _Job:
    checkpoint: Checkpoint
    wishes: Wishes
    watch: Watch
    tensors: list[SourceTensor]
    workers: int
    pool: ThreadPoolExecutor
    text: Text | None
    bench: Bench | None = None

    @classmethod
    def of(cls, source: str | Path | Checkpoint, wishes: Wishes, *, offline: bool, watch: Watch | None) -> _Job:
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(resolve(source, offline=offline))
        check_tensors(checkpoint)
        needs_text = wishes.check or wishes.form is Format.AUTO
        text = calibration(checkpoint, wishes.calibration, wishes.tokens) if needs_text else None
        workers = wishes.threads or default_threads().count
        pool = ThreadPoolExecutor(workers, "quantize")
        tensors = source_tensors(checkpoint)
        return cls(checkpoint, wishes, watch or (lambda *_: None), tensors, workers, pool, text)

    def check_target(self, target: Path) -> None:
        """Raise CheckpointError where writing would cost the source."""
        for file in self.checkpoint.location.files:
            if target.exists() and file.exists() and target.samefile(file):
                raise CheckpointError(f"{target}: is the source itself; choose another name")

    # ---- how each tensor is stored ---------------------------------------------------------------------------------

    def plan(self) -> Plan:
        types, groups, note = by_rule(self.tensors, self.wishes.form), dict[str, list[Option]](), None
        if self.wishes.form is Format.AUTO:
            types, groups, note = self._auto(types)
        encodings = [encoding(one, types[one.name], self.wishes.rounding) for one in self.tensors]
        return Plan(self.checkpoint, encodings, groups, note)

    def _auto(self, rules: Types) -> tuple[Types, dict[str, list[Option]], str | None]:
        bench, kinds = self._bench(), grouped(self.tensors)
        seconds = expected_seconds(bench, kinds)
        if seconds > self.wishes.minutes * 60:
            return rules, {}, (
                f"groups were not measured, that would take about {seconds / 60:.0f} minutes and "
                f"{self.wishes.minutes:g} were granted: types are those of the rules for auto"
            )  # fmt: skip
        groups = measured(bench, self.tensors, lambda done, total: self.watch("measuring groups", done, total))
        inside = {one.name for members in kinds.values() for one in members}
        rest = sum(encoding(one, rules[one.name]).nbytes for one in self.tensors if one.name not in inside)
        choice = chosen(bench, self.tensors, groups, max_kl=self._limits().kl_mean, size=self.wishes.size, rest=rest)
        picked = {name: type for option in choice.values() for name, type in option.types.items()}
        return rules | picked, groups, None

    def _bench(self) -> Bench:
        """The source, run once."""
        if self.bench is None:
            assert self.text is not None
            self.watch("running the source", 0, 1)
            self.bench = Bench.of(self.checkpoint, self.text, self.pool, self.workers, self.wishes.rounding)
            self.watch("running the source", 1, 1)
        return self.bench

    def _limits(self) -> Limits:
        return limits_for(self.wishes.form, self.wishes.max_kl)

    # ---- the file --------------------------------------------------------------------------------------------------

    def write(self, plan: Plan, target: Path) -> Outcome:
        described = [(one.tensor.name, one.tensor.shape, one.type) for one in plan.encodings]
        with Draft(target, self._values(plan), described) as draft:
            exact = self._write_tensors(plan, draft)
            card, faults = self._judge(draft) if self.wishes.check else (None, [])
            if faults and not self.wishes.force:
                raise RunError(f"{target}: not written, {'; '.join(faults)} (--force keeps it all the same)")
            draft.publish()
            size = draft.size
        found = {
            one.tensor.name: (exact[one.tensor.name], one.tensor.numel // 32) for one in plan.encodings if one.on_grid
        }
        return Outcome(target, size, plan.rows(exact), found, card, self._limits(), faults, plan)

    def _write_tensors(self, plan: Plan, draft: Draft) -> dict[str, int]:
        """Tensor -> blocks that were found exactly."""
        exact, done, total = dict[str, int](), 0, plan.nbytes
        for one in plan.encodings:
            exact[one.tensor.name] = 0
            for data, blocks in encoded(one, self.pool, self.workers):
                draft.write(memoryview(data.numpy()).cast("B"))
                exact[one.tensor.name] += blocks
                done += data.numel()
                self.watch("writing", done, total)
            draft.end_tensor()
        return exact

    def _judge(self, draft: Draft) -> tuple[QualityCard, list[str]]:
        """Measure the file, and write the result into it."""
        assert self.text is not None
        bench, layers = self._bench(), self.checkpoint.config.num_layers
        done = iter(range(1, layers + 2))
        tick = lambda: self.watch("measuring the result", next(done), layers + 1)  # noqa: E731
        model = build_streamed(open_checkpoint(Location("gguf", (draft.path,), None)))
        found = compared(bench.model, bench.hidden, model, hidden_states(model, self.text.ids, tick), self.text.ids)
        tick()
        card, limits = self._card(found), self._limits()
        draft.fill_in(_encoded(card.to_metadata()))
        return card, limits.broken(found)

    def _card(self, found: Quality) -> QualityCard:
        assert self.text is not None
        perplexity = self.bench.perplexity if self.bench is not None else math.nan
        return card_of(self.wishes.form, _name(self.checkpoint), self.text, found, perplexity, self._limits())

    def _values(self, plan: Plan) -> dict[str, bytes]:
        """The new file's metadata: a GGUF source's as it is, save what describes the file itself."""
        about = {"general.file_type": _file_type(plan.encodings), "general.quantization_version": QUANTIZATION_VERSION}
        card = self._card(Quality(0.0, 0.0, 0.0, 0.0, 0.0)).to_metadata() if self.wishes.check else {}
        return {**_kept_values(self.checkpoint), **_encoded(about), **_encoded(card)}


def _kept_values(checkpoint: Checkpoint) -> dict[str, bytes]:
    if checkpoint.location.kind == "gguf":
        file = MappedFile(checkpoint.location.files[0])
        values = raw_values(file.buffer, file.size, str(file.path))
        return {key: value for key, value in values.items() if not key.startswith(DROPPED)}
    config = checkpoint.config
    return _encoded({"general.architecture": config.family, "general.name": _name(checkpoint), **metadata_of(config)})


def _encoded(values: Mapping[str, object]) -> dict[str, bytes]:
    return {key: value_bytes(key, value) for key, value in values.items()}


def _name(checkpoint: Checkpoint) -> str:
    """What the source is called: no path of this machine goes into a file that travels."""
    where = checkpoint.location.folder or checkpoint.location.files[0]
    return where.resolve().name


def _file_type(encodings: Sequence[Encoding]) -> int:
    """By the type that most bytes are of; the embedding, often finer than the rest, does not count."""
    sizes: dict[StoredType, int] = {}
    for one in encodings:
        if len(one.tensor.shape) > 1 and not one.tensor.name.startswith(("token_embd", "output")):
            sizes[one.type] = sizes.get(one.type, 0) + one.nbytes
    return FILE_TYPES.get(max(sizes, key=lambda type: sizes[type], default=StoredType.F32), 0)


def _source_bytes(tensor: SourceTensor) -> int:
    return sum(part.nbytes for part in tensor.stored)


def _row(group: str, one: Encoding, exact: int) -> Row:
    tensor = one.tensor
    blocks = tensor.numel // StoredType.Q4_0.block_size if one.on_grid else 0
    size, nbytes = _source_bytes(tensor), one.nbytes
    return Row(group, str(tensor.type), str(one.type), one.how, 1, tensor.numel, size, nbytes, blocks, exact)


def _sum(one: Row, other: Row) -> Row:
    numbers = ("tensors", "weights", "source_bytes", "nbytes", "blocks", "exact")
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in numbers})
