"""Media inside a prompt: rows that stand where placeholder ids do, and the names under which their past is found.

Integers only; the rows themselves are carried, never looked into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["image", "audio", "video"]


@dataclass(frozen=True)
class Insert:
    """Rows that take the place of embeddings at positions ``start`` to ``start + count`` of a prompt.

    kind     what they show; ``usage`` counts by it
    key      32 bytes that name the rows: the medium's content, how it was prepared and by which tower
    whole    the rows see each other both ways where the model says so, so they are computed in one step
    vectors  ``[count, hidden_size]``, a tensor

    Where it does not fit its prompt, making the request raises PromptError.
    """

    start: int
    count: int
    kind: Kind
    key: bytes
    vectors: object = field(compare=False, repr=False)
    whole: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.count


def past_ids(prompt_ids: Sequence[int], inserts: Iterable[Insert]) -> npt.NDArray[np.int32]:
    """The ids under which a prompt's past is kept and found: those of media are made of what the media hold.

    They are below -1, as no token's is, and 31 bits of a hash each. The two ids about an insert, which templates write
    to open and close it, stand for it too: even a single row is known by 93 bits.
    """
    ids = np.array(prompt_ids, np.int32)
    for insert in inserts:
        first, last = max(insert.start - 1, 0), min(insert.stop + 1, len(ids))
        stream = hashlib.shake_256(insert.key).digest(4 * (insert.count + 2))
        names = np.frombuffer(stream, "<u4") % np.uint32(2**31 - 2)
        ids[first:last] = -2 - names[first - insert.start + 1 : last - insert.start + 1].astype(np.int32)
    return ids


def uncut(inserts: Sequence[Insert], start: int, count: int) -> int:
    """How many rows from ``start`` on to take instead of ``count``, so that nothing whole is cut.

    Fewer, up to where it begins; or more, up to its end, where it begins at ``start``.
    """
    for insert in inserts:
        if insert.whole and insert.start < start + count < insert.stop:
            return insert.start - start if insert.start > start else insert.stop - start
    return count


def begun(inserts: Sequence[Insert], position: int) -> int:
    """``position``, or the beginning of the whole insert that it lies within: a past cannot end there."""
    inside = (insert.start for insert in inserts if insert.whole and insert.start < position < insert.stop)
    return next(inside, position)
