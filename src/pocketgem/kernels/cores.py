"""How many threads pay: one for each physical performance core that this process may really use.

A second thread on a core shares its multipliers, and a slow core makes all others wait where work is shared evenly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pocketgem.kernels.system import System, this_system, whole

# A core counts as an efficiency core below these shares of the best one's. Arm's middle cores have about 0.8 of the
# capacity, small ones 0.3; favoured cores of one kind differ by less than a tenth in clock, dense ones by a third.
SMALL_CAPACITY, SMALL_CLOCK = 0.5, 0.75
MAX_DEPTH = 64  # control groups inside each other
_CPU = re.compile(r"cpu(\d{1,5})")


@dataclass(frozen=True)
class Cores:
    """Counts of cores; None where the system does not tell. ``usable`` is what the threads are counted by."""

    logical: int
    physical: int | None
    performance: int | None
    efficiency: int | None
    allowed: int | None  # logical processors this process may use
    quota: float | None  # processors' worth of time that the container grants
    usable: int  # physical performance cores this process may use; of any kind if there are none
    counted: str  # what ``usable`` counts


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads, and why."""

    count: int
    reason: str


def default_threads(system: System | None = None) -> ThreadChoice:
    """One thread for each usable core, within what the container grants; at least one."""
    cores = find_cores(system or this_system())
    if cores.quota is not None and cores.quota < cores.usable:
        return ThreadChoice(max(1, int(cores.quota)), f"the container grants the time of {cores.quota:g} processors")
    return ThreadChoice(max(1, cores.usable), f"one for each of {cores.usable} {cores.counted}")


def find_cores(system: System) -> Cores:
    """Look at this computer. Never fails: what is not told is None."""
    if system.name == "Linux":
        return _linux(system)
    if system.name == "Darwin":
        return _macos(system)
    # Elsewhere the Python library tells only logical processors; on x86 two of them usually are one core.
    paired = system.machine.lower() in ("amd64", "x86_64") and system.logical > 1
    usable = system.logical // 2 if paired else system.logical
    counted = "pairs of logical processors" if paired else "processors"
    return Cores(system.logical, None, None, None, None, None, usable, counted)


def _macos(system: System) -> Cores:
    logical, physical = system.entry("hw.logicalcpu") or system.logical, system.entry("hw.physicalcpu")
    fast, small = system.entry("hw.perflevel0.physicalcpu"), system.entry("hw.perflevel1.physicalcpu")
    counted = "performance cores" if small else "cores"
    return Cores(logical, physical, fast, small, None, None, fast or physical or logical, counted)


def _linux(system: System) -> Cores:
    cores = {cpu: _siblings(system, cpu) for cpu in _processors(system)}
    physical = {siblings for siblings in cores.values() if siblings}
    small = _efficiency(system, cores)
    slow = {siblings for cpu, siblings in cores.items() if cpu in small}
    allowed = system.affinity()
    usable, counted = _usable(cores, small, allowed)
    return Cores(
        logical=len(cores) or system.logical,
        physical=len(physical) or None,
        performance=len(physical) - len(slow) if small else None,
        efficiency=len(slow) if small else None,
        allowed=None if allowed is None else len(allowed),
        quota=_quota(system),
        usable=usable or (len(allowed) if allowed else system.logical),
        counted=counted,
    )


def _processors(system: System) -> list[int]:
    """Logical processors that are switched on and described."""
    try:
        names = [path.name for path in (system.root / "sys/devices/system/cpu").iterdir()]
    except OSError:
        return []
    online = system.processors("sys/devices/system/cpu/online")
    found = (int(match[1]) for name in names if (match := _CPU.fullmatch(name)))
    return sorted(cpu for cpu in found if not online or cpu in online)


def _siblings(system: System, cpu: int) -> frozenset[int]:
    """The logical processors of one core; itself alone where that is not told."""
    folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
    told = system.processors(f"{folder}/core_cpus_list") or system.processors(f"{folder}/thread_siblings_list")
    return told if cpu in told else frozenset({cpu})


def _efficiency(system: System, cores: Mapping[int, object]) -> frozenset[int]:
    """Logical processors that are efficiency cores, by the first of three sources that knows both kinds."""
    fast, small = system.processors("sys/devices/cpu_core/cpus"), system.processors("sys/devices/cpu_atom/cpus")
    if fast and small:
        return small - fast
    for name, share in (("cpu_capacity", SMALL_CAPACITY), ("cpufreq/cpuinfo_max_freq", SMALL_CLOCK)):
        values = {cpu: system.number(f"sys/devices/system/cpu/cpu{cpu}/{name}") for cpu in cores}
        told = {cpu: value for cpu, value in values.items() if value}
        found = frozenset(cpu for cpu, value in told.items() if value < share * max(told.values()))
        if found:
            return found
    return frozenset()


def _usable(
    cores: Mapping[int, frozenset[int]], small: frozenset[int], allowed: frozenset[int] | None
) -> tuple[int, str]:
    """How many cores to count, and what they are: the fast ones this process may use, else those it may use."""
    mine = {cpu: siblings for cpu, siblings in cores.items() if allowed is None or cpu in allowed}
    fast = {siblings for cpu, siblings in mine.items() if cpu not in small}
    kind = "physical performance cores" if small and fast else "physical cores"
    limit = "" if len(mine) == len(cores) else " that this process may use"
    return len(fast or {*mine.values()}), kind + limit


# ---- containers ----------------------------------------------------------------------------------------------------


def _quota(system: System) -> float | None:
    """The smallest limit on processor time in the control groups around this process, in processors."""
    return min(_limits(system), default=None)


def _limits(system: System) -> Iterator[float]:
    for line in system.text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for group in _around("sys/fs/cgroup", path):
                quota, _, period = system.text(f"{group}/cpu.max").partition(" ")
                yield from _share(whole(quota), whole(period))
        elif "cpu" in controllers.split(","):
            for group in _around(f"sys/fs/cgroup/{controllers}", path):
                quota_us, period_us = (system.number(f"{group}/cpu.cfs_{name}_us") for name in ("quota", "period"))
                yield from _share(quota_us, period_us)


def _around(mount: str, path: str) -> Iterator[str]:
    """A control group's folder and those around it. Inside a container only the mount itself may be there."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")][:MAX_DEPTH]
    for depth in range(len(parts), -1, -1):
        yield "/".join((mount, *parts[:depth]))


def _share(quota: int | None, period: int | None) -> Iterator[float]:
    """``max`` and -1, which mean no limit, are no numbers here."""
    if quota and period:
        yield quota / period
