"""A process gives up what decoding does not need: files, network, other processes, memory without end. For good.

Limits hold wherever Python has ``resource``. On Linux on x86-64 and ARM64 the kernel also refuses every system call
that is not on a short list (seccomp): no file can be opened, no socket made, nothing started. What holds is tried, not
assumed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable

CPU_SECONDS = 3600  # of a process's whole life, for one that nobody ends
FILES = 16

# Numbers of system calls (x86-64, ARM64): memory, pipes that are open, time, ends. Facts of Linux's interface.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "poll": (7, None), "ppoll": (271, 73),
    "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "sched_yield": (24, 124), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "gettimeofday": (96, 169), "setitimer": (38, 103),
    "getpid": (39, 172), "gettid": (186, 178), "tgkill": (234, 131), "futex": (202, 98), "getrandom": (318, 278),
    "sched_getaffinity": (204, 123), "getrusage": (98, 165), "restart_syscall": (219, 128), "exit": (60, 93),
    "exit_group": (231, 94), "rseq": (334, 293), "set_robust_list": (273, 99),
}  # fmt: skip
# machine -> the kernel's number for it, which column of CALLS, the number of the call seccomp(2)
MACHINES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}

_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # refuse: the call fails with EPERM
_NO_NEW_PRIVILEGES, _FILTER, _ALL_THREADS = 38, 1, 1


def confine(address_space: int) -> list[str]:
    """What holds from now on, in words. ``address_space``: bytes more than are mapped now."""
    held = _limits(address_space)
    if sys.platform == "linux":
        held += _privileges() + _calls(platform.machine())
    return held


def _limits(address_space: int) -> list[str]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    wanted = {"CORE": 0, "FSIZE": 0, "NOFILE": FILES, "NPROC": 0, "CPU": CPU_SECONDS, "AS": _mapped() + address_space}
    held = []
    for name, value in wanted.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, ValueError, OSError):
            continue  # a system without this one
        held.append(f"limit {name}")
    return held


def _mapped() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 1 << 30


def _privileges() -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    return ["no new privileges"] if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 else []


def _calls(machine: str) -> list[str]:
    if machine not in MACHINES or struct.calcsize("P") != 8:
        return []
    architecture, column, seccomp = MACHINES[machine]
    program = _program(architecture, [numbers[column] for numbers in CALLS.values()])
    libc = ctypes.CDLL(None, use_errno=True)
    filters = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(filters)))
    if libc.syscall(seccomp, _FILTER, _ALL_THREADS, head) != 0:
        return []
    return ["no files", "no network"] if _refused() else []


def _program(architecture: int, allowed: list[int | None]) -> bytes:
    """Berkeley packet filter: another machine's calls kill, calls on the list pass, others fail with EPERM."""
    numbers = [number for number in allowed if number is not None]
    steps = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _refused() -> bool:
    """Whether a file and a socket are really out of reach."""
    return not (_works(lambda: os.close(os.open(os.devnull, os.O_RDONLY))) or _works(lambda: socket.socket().close()))


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except PermissionError:
        return False
    return True
