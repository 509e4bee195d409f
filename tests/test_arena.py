"""A server's threads share one heap."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from pocketgem.memory.arena import one_arena

if sys.argv[1] == "one" and not one_arena():
    sys.exit(9)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
places = []
thread = threading.Thread(target=lambda: places.extend(libc.malloc(ctypes.c_size_t(5000)) for _ in range(100)))
thread.start()
thread.join()
with open("/proc/self/maps") as maps:
    (heap,) = [line.split()[0].split("-") for line in maps if line.rstrip().endswith("[heap]")]
print(sum(int(heap[0], 16) <= place < int(heap[1], 16) for place in places))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no arenas")
def test_threads_take_memory_from_the_main_heap() -> None:
    def inside(wish: str) -> int:
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT, wish], capture_output=True, text=True, timeout=60, check=True
        )
        return int(found.stdout)

    assert inside("usual") == 0
    assert inside("one") == 100
