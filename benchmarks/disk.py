"""How fast a file's disk reads, past the page cache: one after another, and in pieces here and there.

python -m benchmarks.disk FILE [BYTES ...]
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TOTAL = 1 << 30  # bytes of one figure
PAGE = 4096
SIZES = (1114112, 3342336, 9924608)  # one matrix of a 26B-A4B's expert in Q4_0, one expert, three


def read_rate(path: Path, size: int, places: Iterator[int], threads: int = 4) -> float:
    """GB/s of reading ``size`` bytes at each place, TOTAL bytes in all."""
    descriptor, lock = os.open(path, os.O_RDONLY | os.O_DIRECT), threading.Lock()
    left = itertools.islice(places, TOTAL // size)

    def work() -> None:
        buffer = mmap.mmap(-1, size)
        while True:
            with lock:
                place = next(left, None)
            if place is None:
                return
            os.preadv(descriptor, [buffer], place)

    readers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return TOTAL // size * size / seconds / 1e9


def anywhere(path: Path, size: int) -> Iterator[int]:
    dice, last = random.Random(size), (path.stat().st_size - size) // PAGE
    while True:
        yield dice.randrange(last) * PAGE


def main() -> None:
    path, sizes = Path(sys.argv[1]), [int(text) for text in sys.argv[2:]] or SIZES
    block = 4 << 20
    rate = read_rate(path, block, itertools.count(0, block))
    print(json.dumps({"bytes": block, "places": "one after another", "GB_per_s": round(rate, 3)}), flush=True)
    for size in sizes:
        for threads in (1, 4):
            rate = read_rate(path, size, anywhere(path, size), threads)
            found = {"bytes": size, "places": "here and there", "threads": threads, "GB_per_s": round(rate, 3)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
