"""The whole of ``pocketgem bench`` but the drawing: check everything, measure, report."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pocketgem
from pocketgem.bench.measure import Bench, Track
from pocketgem.bench.plan import Plan, rows
from pocketgem.bench.reads import available_memory, read_bandwidth, weight_bytes
from pocketgem.bench.report import lines, row_report
from pocketgem.bench.subjects import Subject, chosen, ours, synthetic_layout, with_weights
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import Progress
from pocketgem.memory.place import Place, checked_place

FULL = 0.6  # of the free memory: above it the models are loaded in turn


@dataclass(frozen=True)
class Job:
    """A measurement that can be made: the checkpoint, the subjects and the plan fit together."""

    checkpoint: Checkpoint
    subjects: tuple[Subject, ...]
    plan: Plan
    one_at_a_time: bool

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.checkpoint.location.files)


def prepare(
    model: str,
    plan: Plan,
    *,
    peers: Sequence[str] = (),
    pythons: Mapping[str, str] | None = None,
    peer_models: Mapping[str, str] | None = None,
    one_at_a_time: bool = False,
    ple: Place = Place.AUTO,
    device: str = "cpu",
    offline: bool = False,
    keep_packed: bool = True,
    expert_memory: int | None = None,
) -> Job:
    """Look at everything before anything is loaded. For ``ple`` to ``expert_memory`` see ``LLM.load``.

    Raises CheckpointError for a bad model and for one that a peer cannot read, InputError for a peer that is not
    installed and for lengths beyond the model's context.
    """
    others = chosen(list(peers), pythons or {}, peer_models or {})
    checkpoint = open_checkpoint(resolve(model, offline=offline))
    plan.check(checkpoint.config)
    checked_place(ple, checkpoint.config)
    mine = ours(keep_packed=keep_packed, ple=ple, device=device, expert_memory=expert_memory)
    subjects = (mine, *(with_weights(peer, checkpoint) for peer in others))
    job = Job(checkpoint, subjects, plan, one_at_a_time)
    return job if one_at_a_time or _fit(job) else Job(checkpoint, subjects, plan, True)


def _fit(job: Job) -> bool:
    free = available_memory()
    return free is None or sum(one.weight for one in job.subjects) * job.file_bytes <= FULL * free


def run(job: Job, progress: Progress | None = None) -> dict[str, object]:
    """Measure and report. Raises RunError when a worker fails."""
    planned = rows(job.plan)
    config, bandwidth = job.checkpoint.config, list[float]()
    options = {"model": job.checkpoint.where, "vocabulary": config.vocab_size}
    bench = Bench(job.subjects, planned, job.plan, options)
    tracks = bench.run(
        one_at_a_time=job.one_at_a_time,
        progress=progress,
        between=lambda: bandwidth.append(read_bandwidth(job.plan.threads)),
    )
    readers = [subject.name for subject in job.subjects if subject.reads_file]
    found = lines(planned, tracks, lambda sequences: weight_bytes(job.checkpoint, sequences))
    return {
        **_facts(job, max(bandwidth)),
        "subjects": {name: _subject(track) for name, track in tracks.items()},
        "rows": [row_report(line, readers, max(bandwidth)) for line in found],
    }


def _facts(job: Job, bandwidth: float) -> dict[str, object]:
    """What a reader must know to believe the rest, or to measure it again."""
    plan = job.plan
    return {
        "model": job.checkpoint.location.files[0].name,
        "synthetic": synthetic_layout(job.checkpoint) is not None,
        "file_bytes": job.file_bytes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "pocketgem": pocketgem.__version__,
        "threads": plan.threads,
        "runs": plan.runs,
        "decode_steps": plan.decode,
        "one_at_a_time": job.one_at_a_time,
        "read_bandwidth_GB_per_s": round(bandwidth, 2),
        "weight_bytes_per_token": weight_bytes(job.checkpoint),
    }


def _subject(track: Track) -> dict[str, object]:
    found: dict[str, object] = dict(track.facts)
    if track.anonymous_MiB is not None:
        found["anonymous_memory_MiB"] = round(track.anonymous_MiB)
    if track.unsupported:
        found["not_measured"] = track.unsupported
    return found
