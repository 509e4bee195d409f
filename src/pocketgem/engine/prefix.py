"""Pasts worth keeping, so that a prompt that begins like another does not read that beginning again.

They hang in a tree of tokens (``prefix_tree.py``). Full layers' rows can be cut anywhere; a prompt goes on from the
last position on its way through the tree where the sliding layers' rows that it sees are there, too. Those are held
for the positions that were kept, and serve whatever other position sees no more than they have.

Nothing is found by a hash: tokens are compared. A scope is a tree of its own: pasts of another adapter, or of another
caller's salt, are not there. Weights are the engine's: a store belongs to one model.

Under a budget of bytes the position that was of use the longest time ago goes first, and with it the rows that no other
needs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from pocketgem.engine.prefix_tree import Ids, Node, RowsT, held, size_of, walk
from pocketgem.engine.reach import Interval, Slide, length, without

REMEMBERED = 64  # positions that went: what a request is told where it misses one
FIRST = "first request"
NO_MEMORY = "no memory is given to kept pasts"
WHOLE = "prompt log-probabilities need the whole prompt"

RowsFrom = TypeVar("RowsFrom", covariant=True)


class PastLike(Protocol[RowsFrom]):
    """A sequence's cache, as pieces are taken of it: ``slid`` of the sliding layers, ``rows`` of the others."""

    def rows_bytes(self, count: int, /) -> int: ...
    def rows(self, first: int, stop: int, /) -> RowsFrom: ...
    def slid_bytes(self, count: int, /) -> int: ...
    def slid(self, first: int, stop: int, /) -> RowsFrom: ...
    def knows(self, first: int, stop: int, /) -> bool: ...


class Scope(NamedTuple):
    """Whose pasts: the adapter that changed the weights, and who shares with whom."""

    adapter: str | None = None
    salt: str | None = None


@dataclass(frozen=True)
class Hit(Generic[RowsT]):
    """The longest past of use: ``position`` tokens of it, in these pieces. 0: none. ``reason``: why no more, if so."""

    position: int
    rows: list[RowsT]
    slid: list[RowsT]
    reason: str | None


@dataclass(frozen=True)
class Kept(Generic[RowsT]):
    """What is kept of some ids up to the last kept position on their way, and which positions are."""

    ids: Ids
    rows: list[RowsT]
    slid: list[RowsT]
    ends: list[int]


@dataclass(frozen=True)
class _Wish(Generic[RowsT]):
    """A past that is to be kept. ``deepest``: the last node that has some of it."""

    ids: Ids
    past: PastLike[RowsT]
    deepest: Node[RowsT]
    common: int  # ids that the tree has
    missing: list[Interval]  # rows of sliding layers that it has not

    @property
    def end(self) -> int:
        return len(self.ids)

    @property
    def head_bytes(self) -> int:
        """Of all that is new but the sliding layers' rows."""
        more = self.end - self.common
        return self.past.rows_bytes(more) + self.ids.itemsize * more

    @property
    def nbytes(self) -> int:
        return self.head_bytes + self.past.slid_bytes(length(self.missing))


