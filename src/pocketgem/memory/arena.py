"""One heap for all threads of a process that serves for days.

glibc gives every thread an arena of its own, cut into pieces of 64 MiB. An engine's thread takes and gives back keys,
values and logits of all sizes, beside pasts that are kept for long; its arena grew to 4.8 GB where 1.3 do
(``LOG.md``). In the process's main heap the same requests stay where they were.
"""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def one_arena() -> bool:
    """Have threads that start from now on share the main heap. Returns whether this system's allocator has a say."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_ARENA_MAX, 1))
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows: no such call
        return False
