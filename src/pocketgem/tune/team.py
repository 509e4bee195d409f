"""The workers of one run as each of them sees the others: by torch alone, or by Accelerate where that started them.

Who starts them is no matter here: ``pocketgem tune --workers``, torchrun, ``accelerate launch`` or Ray Train leave a
place and a number in the environment, or a group that is connected already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pocketgem.errors import InputError, RunError

MEETING = "POCKETGEM_WORKERS_MEET"  # a file; in the environment of workers that we start
PATIENCE = 180.0  # seconds for the others to come
LOOK = 0.5  # seconds between looks at whether they live
LOOPBACK = "GLOO_SOCKET_IFNAME"


class Team(Protocol):
    """``rank``: which worker this is, of ``size``. ``wants_shards``: whoever started it asks for a base in shards."""

    rank: int
    size: int
    wants_shards: bool

    def precision(self) -> AbstractContextManager[Any]:
        """What a loss is computed under."""

    def backward(self, loss: Tensor) -> None: ...

    def sum(self, values: Tensor) -> Tensor:
        """Of all workers' values. Every worker must call it as often. Raises RunError where one is gone."""


class TorchTeam:
    """The group that torch.distributed has connected."""

    wants_shards = False

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def precision(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, values: Tensor) -> Tensor:
        """See ``Team.sum``."""
        with _gone():
            dist.all_reduce(values)
        return values


class AccelerateTeam:
    """Accelerate's, which decides devices, precision and shards by what ``accelerate config`` was told."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self.wants_shards = str(accelerator.distributed_type).endswith("FSDP")
        if accelerator.mixed_precision not in ("no", "bf16"):
            raise InputError(f"mixed precision {accelerator.mixed_precision} is not trained in; choose bf16 or no")

    def precision(self) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = self.accelerator.autocast()
        return found

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def sum(self, values: Tensor) -> Tensor:
        """See ``Team.sum``."""
        with _gone():
            summed: Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise RunError(f"another worker is gone; start the run again and it goes on ({first})") from error


@dataclass(frozen=True)
class Meeting:
    """Where workers of one machine find each other: a file. check: raises when one of them will not come."""

    path: Path
    rank: int
    size: int
    check: Callable[[], None] = lambda: None


@contextmanager
def joined(meeting: Meeting | None = None) -> Iterator[Team | None]:
    """The team that this process belongs to, by ``meeting`` or by how it was started; None for one that is alone.

    Raises RunError when the others do not come.
    """
    if meeting is None and (path := os.environ.get(MEETING)):
        meeting = Meeting(Path(path), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if meeting is None and dist.is_initialized():  # by Ray Train, which also ends it
        yield TorchTeam()
    elif meeting is None and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
    else:
        try:
            yield _by_environment() if meeting is None else _by_file(meeting)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _by_environment() -> Team:
    """torchrun's way, and that of ``accelerate launch``, which says more."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        from accelerate import Accelerator

        return AccelerateTeam(Accelerator())
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group(_backend())
    return TorchTeam()


def _by_file(meeting: Meeting) -> Team:
    store = dist.FileStore(str(meeting.path), meeting.size)  # type: ignore[attr-defined]  # a name of theirs in C++
    store.set(f"here {meeting.rank}", "yes")
    until = time.monotonic() + PATIENCE
    while not store.check([f"here {rank}" for rank in range(meeting.size)]):
        meeting.check()
        if time.monotonic() > until:
            raise RunError(f"not all of {meeting.size} workers came within {PATIENCE:.0f} seconds")
        time.sleep(LOOK)
    if torch.cuda.is_available():
        torch.cuda.set_device(meeting.rank % torch.cuda.device_count())
    with _loopback():
        dist.init_process_group(
            _backend(), store=store, rank=meeting.rank, world_size=meeting.size, timeout=timedelta(minutes=30)
        )
    return TorchTeam()


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def _loopback() -> Iterator[None]:
    """Workers of one machine listen to that machine only."""
    name = next((name for _, name in _interfaces() if name in ("lo", "lo0")), None)
    if name is None or LOOPBACK in os.environ:
        yield
        return
    os.environ[LOOPBACK] = name
    try:
        yield
    finally:
        del os.environ[LOOPBACK]


def _interfaces() -> list[tuple[int, str]]:
    import socket

    return socket.if_nameindex() if hasattr(socket, "if_nameindex") else []
