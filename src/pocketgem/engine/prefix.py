"""Pasts worth keeping, so that a prompt that begins like another does not read that beginning again.

A tree of tokens: a node holds a run of ids with the full-attention layers' rows for them, so that pasts share what
they have in common; at the end of a node may hang a window, all that the sliding layers know there. A prompt goes on
from the deepest window on its way through the tree. While nothing has slid out of it, it serves any earlier position:
windows further up that it can stand for are given up, so that a talk shorter than the window is held once, not once
for every turn.

Nothing is found by a hash: tokens are compared. A scope is a tree of its own: pasts of another adapter, or of another
caller's salt, are not there. Weights are the engine's: a store belongs to one model.

Under a budget of bytes the window that was of use the longest time ago goes first, and rows that lead to no window go
with it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
REMEMBERED = 64  # windows that went: what a request is told where it misses one
FIRST = "first request"
NO_MEMORY = "no memory is given to kept pasts"
WHOLE = "prompt log-probabilities need the whole prompt"


class RowsLike(Protocol):
    """Rows of the full layers for a run of ids."""

    @property
    def nbytes(self) -> int: ...
    def cut(self, at: int, /) -> tuple[Self, Self]: ...


class WindowLike(Protocol):
    """What sliding layers know at ``end``."""

    @property
    def end(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def serves(self, position: int, /) -> bool: ...


RowsT = TypeVar("RowsT", bound=RowsLike)
WindowT = TypeVar("WindowT", bound=WindowLike)
RowsFrom = TypeVar("RowsFrom", covariant=True)
WindowFrom = TypeVar("WindowFrom", covariant=True)


class PastLike(Protocol[RowsFrom, WindowFrom]):
    """A sequence's cache, as ``model/past.py`` takes pieces of it."""

    def rows_bytes(self, count: int, /) -> int: ...
    def rows(self, start: int, stop: int, /) -> RowsFrom: ...
    def window_bytes(self, end: int, /) -> int: ...
    def window(self, end: int, /) -> WindowFrom | None: ...


class Scope(NamedTuple):
    """Whose pasts: the adapter that changed the weights, and who shares with whom."""

    adapter: str | None = None
    salt: str | None = None


@dataclass(eq=False)
class Node(Generic[RowsT, WindowT]):
    """A run of ids after its parent's. The root of a scope has none."""

    ids: Ids
    rows: RowsT | None
    parent: Node[RowsT, WindowT] | None
    children: dict[int, Node[RowsT, WindowT]] = field(default_factory=dict)
    window: WindowT | None = None
    used: int = 0  # when the window was of use last

    def way(self) -> list[Node[RowsT, WindowT]]:
        """From below the root to here."""
        node, found = self, list[Node[RowsT, WindowT]]()
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def below(self) -> Iterator[Node[RowsT, WindowT]]:
        """This node and all under it."""
        todo = [self]
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node


@dataclass(frozen=True)
class Hit(Generic[RowsT, WindowT]):
    """The longest past of use: ``position`` tokens of it, in these pieces. 0: none. ``reason``: why no more, if so."""

    position: int
    rows: list[RowsT]
    window: WindowT | None
    reason: str | None


