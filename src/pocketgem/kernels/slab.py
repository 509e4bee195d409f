"""One large block of memory for what is made anew at every step, such as logits: 16 MiB for 16 rows of a vocabulary.

Taken from the heap between keys and values of all ages it leaves a hole when it goes, which something small fills, and
the next one is laid behind the end: a server grew from 1.3 GB to 5 (``LOG.md``). This block has a place of its own.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

LEAST, MOST = 1 << 20, 64 << 20  # bytes of what is laid into the slab; less does no harm, more is rare


class Slab:
    """Gives its block to one tensor at a time; when nobody has that any more, nor a part of it, to the next."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # one at most

    def empty(self, rows: int, cols: int) -> Tensor:
        """A float32 tensor ``[rows, cols]`` of any content, in the block where that suits and is free."""
        size = 4 * rows * cols
        if not LEAST <= size <= MOST:
            return torch.empty(rows, cols)
        block = self._free.pop() if self._free else None
        if block is None or len(block) < size:
            block = mmap.mmap(-1, size)
        values = np.frombuffer(block, np.float32, rows * cols)
        weakref.finalize(values, self._return, block).atexit = False  # the tensor's storage holds this very array
        return torch.from_numpy(values).view(rows, cols)

    def _return(self, block: mmap.mmap) -> None:
        """The largest one stays."""
        self._free = [max([block, *self._free], key=len)]
