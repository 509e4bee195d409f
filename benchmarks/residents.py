"""Which half-lives suit an expert cache: hit rates on simulated routing with slots for a third of the experts.

    python -m benchmarks.residents

Each row's scores are normal; an expert's spread may fall with its rank (skewed), ranks may be dealt anew (drifting),
and a row's scores may be like those of the row before (alike).
"""

from __future__ import annotations

import numpy as np

from pocketgem.memory import residents
from pocketgem.memory.residents import NOWHERE, Residents

LAYERS, EXPERTS, CHOSEN, ROWS = 6, 128, 8, 500
SLOTS = LAYERS * EXPERTS // 3
KINDS = {  # skew, rows between two deals of the ranks, likeness of neighbours
    "even": (0.0, 0, 0.0),
    "skewed": (0.5, 0, 0.0),
    "skewed, drifting": (0.5, 100, 0.0),
    "even, alike": (0.0, 0, 0.8),
    "skewed, alike": (0.3, 0, 0.7),
    "skewed, alike, drifting": (0.3, 60, 0.7),
}
CHOICES = ((0.3,), (4.0,), (8.0,), (16.0,), (64.0,), (256.0,), (4.0, 64.0), (4.0, 128.0), (8.0, 128.0))


def trace(skew: float, every: int, likeness: float) -> np.ndarray:
    """int64 [rows, layers, chosen]."""
    dice = np.random.default_rng(0)
    spread = np.arange(1, EXPERTS + 1) ** -skew
    scores = dice.standard_normal((LAYERS, EXPERTS))
    found = []
    for row in range(ROWS):
        if row == 0 or (every and row % every == 0):
            ranked = np.stack([dice.permutation(spread) for _ in range(LAYERS)])
        scores = likeness * scores + (1 - likeness**2) ** 0.5 * dice.standard_normal((LAYERS, EXPERTS))
        found.append(np.argsort(-scores * ranked)[:, :CHOSEN])
    return np.stack(found)


def hit_rate(rows: np.ndarray, half_lives: tuple[float, ...]) -> float:
    """Of the last two thirds of the rows."""
    residents.HALF_LIVES = half_lives  # type: ignore[assignment]
    held, found = Residents(LAYERS, EXPERTS, SLOTS), 0
    for number, row in enumerate(rows):
        for layer, chosen in enumerate(row):
            held.note(layer, chosen, 1)
            slots = [held.slot(layer, expert) for expert in chosen]
            held.pin(slot for slot in slots if slot != NOWHERE)
            for expert, slot in zip(chosen, slots, strict=True):
                if slot == NOWHERE:
                    taken = held.take()
                    assert taken is not None
                    held.settle(taken, layer, expert)
            held.unpin_all()
            found += sum(slot != NOWHERE for slot in slots) if number >= len(rows) // 3 else 0
    return found / (len(rows) - len(rows) // 3) / LAYERS / CHOSEN


def main() -> None:
    print("half-lives, rows:", *("+".join(f"{one:g}" for one in choice) for choice in CHOICES), sep="\t")
    for name, kind in KINDS.items():
        rows = trace(*kind)
        print(f"{name:24}", *(f"{hit_rate(rows, choice):.3f}" for choice in CHOICES), sep="\t", flush=True)


if __name__ == "__main__":
    main()
