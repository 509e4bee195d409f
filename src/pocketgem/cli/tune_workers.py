"""``pocketgem tune --workers N``: the same command again in N - 1 more processes of this machine, which find this one.

torchrun and ``accelerate launch`` start ``-m pocketgem tune ...`` themselves, on several machines too, and Ray Train
runs it in its workers (``--ray``); then this file only joins.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from pocketgem.cli.common import refuse
from pocketgem.errors import RunError

if TYPE_CHECKING:
    from pocketgem.tune.run import Run
    from pocketgem.tune.team import Team

Workers = Annotated[int, typer.Option(min=1, help="Processes that share every batch; the result is that of one.")]
Shard = Annotated[bool, typer.Option("--shard", help="Each worker keeps a part of the base's layers (FSDP2).")]
UseRay = Annotated[bool, typer.Option("--ray", help="Let Ray Train start the workers (docs/scale-out-tuning.md).")]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Of a cluster that is there, HOST:PORT or auto.")
]

MOST = 64  # processes on one machine
ENDING = 60.0  # seconds for the others to end


def among_others() -> bool:
    """Whether this process is a worker already, that somebody else started."""
    import torch.distributed as dist

    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1


def shared(run: Run, team: Team | None, *, shard: bool) -> Run:
    """The run as this worker's part. Raises InputError for shards without workers."""
    from pocketgem.tune.spread import spread

    if team is not None:
        return spread(run, team, shard=shard)
    if shard:
        refuse("--shard cuts the base among workers; give --workers too.")
    return run


@contextmanager
def team_of(workers: int, arguments: Sequence[str]) -> Iterator[Team | None]:
    """The team of this process: the one it was started into, else ``workers`` processes of which it is the first, else
    None. arguments: the command line, for the others."""
    from pocketgem.tune.team import MEETING, Meeting, joined

    if MEETING in os.environ:
        _end_with_parent()
    if workers < 2 or among_others():
        with joined() as team:
            yield team
        return
    if workers > MOST:
        refuse(f"--workers {workers}: at most {MOST} on one machine; torchrun starts more on several.")
    with tempfile.TemporaryDirectory(prefix="pocketgem-") as folder, _fewer_threads(workers):
        others = _Others(Path(folder), workers, arguments)
        try:
            with joined(Meeting(others.meeting, 0, workers, others.check)) as team:
                yield team
            others.wait()
        except RunError:
            others.check()  # what ended it is better known there
            raise
        finally:
            others.end()


class _Others:
    """The processes beside this one. They end with it, however it ends."""

    def __init__(self, folder: Path, workers: int, arguments: Sequence[str]) -> None:
        from pocketgem.tune.team import MEETING

        self.meeting, self.folder = folder / "meeting", folder
        self.programs: list[subprocess.Popen[bytes]] = []
        for rank in range(1, workers):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), MEETING: str(self.meeting)}
            with self._said(rank).open("wb") as said:
                self.programs.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "pocketgem", *arguments, "--quiet"],
                        env={**os.environ, "OMP_NUM_THREADS": str(_threads(workers)), **place},
                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
                    )
                )  # fmt: skip

    def _said(self, rank: int) -> Path:
        return self.folder / f"worker-{rank}.log"

    def check(self) -> None:
        """Raises RunError when one has failed, with what it said."""
        for rank, program in enumerate(self.programs, 1):
            if program.poll():
                last = self._said(rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                why = last[0].removeprefix("error: ") if last else f"exit code {program.returncode}"
                raise RunError(f"worker {rank} ended: {why}")

    def wait(self) -> None:
        for program in self.programs:
            with suppress(subprocess.TimeoutExpired):
                program.wait(ENDING)
        self.check()

    def end(self) -> None:
        for program in self.programs:
            if program.poll() is None:
                program.kill()
            program.wait()
            if program.stdin is not None:
                program.stdin.close()


def _threads(workers: int) -> int:
    from pocketgem.kernels.cores import default_threads

    return max(1, int(os.environ.get("OMP_NUM_THREADS", default_threads().count)) // workers)


@contextmanager
def _fewer_threads(workers: int) -> Iterator[None]:
    """Workers of one machine share its cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, _threads(workers))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _end_with_parent() -> None:
    """The pipe from whoever started this process ends when that one does, killed or not."""

    def watch() -> None:
        while os.read(0, 1024):  # not Python's own stream: that is locked while it is read, also at the end
            pass
        os._exit(1)

    Thread(target=watch, daemon=True).start()
