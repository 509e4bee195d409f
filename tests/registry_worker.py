"""Starts writers of a registry that go on until they are killed; each logs what it was promised.

    python -m tests.registry_worker REGISTRY SOURCE...      and on stdin, a line for each writer: NAME LOG

A writer is a fork, so that what takes long (imports) is done once; its process id is said on stdout. It adds, rolls
back and prunes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from pathlib import Path

from pocketgem.adapters.manifest import read_manifest
from pocketgem.adapters.registry import Registry


def write(registry: Registry, name: str, log: Path, sources: list[Path]) -> None:
    draw = random.Random()
    known = [(source, read_manifest(source)) for source in sources]
    with log.open("a", buffering=1) as said:
        for turn in itertools.count():
            said.write(f"{registry.add(name, *known[turn % len(known)]).identity}\n")
            if draw.random() < 0.3:
                registry.prune(keep=draw.choice((0, 1, 2)), remove=True)
            if draw.random() < 0.3 and registry.find(name).before:
                said.write(f"{registry.rollback(name).identity}\n")


def main(folder: str, *sources: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that were killed
    for line in sys.stdin:
        name, log = line.split()
        child = os.fork()
        if child == 0:
            write(Registry(Path(folder)), name, Path(log), [Path(source) for source in sources])
        print(child, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
