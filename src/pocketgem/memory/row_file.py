"""Rows of a table out of its file, by position: in one compiled call where there is one, else a call for each run."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import ModuleType

from torch import Tensor

from pocketgem import kernels
from pocketgem.checkpoint.tensor import StoredTensor

LONGEST = 512  # rows of one call; the system takes a thousand pieces


class RowFile:
    """The file of a table [rows, width], read a run of neighbouring rows at a time."""

    def __init__(self, table: StoredTensor) -> None:
        self.source, self.start, self.size = table.source, table.start, table.nbytes // table.shape[0]

    def read(self, places: Mapping[int, int], target: Tensor) -> None:
        """Rows to the places of ``target`` (uint8, a row's bytes each) that they are to lie in. Raises CheckpointError
        if the file was cut or cannot be read."""
        view = target.numpy().data
        for run in neighbours(places):
            parts = [view[places[id] * self.size : (places[id] + 1) * self.size] for id in run]
            self.source.read_into_each(parts, self.start + run[0] * self.size)

    def ask(self, ids: Collection[int]) -> None:
        """Have the system read these rows ahead, all at once; returns without them, and never fails."""
        for run in neighbours(ids):
            self.source.read_soon(self.start + run[0] * self.size, len(run) * self.size)


class CompiledRowFile(RowFile):
    """The same in one call for all rows."""

    def __init__(self, table: StoredTensor, native: ModuleType) -> None:
        super().__init__(table)
        self._native = native
        self._where = (self.source.descriptor, self.start, self.size)

    def read(self, places: Mapping[int, int], target: Tensor) -> None:
        """See ``RowFile``."""
        ids = array("q", sorted(places))
        spots = array("q", map(places.__getitem__, ids))
        addresses = (ids.buffer_info()[0], spots.buffer_info()[0], len(ids), target.data_ptr())
        with self.source.reading():
            whole = self._native.read_rows(*self._where, *addresses)
        if whole != len(ids):
            raise self.source.cut_short()

    def ask(self, ids: Collection[int]) -> None:
        """See ``RowFile``."""
        ordered = array("q", sorted(ids))
        self._native.ask_rows(*self._where, ordered.buffer_info()[0], len(ordered))


def row_file(table: StoredTensor) -> RowFile:
    """The best reader that this install has for a table's rows."""
    native = compiled()
    return RowFile(table) if native is None else CompiledRowFile(table, native)


def compiled() -> ModuleType | None:
    """The compiled calls; None where there are no kernels, or on systems for which these are not written."""
    return kernels.native if hasattr(kernels.native, "read_rows") else None


def neighbours(ids: Iterable[int]) -> Iterator[list[int]]:
    """Different ids in ascending order, cut where one is missing, and where a run gets too long for one call."""
    run: list[int] = []
    for id in sorted(ids):
        if run and (id != run[-1] + 1 or len(run) == LONGEST):
            yield run
            run = []
        run.append(id)
    if run:
        yield run
