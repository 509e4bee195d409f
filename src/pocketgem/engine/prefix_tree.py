"""The tree that kept pasts hang in: runs of tokens with the rows of their keys and values.

A node has the full layers' rows of its whole run, and the sliding layers' rows of the end of it, as far as a position
at or below it that is kept needs them. Whatever is needed of a run is its end: who looks back from further down sees
less of it. So pasts share what they have in common, in sliding layers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pocketgem.engine.reach import Interval, merged

Ids = npt.NDArray[np.int32]


class RowsLike(Protocol):
    """Rows of some layers at positions in a row."""

    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def piece(self, first: int, stop: int, /) -> Self: ...
    def joined(self, others: Sequence[Self], /) -> Self: ...


RowsT = TypeVar("RowsT", bound=RowsLike)


@dataclass(eq=False)
class Node(Generic[RowsT]):
    """A run of ids after its parent's, from position ``start`` on. The root of a scope has none, and no parent.

    kept: whether a prompt can go on from its end. used: when that was of use last.
    """

    ids: Ids
    start: int = 0
    rows: RowsT | None = None
    slid: RowsT | None = None
    parent: Node[RowsT] | None = None
    children: dict[int, Node[RowsT]] = field(default_factory=dict)
    kept: bool = False
    used: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + size_of(self.rows) + size_of(self.slid)

    def way(self) -> list[Node[RowsT]]:
        """From below the root to here."""
        node, found = self, list[Node[RowsT]]()
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def below(self) -> Iterator[Node[RowsT]]:
        """This node and all under it."""
        todo = [self]
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node

    def nearest(self) -> Node[RowsT] | None:
        """Of the kept ends at or below this node the first."""
        return min((node for node in self.below() if node.kept), key=lambda node: node.end, default=None)

    def hang(self, child: Node[RowsT]) -> None:
        child.parent = self
        self.children[int(child.ids[0])] = child

    def split(self, at: int) -> Node[RowsT]:
        """Cut the run in two at a position within it; returns the upper one, which is new."""
        assert self.rows is not None  # only a root has none
        assert self.parent is not None
        count = at - self.start
        rows = self.rows.piece(self.start, at), self.rows.piece(at, self.end)
        slid = _cut(self.slid, at)
        upper = Node(self.ids[:count].copy(), self.start, rows[0], slid[0])
        self.parent.hang(upper)
        self.ids, self.start, self.rows, self.slid = self.ids[count:].copy(), at, rows[1], slid[1]
        upper.hang(self)
        return upper


def walk(root: Node[RowsT], ids: Ids) -> tuple[Node[RowsT], Node[RowsT] | None, int]:
    """(the last node that ``ids`` pass whole, the one they enter after it and leave before its end, ids in common)."""
    node, at = root, 0
    while at < len(ids) and (child := node.children.get(int(ids[at]))) is not None:
        count = min(len(child.ids), len(ids) - at)
        differs = np.flatnonzero(child.ids[:count] != ids[at : at + count])
        same = int(differs[0]) if len(differs) else count
        at += same
        if same < len(child.ids):
            return node, child, at
        node = child
    return node, None, at


def held(nodes: Iterable[Node[RowsT]]) -> list[Interval]:
    """Where these nodes, each the parent of the next, have the sliding layers' rows."""
    pieces = (node.slid for node in nodes if node.slid is not None)
    return merged((piece.first, piece.first + piece.count) for piece in pieces)


def size_of(rows: RowsLike | None) -> int:
    return 0 if rows is None else rows.nbytes


def _cut(rows: RowsT | None, at: int) -> tuple[RowsT | None, RowsT | None]:
    if rows is None or rows.first >= at:
        return None, rows
    return rows.piece(rows.first, at), rows.piece(at, rows.first + rows.count)
