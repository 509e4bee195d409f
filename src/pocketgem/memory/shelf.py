"""Which rows lie in which places of a small store, the row longest unused making room. Integers only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Shelf:
    """``capacity`` places, numbered from 0. What lies in them is the caller's."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._places: OrderedDict[int, int] = OrderedDict()  # row -> place, the longest unused first
        self._free = list(range(capacity - 1, -1, -1))  # low places first: memory is touched as it is needed

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def take(self, rows: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """The place of each of at most ``capacity`` rows; and those that are new, with theirs, for the caller to fill.

        No row of the call loses its place to another of it.
        """
        found, new, places = [], dict[int, int](), self._places
        for row in rows:
            place = places.get(row)
            if place is None:
                place = new[row] = places[row] = self._room()
            else:
                places.move_to_end(row)
            found.append(place)
        return found, new

    def forget(self, rows: Iterable[int]) -> None:
        """Give up the places of these rows, which could not be filled."""
        for row in rows:
            place = self._places.pop(row, None)
            if place is not None:
                self._free.append(place)

    def _room(self) -> int:
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]
