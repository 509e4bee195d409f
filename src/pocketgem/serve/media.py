"""The one decoder of strangers' pictures, sounds and videos that a server has, made when the first of them comes."""

from __future__ import annotations

import threading

from pocketgem.media.decode import Decoder


class Media:
    """Holds the decoder for as long as the server lives. ``decoder`` may be asked for from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        with self._lock:
            if self._decoder is None:
                self._decoder = Decoder()
            return self._decoder

    def close(self) -> None:
        """Ends the decoder's processes. A decoder that is asked for after that is a new one."""
        with self._lock:
            decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
