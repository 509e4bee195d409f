"""Rebase on the real model: three adapters, three updates of their base, and what carrying them over recovers.

    python -m benchmarks.rebase FOLDER                 every cell that is not there yet, then the table
    python -m benchmarks.rebase FOLDER --one           the next one, and stop; several processes may share a folder
    python -m benchmarks.rebase FOLDER --report        results.json, the table and the picture from what is there

A cell is a JSON file in FOLDER/cells, with what it made beside it in FOLDER/made: whatever is killed goes on with the
cells that are missing. One that failed is left out until its FOLDER/cells/NAME.failed is removed. Needs the model's
file (``gemma-3-270m``) and the extras for tests and pictures.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
import traceback
from pathlib import Path

from benchmarks.rebase_cells import Cell, Lab, cells
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
    count = 0
    while any(only in cell.name and _taken(lab, cell) for cell in cells()):
        count += 1
        if one:
            break
    return count


def _taken(lab: Lab, cell: Cell) -> bool:
    """Run a cell if it is to be run and nobody else does. One that fails says why in its file, and is left alone."""
    failed = lab.cells / f"{cell.name}.failed"
    if lab.done(cell.name) or failed.exists() or not all(map(lab.done, cell.needs)):
        return False
    with (lab.cells / f"{cell.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if lab.done(cell.name):
            return False
        print(f"{time.strftime('%H:%M:%S')} {cell.name}", flush=True)
        began, cpu = time.perf_counter(), time.process_time()
        try:
            facts = cell.run(lab)
        except Exception:
            failed.write_text(traceback.format_exc())
            traceback.print_exc()
            return True
        spent = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        lab.keep(cell.name, {**facts, "seconds": spent})
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {spent['wall']:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    main()
