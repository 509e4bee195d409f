"""Our patches beside transformers' own, over pictures, cuts of them and extremes, in every budget.

    python -m benchmarks.pictures [--cuts 160]

Prints the largest difference of a value for each processor, and every picture where values differ by more than 1e-5 or
places or counts differ at all. The last line is JSON. Exit code 1 where there was one.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain

from tests import picture_parity
from tests.pictures import cuts, extremes, shipped

from pocketgem.media.patches import BUDGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=160)
    largest = {"gemma4": 0.0, "12B": 0.0, "gemma3": 0.0}
    compared, faults, count = 0, [], 0
    for name, picture in chain(shipped(), extremes(), cuts(parser.parse_args().cuts)):
        count += 1
        found = {("gemma4", budget): picture_parity.gemma4(picture, budget) for budget in BUDGETS}
        found |= {("12B", budget): picture_parity.unified(picture, budget) for budget in BUDGETS[::2]}
        found["gemma3", 256] = picture_parity.gemma3(picture)
        for (processor, budget), distance in found.items():
            largest[processor] = max(largest[processor], distance.values)
            compared += 1
            if not distance.is_small:
                faults.append(f"{processor} at {budget}: {name}: {distance}")
    for fault in faults:
        print(fault)
    print(json.dumps({"pictures": count, "compared": compared, "faults": len(faults), "largest": largest}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
