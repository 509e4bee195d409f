"""Locks on open files, between processes. They end with the descriptor, and so with a process that is killed."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, but an open file cannot be removed or renamed
    fcntl = None  # type: ignore[assignment]  # a module that is not there

HAS_LOCKS = fcntl is not None


def lock(descriptor: int, *, wait: bool = True) -> None:
    """Hold the file alone, where the system has locks.

    Raises OSError where the file system has none, and, unless it is to ``wait``, while another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
