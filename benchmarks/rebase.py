"""Rebase on the real model: three adapters, three updates of their base, and what carrying them over recovers.

    python -m benchmarks.rebase FOLDER                 every cell that is not there yet, then the table
    python -m benchmarks.rebase FOLDER --one           the next one, and stop; several processes may share a folder
    python -m benchmarks.rebase FOLDER --report        results.json, the table and the picture from what is there

A cell is a JSON file in FOLDER/cells, with what it made beside it in FOLDER/made: whatever is killed goes on with the
cells that are missing. Needs the model's file (``gemma-3-270m``) and the extras for tests and pictures.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
import time
from pathlib import Path

from benchmarks.rebase_cells import Lab, cells
from benchmarks.rebase_report import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--one", action="store_true", help="run the next cell, and stop")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--list", action="store_true", help="show the cells, and stop")
    parser.add_argument("--report", action="store_true", help="only the table")
    arguments = parser.parse_args()
    lab = Lab(arguments.folder)
    if arguments.list:
        for cell in cells():
            print(cell.name, "done" if lab.done(cell.name) else "", "needs", ", ".join(cell.needs) or "nothing")
        return
    if not arguments.report:
        ran = run(lab, arguments.only, one=arguments.one)
        if arguments.one:
            sys.exit(0 if ran else 3)
    report(lab)


def run(lab: Lab, only: str, *, one: bool) -> int:
    """Run what can be run; cells that another process holds are left to it. Returns how many were."""
    count, again = 0, True
    while again:
        again = False
        for cell in cells():
            ready = all(map(lab.done, cell.needs)) and only in cell.name
            if lab.done(cell.name) or not ready:
                continue
            with (lab.cells / f"{cell.name}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                if lab.done(cell.name):
                    continue
                print(f"{time.strftime('%H:%M:%S')} {cell.name}", flush=True)
                began, cpu = time.perf_counter(), time.process_time()
                facts = cell.run(lab)
                spent = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
                lab.keep(cell.name, {**facts, "seconds": spent})
                print(f"{time.strftime('%H:%M:%S')} {cell.name} done: {json.dumps(facts)[:300]}", flush=True)
            count, again = count + 1, True
            if one:
                return count
            break
    return count


if __name__ == "__main__":
    main()
