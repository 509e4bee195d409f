"""Which examples make a step: an order that follows from the seed, cut by their number or by their tokens.

Every epoch has an order of its own. A step of ``tokens`` takes examples as long as they fit: rows of a step are all
tokens of examples, one example after the other and each blind for the rest, so a full step has no padding in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pocketgem.tune.data import Example


class Batches:
    """Steps by number, the same at every asking."""

    def __init__(self, examples: Sequence[Example], batch: int, tokens: int | None, seed: int) -> None:
        self.examples, self.batch, self.tokens, self.seed = examples, batch, tokens, seed
        self._orders: dict[int, list[int]] = {}
        self._made: list[list[int]] = []  # of steps of tokens, from the first on
        self._stream = self._endless()

    def of(self, step: int) -> list[Example]:
        if self.tokens is None:
            start, count = step * self.batch, len(self.examples)
            places = [self._order(at // count)[at % count] for at in range(start, start + self.batch)]
        else:
            while len(self._made) <= step:
                self._made.append(next(self._stream))
            places = self._made[step]
        return [self.examples[place] for place in places]

    def _endless(self) -> Iterator[list[int]]:
        held: list[int] = []
        size = at = 0
        while True:
            place = self._order(at // len(self.examples))[at % len(self.examples)]
            more = len(self.examples[place].ids)
            if held and size + more > (self.tokens or 0):
                yield held
                held, size = [], 0
            held.append(place)
            size, at = size + more, at + 1

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 63))
            self._orders = {epoch: torch.randperm(len(self.examples), generator=generator).tolist()}
        return self._orders[epoch]
