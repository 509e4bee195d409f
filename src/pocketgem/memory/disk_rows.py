"""Rows that stay in the file: read when they are asked for, ahead where that is known, the last ones kept at hand.

Reads are explicit, by position, and land in a small store that the gather takes them from. Ids are sorted and each is
read once; neighbours come in one call. Reading ahead is asked of the system (``posix_fadvise``): the disk works on all
requests at once, the bytes come to the page cache, and there is no thread to wait for, to end or to lose an error in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.memory.gather import Gather, check_rows
from pocketgem.memory.place import HOT_BYTES
from pocketgem.memory.row_file import row_file
from pocketgem.memory.shelf import Shelf

FEWEST = 64  # rows kept, however wide they are


@dataclass
class Traffic:
    """What was asked of a table and what of it came from the file, since the model was loaded."""

    asked: int = 0  # rows
    read: int = 0
    bytes: int = 0


class DiskRows:
    """Rows of ``table`` out of its file. ``hot_bytes``: memory for the rows used last."""

    def __init__(self, table: StoredTensor, gather: Gather, hot_bytes: int = HOT_BYTES) -> None:
        self._table, self._gather, self._file = table, gather, row_file(table)
        self._shelf = Shelf(min(table.shape[0], max(FEWEST, hot_bytes // self._file.size)))
        self._data = torch.empty(self._shelf.capacity * self._file.size, dtype=torch.uint8)
        self._coming: set[int] = set()  # rows that the system was asked to read ahead and nobody has taken yet
        self.traffic = Traffic()

    def rows(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """See ``RowSource``."""
        self._table.source.check_unchanged()
        check_rows(ids, self._table)
        wanted, most = ids.tolist(), self._shelf.capacity
        self.traffic.asked += len(wanted)
        parts = [self._some(wanted[at : at + most], factor) for at in range(0, max(1, len(wanted)), most)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def expect(self, ids: Sequence[int]) -> None:
        """See ``RowSource``. Of more rows than fit at hand, the first are read ahead."""
        inside = (id for id in ids[: self._shelf.capacity] if 0 <= id < self._table.shape[0])
        self._ask({id for id in inside if id not in self._shelf})

    def _some(self, ids: list[int], factor: float) -> Tensor:
        """At most as many rows as there are places."""
        places, new = self._shelf.take(ids)
        if new:
            try:
                self._read(new)
            except BaseException:
                self._shelf.forget(new)
                raise
        return self._gather(self._data, torch.tensor(places, dtype=torch.int64), factor)

    def _read(self, places: Mapping[int, int]) -> None:
        """Rows to the places they are to lie in."""
        if len(places) > 1:
            self._ask(places)  # all are on their way while the first is waited for
        self._coming -= places.keys()
        self._file.read(places, self._data)
        self._table.source.check_unchanged()  # a write that met these reads
        self.traffic.read += len(places)
        self.traffic.bytes += len(places) * self._file.size

    def _ask(self, ids: Iterable[int]) -> None:
        new = [id for id in ids if id not in self._coming]
        if len(self._coming) + len(new) > 2 * self._shelf.capacity:  # of requests that were given up
            self._coming.clear()
        self._coming.update(new)
        self._file.ask(new)
