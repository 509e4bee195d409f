"""Stop strings in a stream of text: cut at the first, and never show the beginning of one.

The first is the one that is complete first, and of those that end together the longest. A stream can know nothing
else, and so every way of cutting the same text into pieces gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketgem.errors import PromptError

MAX_STOPS = 64
MAX_LENGTH = 1024  # characters of one


class StopStrings:
    """Feed it text with ``push`` until it says stop, or ``finish`` at the end. One for each answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises PromptError for stops that are no list of non-empty texts, or too many or too long."""
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise PromptError("stop must be a list of non-empty texts")
        if len(stops) > MAX_STOPS or any(len(stop) > MAX_LENGTH for stop in stops):
            raise PromptError(f"stop takes at most {MAX_STOPS} texts of at most {MAX_LENGTH} characters")
        self._stops = tuple(stops)
        self._held = ""  # the end of the text so far, as far as it may begin a stop
        self.found: str | None = None  # the stop that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop was found; after that nothing is shown any more."""
        if not self._stops:
            return text, False
        if self.found is not None:
            return "", True
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.found, ready = self._held[start:end], self._held[:start]
        else:
            ready = self._held[: len(self._held) - self._possible()]
        self._held = self._held[len(ready) :]
        return ready, self.found is not None

    def finish(self) -> str:
        """What was held back, if the text ends without a stop."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held

    def _possible(self) -> int:
        """The length of the longest end of the held text that begins a stop."""
        return max((self._overlap(stop) for stop in self._stops), default=0)

    def _overlap(self, stop: str) -> int:
        lengths = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((length for length in lengths if self._held.endswith(stop[:length])), 0)
