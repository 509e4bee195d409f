"""Adds, points, rolls back and prunes in a registry until it is killed; says each thing that was promised.

python -m tests.registry_worker REGISTRY NAME SOURCE...
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

from pocketgem.adapters.manifest import read_manifest
from pocketgem.adapters.registry import Registry


def main(folder: str, name: str, *sources: str) -> None:
    registry, draw = Registry(Path(folder)), random.Random()
    known = [(Path(source), read_manifest(Path(source))) for source in sources]
    print("ready", flush=True)
    for turn in itertools.count():
        source, manifest = known[turn % len(known)]
        entry = registry.add(name, source, manifest)
        print(f"added {entry.identity}", flush=True)
        if draw.random() < 0.3:
            registry.prune(keep=draw.choice((0, 1, 2)), remove=True)
        if draw.random() < 0.3 and registry.find(name).before:
            print(f"added {registry.rollback(name).identity}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
