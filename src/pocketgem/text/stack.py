"""Work that goes down by recursion, with room for it whatever thread asks: some have half a megabyte of stack."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

STACK = 64 << 20  # bytes, taken as they are used: a level of a schema takes eight thousand, and there are two thousand
_one_at_a_time = threading.Lock()  # the size for new threads is the process's, and is put back

T = TypeVar("T")


def with_deep_stack(work: Callable[[], T]) -> T:
    """``work()``, in a thread of its own. What it raises is raised here."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with _one_at_a_time:
        usual = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