class PrefixStore(Generic[RowsT]):
    """Kept pasts in at most ``budget`` bytes, of a model whose layers slide so.

    Only the engine's thread uses it; others may look at the counts.
    """

    def __init__(self, budget: int, slide: Slide) -> None:
        self.budget, self.slide = budget, slide
        self.nbytes = self.tokens = 0
        self.roots: dict[Scope, Node[RowsT]] = {}
        self._clock = 0
        self._dropped: OrderedDict[bytes, tuple[Scope, int]] = OrderedDict()

    def clear(self) -> None:
        """Forget all."""
        self.roots.clear()
        self._dropped.clear()
        self.nbytes = self.tokens = 0

    # ---- finding ---------------------------------------------------------------------------------------------------

    def find(self, scope: Scope, ids: Ids) -> Hit[RowsT]:
        """The longest kept past that begins ``ids``; one id is always left to compute."""
        root = self.roots.get(scope)
        if root is None:
            return Hit(0, [], [], self._stranger(scope, ids))
        last, partial, common = walk(root, ids)
        nodes = (partial or last).way()
        position = self.slide.best(held(nodes), min(common, len(ids) - 1))
        reason = self._reason(scope, ids, common, position)
        if not position:
            return Hit(0, [], [], reason)
        self._use(nodes, position)
        rows = [node.rows for node in nodes if node.rows is not None]
        return Hit(position, rows, [node.slid for node in nodes if node.slid is not None], reason)

    def _use(self, nodes: Sequence[Node[RowsT]], position: int) -> None:
        """Whatever lends rows to a position on this way was of use: kept ones behind it that it sees, and the next."""
        self._clock += 1
        oldest = self.slide.oldest(position)
        for node in nodes:
            if oldest < node.end < position and node.kept:
                node.used = self._clock
        at = next(node for node in nodes if node.end >= position)
        if (nearest := at.nearest()) is not None:
            nearest.used = self._clock

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
        return "another adapter's past is kept" if any(walk(root, ids)[2] > known for root in others) else None

    def _lost(self, scope: Scope, ids: Ids, known: int) -> str | None:
        ends = {end for other, end in self._dropped.values() if other == scope and known < end < len(ids)}
        for end in sorted(ends, reverse=True):
            if _fingerprint(scope, ids[:end]) in self._dropped:
                return f"the past kept up to token {end} was dropped for memory"
        return None

    def kept(self, scope: Scope, ids: Ids) -> Kept[RowsT]:
        """What there is of ``ids`` up to the last kept position on their way."""
        root = self.roots.get(scope)
        nodes = [] if root is None else walk(root, ids)[0].way()
        while nodes and not nodes[-1].kept:
            nodes.pop()
        return Kept(
            ids[: nodes[-1].end if nodes else 0],
            [node.rows for node in nodes if node.rows is not None],
            [node.slid for node in nodes if node.slid is not None],
            [node.end for node in nodes if node.kept],
        )

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def keep(self, scope: Scope, ids: Ids, past: PastLike[RowsT], *, modest: bool = False) -> bool:
        """Keep the past of ``ids``, the first ones of ``past``. False where there is no room, or some of it is gone.

        modest: no position on the way to it is given up for it.
        """
        if not self.budget or not len(ids):
            return False
        root = self.roots.setdefault(scope, Node(ids[:0]))
        last, partial, common = walk(root, ids)
        nodes, end = (partial or last).way(), len(ids)
        there = held(nodes)
        if common == end and self.slide.best(there, end) == end:
            self._use(nodes, end)
            return True
        there = [(first, min(stop, common)) for first, stop in there if first < common]
        missing = without((self.slide.oldest(end), end), there)
        wish = _Wish(ids, past, partial or last, common, missing)
        fits = all(past.knows(first, stop) for first, stop in missing) and self._make_room(wish, modest)
        if fits:
            self._take(wish, last, partial)
        else:
            self._prune(wish.deepest)
        self._forget_empty()
        return fits

    def _take(self, wish: _Wish[RowsT], last: Node[RowsT], partial: Node[RowsT] | None) -> None:
        """Make the place, then copy, then hang it all up: a copy that fails leaves everything as it was."""
        place = last if partial is None else self._split(partial, wish.common)
        pieces = [(node, self._filled(node, wish)) for node in place.way()]
        if wish.common < wish.end:
            ids, first = wish.ids[wish.common :].copy(), max(wish.common, self.slide.oldest(wish.end))
            slid = wish.past.slid(first, wish.end) if first < wish.end else None
            node = Node(ids, wish.common, wish.past.rows(wish.common, wish.end), slid)
            place.hang(node)
            self._count(node, 1)
            place = node
        for node, slid in pieces:
            self.nbytes += size_of(slid) - size_of(node.slid)
            node.slid = slid
        place.kept = True
        self._use([place], wish.end)

    def _filled(self, node: Node[RowsT], wish: _Wish[RowsT]) -> RowsT | None:
        """The sliding layers' rows of a node with those that the new past needs."""
        first = max(node.start, self.slide.oldest(wish.end))
        there = node.end if node.slid is None else node.slid.first
        if first >= there:
            return node.slid
        more = wish.past.slid(first, there)
        return more if node.slid is None else more.joined([node.slid])

    def _split(self, node: Node[RowsT], at: int) -> Node[RowsT]:
        before = node.nbytes
        upper = node.split(at)
        self.nbytes += upper.nbytes + node.nbytes - before
        return upper

    # ---- making room -----------------------------------------------------------------------------------------------

    def _make_room(self, wish: _Wish[RowsT], modest: bool) -> bool:
        """Give up kept positions until there is room; what the wish needs of the way to it stays."""
        way = wish.deepest.way()
        if self._least(way, wish, modest) > self.budget:
            return False
        while self.nbytes + wish.nbytes > self.budget:
            nodes = [node for root in self.roots.values() for node in root.below() if node.kept]
            off = [node for node in nodes if node not in way]
            victims = off or ([] if modest else nodes)
            if not victims:
                return False
            self._drop(min(victims, key=lambda node: node.used), way, wish.end)
        return True

    def _least(self, way: Sequence[Node[RowsT]], wish: _Wish[RowsT], modest: bool) -> int:
        """Bytes that there will be whatever is given up: nothing is given up in vain."""
        rows = sum(node.ids.nbytes + size_of(node.rows) for node in way)
        ends = [node.end for node in way if node.kept] if modest else []
        return rows + wish.head_bytes + wish.past.slid_bytes(length(self.slide.needs([*ends, wish.end])))

    def _drop(self, node: Node[RowsT], way: Sequence[Node[RowsT]], end: int) -> None:
        """Keep a position no longer. ``end``: one that is about to be kept, at the end of ``way``."""
        self._remember(node)
        node.kept = False
        for one in reversed(node.way()):
            if one.end <= self.slide.oldest(node.end):
                break
            self._trim(one, end if one in way else None)
        self._prune(node, way)

    def _trim(self, node: Node[RowsT], end: int | None) -> None:
        """Let go of sliding layers' rows that nothing at or below a node needs, nor ``end``."""
        nearest = node.nearest()
        ends = [one for one in (end, None if nearest is None else nearest.end) if one is not None]
        first = max(node.start, self.slide.oldest(min(ends))) if ends else node.end
        if node.slid is not None and node.slid.first < first:
            slid = node.slid.piece(first, node.end) if first < node.end else None
            self.nbytes += size_of(slid) - size_of(node.slid)
            node.slid = slid

    def _prune(self, node: Node[RowsT], way: Sequence[Node[RowsT]] = ()) -> None:
        """Take away nodes that lead to no kept position, from here up."""
        while node.parent is not None and not node.kept and not node.children and node not in way:
            del node.parent.children[int(node.ids[0])]
            self._count(node, -1)
            node = node.parent

    def _forget_empty(self) -> None:
        for scope in [scope for scope, root in self.roots.items() if not root.children]:
            del self.roots[scope]

    def _remember(self, node: Node[RowsT]) -> None:
        way = node.way()
        scope = next(scope for scope, root in self.roots.items() if root is way[0].parent)
        self._dropped[_fingerprint(scope, np.concatenate([one.ids for one in way]))] = (scope, node.end)
        while len(self._dropped) > REMEMBERED:
            self._dropped.popitem(last=False)

    def _count(self, node: Node[RowsT], sign: int) -> None:
        self.nbytes += sign * node.nbytes
        self.tokens += sign * len(node.ids)


def _fingerprint(scope: Scope, ids: Ids) -> bytes:
    return hashlib.blake2b(repr(scope).encode() + ids.tobytes(), digest_size=8).digest()
