"""What a server has for strangers' pictures, sounds and videos: one decoder, and two threads that prepare requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pocketgem.media.decode import Decoder

THREADS = 2  # more would hold more pixels at once, and take the cores from answers that are being made
T = TypeVar("T")


class Media:
    """Holds the decoder for as long as the server lives. ``decoder`` may be asked for from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None
        self._pool = ThreadPoolExecutor(THREADS, "pocketgem-media")

    @property
    def decoder(self) -> Decoder:
        with self._lock:
            if self._decoder is None:
                self._decoder = Decoder()
            return self._decoder

    async def prepare(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Do something with media on a thread of their own. ``work`` is given a question: whether to go on.

        Where the caller is cancelled, what waits is never begun, and what runs hears no when it asks.
        """
        left = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, lambda: not left.is_set())
        finally:
            left.set()

    def close(self) -> None:
        """Ends the decoder's processes, and takes no more work. A decoder that is asked for after that is a new one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