class PrefixStore(Generic[RowsT, WindowT]):
    """Kept pasts in at most ``budget`` bytes. Only the engine's thread uses it; others may look at the counts."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = self.tokens = 0
        self.roots: dict[Scope, Node[RowsT, WindowT]] = {}
        self._clock = 0
        self._dropped: OrderedDict[bytes, tuple[Scope, int]] = OrderedDict()

    def clear(self) -> None:
        """Forget all."""
        self.roots.clear()
        self._dropped.clear()
        self.nbytes = self.tokens = 0

    # ---- finding ---------------------------------------------------------------------------------------------------

    def find(self, scope: Scope, ids: Ids) -> Hit[RowsT, WindowT]:
        """The longest kept past that begins ``ids``; one id is always left to compute."""
        root = self.roots.get(scope)
        if root is None:
            return Hit(0, [], None, self._stranger(scope, ids))
        last, partial, common = _walk(root, ids)
        position, found = self._best(last, partial, min(common, len(ids) - 1))
        reason = self._reason(scope, ids, common, position)
        if found is None:
            return Hit(0, [], None, reason)
        found.used = self._tick()
        pieces = [*last.way(), *([] if partial is None else [partial])]
        return Hit(position, [node.rows for node in pieces if node.rows is not None], found.window, reason)

    def _best(
        self, last: Node[RowsT, WindowT], partial: Node[RowsT, WindowT] | None, limit: int
    ) -> tuple[int, Node[RowsT, WindowT] | None]:
        """The deepest position up to ``limit`` that a window serves, on the way or, where nothing slid, beyond."""
        beyond = [partial] if partial is not None else last.children.values()
        nodes = [*last.way(), *(node for child in beyond for node in child.below())]
        best, found = 0, None
        for node in nodes:
            if node.window is not None:
                position = min(node.window.end, limit)
                if position > best and node.window.serves(position):
                    best, found = position, node
        return best, found

    def _stranger(self, scope: Scope, ids: Ids) -> str | None:
        if len(ids) < 2:
            return None
        if not self.budget:
            return NO_MEMORY
        return self._elsewhere(scope, ids, 0) or self._lost(scope, ids, 0) or FIRST

    def _reason(self, scope: Scope, ids: Ids, common: int, position: int) -> str | None:
        """Why no more than ``position`` ids are of use, of which ``common`` are known; None when there are no more."""
        if position >= len(ids) - 1:
            return None
        told = self._elsewhere(scope, ids, max(common, position)) or self._lost(scope, ids, position)
        if told is not None:
            return told
        nearest = f"; the nearest window kept is at token {position}" if common > position else ""
        if common < len(ids) - 1:
            return f"what is kept differs from this prompt at token {common}{nearest}"
        return f"the window at token {common} is no longer kept{nearest}"

    def _elsewhere(self, scope: Scope, ids: Ids, known: int) -> str | None:
        """Whether another adapter's past would have gone on. Never of another salt: that is nobody else's business."""
        others = (root for other, root in self.roots.items() if other.salt == scope.salt and other != scope)
        return "another adapter's past is kept" if any(_walk(root, ids)[2] > known for root in others) else None

    def _lost(self, scope: Scope, ids: Ids, known: int) -> str | None:
        ends = {end for other, end in self._dropped.values() if other == scope and known < end < len(ids)}
        for end in sorted(ends, reverse=True):
            if _fingerprint(scope, ids[:end]) in self._dropped:
                return f"the past kept up to token {end} was dropped for memory"
        return None

    def way(self, scope: Scope, ids: Ids) -> tuple[Ids, list[RowsT], list[WindowT]]:
        """What is kept of ``ids`` up to the last window on their way: (its ids, rows, windows)."""
        root = self.roots.get(scope)
        if root is None:
            return ids[:0], [], []
        last, _, _ = _walk(root, ids)
        while last.parent is not None and last.window is None:
            last = last.parent
        nodes = last.way()
        rows = [node.rows for node in nodes if node.rows is not None]
        return ids[: _length(last)], rows, [node.window for node in nodes if node.window is not None]

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def keep(self, scope: Scope, ids: Ids, past: PastLike[RowsT, WindowT], *, modest: bool = False) -> bool:
        """Keep the past of ``ids``, the first ones of ``past``. False where there is no room, or its window is gone.

        modest: no window on the way to it is given up for it.
        """
        if not self.budget or not len(ids):
            return False
        root = self.roots.setdefault(scope, Node(ids[:0], None, None))
        last, partial, common = _walk(root, ids)
        reached, standing = self._best(last, partial, common)
        if standing is not None and reached == len(ids):
            standing.used = self._tick()
            return True
        more = len(ids) - common
        needed = past.rows_bytes(more) + past.window_bytes(len(ids)) + ids.itemsize * more
        deepest = last if partial is None else partial
        window = past.window(len(ids)) if self._make_room(needed, deepest, modest) else None
        if window is None:
            self._prune(deepest)
            self._forget_empty()
            return False
        last = last if partial is None else self._split(partial, common - _length(last))
        self._hang(last, ids[common:], past, common, window)
        self._forget_empty()
        return True

    def _hang(
        self, last: Node[RowsT, WindowT], ids: Ids, past: PastLike[RowsT, WindowT], start: int, window: WindowT
    ) -> None:
        node = last
        if len(ids):
            node = Node(ids.copy(), past.rows(start, start + len(ids)), last)
            last.children[int(ids[0])] = node
            self._count(node, 1)
        node.window, node.used = window, self._tick()
        self.nbytes += window.nbytes
        self._supersede(node.way()[:-1], window)

    def _supersede(self, way: list[Node[RowsT, WindowT]], window: WindowT) -> None:
        """Give up the windows on the way to one that can stand for them."""
        for node in way:
            if node.window is not None and window.serves(node.window.end):
                self.nbytes -= node.window.nbytes
                node.window = None

    def _split(self, node: Node[RowsT, WindowT], at: int) -> Node[RowsT, WindowT]:
        """Cut a node in two; returns the upper one, which is new."""
        assert node.rows is not None and node.parent is not None  # noqa: PT018 - only a root has none
        head, tail = node.rows.cut(at)
        upper = Node(node.ids[:at].copy(), head, node.parent, {int(node.ids[at]): node})
        node.parent.children[int(node.ids[0])] = upper
        node.ids, node.rows, node.parent = node.ids[at:].copy(), tail, upper
        return upper

    # ---- making room -----------------------------------------------------------------------------------------------

    def _make_room(self, needed: int, deepest: Node[RowsT, WindowT], modest: bool) -> bool:
        """Give up windows until ``needed`` bytes are free; the way to ``deepest`` stays."""
        way = set(deepest.way())
        if self._fixed(way, modest) + needed > self.budget:
            return False
        while self.nbytes + needed > self.budget:
            nodes = [node for root in self.roots.values() for node in root.below() if node.window is not None]
            off = [node for node in nodes if node not in way]
            victims = off or ([] if modest else nodes)
            if not victims:
                return False
            self._drop(min(victims, key=lambda node: node.used), way)
        return True

    def _fixed(self, way: set[Node[RowsT, WindowT]], modest: bool) -> int:
        """Bytes that stay whatever is given up: nothing is given up in vain."""
        rows = sum(_bytes(node) for node in way)
        windows = sum(node.window.nbytes for node in way if node.window is not None) if modest else 0
        return rows + windows

    def _drop(self, node: Node[RowsT, WindowT], way: set[Node[RowsT, WindowT]]) -> None:
        assert node.window is not None  # callers choose among those that have one
        self._remember(node)
        self.nbytes -= node.window.nbytes
        node.window = None
        self._prune(node, way)

    def _prune(self, node: Node[RowsT, WindowT], way: set[Node[RowsT, WindowT]] | None = None) -> None:
        """Take away nodes that lead to no window, from here up."""
        while node.parent is not None and node.window is None and not node.children and node not in (way or ()):
            del node.parent.children[int(node.ids[0])]
            self._count(node, -1)
            node = node.parent

    def _forget_empty(self) -> None:
        for scope in [scope for scope, root in self.roots.items() if not root.children]:
            del self.roots[scope]

    def _remember(self, node: Node[RowsT, WindowT]) -> None:
        ids = np.concatenate([one.ids for one in node.way()])
        self._dropped[_fingerprint(self._scope_of(node), ids)] = (self._scope_of(node), len(ids))
        while len(self._dropped) > REMEMBERED:
            self._dropped.popitem(last=False)

    def _scope_of(self, node: Node[RowsT, WindowT]) -> Scope:
        root = node.way()[0].parent
        return next(scope for scope, one in self.roots.items() if one is root)

    def _count(self, node: Node[RowsT, WindowT], sign: int) -> None:
        self.nbytes += sign * _bytes(node)
        self.tokens += sign * len(node.ids)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _walk(root: Node[RowsT, WindowT], ids: Ids) -> tuple[Node[RowsT, WindowT], Node[RowsT, WindowT] | None, int]:
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


def _length(node: Node[RowsT, WindowT]) -> int:
    return sum(len(one.ids) for one in node.way())


def _bytes(node: Node[RowsT, WindowT]) -> int:
    return node.ids.nbytes + (0 if node.rows is None else node.rows.nbytes)


def _fingerprint(scope: Scope, ids: Ids) -> bytes:
    return hashlib.blake2b(repr(scope).encode() + ids.tobytes(), digest_size=8).digest()
