"""The thought channel of one answer: whether it may be opened, and when it is closed for the model.

Inside it everything goes but the end of the turn: an answer that ends in the middle of its thoughts is none. It is
closed, as the family writes it, with a line break and ``<channel|>``, when the budget is spent or the thought goes
round in circles.
"""

from __future__ import annotations

import codecs
from collections import deque

from pocketgem.text.loops import LoopDetector
from pocketgem.text.tokenizer import Tokenizer

OPEN, CLOSE = "<|channel>", "<channel|>"
_LABEL = b"thought\n"
_UNFINISHED = 3  # tokens over the budget, at most, that may complete a character


class Thoughts:
    """Follows the ids of an answer. ``may_open`` and ``is_open`` say where it stands, ``forced`` what must come now."""

    def __init__(self, tokenizer: Tokenizer, *, is_open: bool, allowed: bool, budget: int | None) -> None:
        """``is_open``: the prompt ends inside a thought. ``budget``: tokens of thought in all, without its label."""
        special = tokenizer.special_tokens
        self._tokenizer = tokenizer
        self.open_id, self.close_id = special.get(OPEN), special.get(CLOSE)
        self._allowed = allowed and self.open_id is not None and self.close_id is not None
        self._budget, self.spent = budget, 0
        self.is_open = is_open and self.close_id is not None
        self.closed_one = False
        self.looped = False
        self._label = b""
        self._newline = True  # whether what was thought so far ends with one
        self._closing: deque[int] = deque()
        self._loops = LoopDetector()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        if self.is_open and (not allowed or self._is_spent):
            self._close()

    @property
    def may_open(self) -> bool:
        """Whether a thought may begin here."""
        return self._allowed and not self.is_open and not self.looped and not self._is_spent

    @property
    def forced(self) -> int | None:
        """The one id that may come next, where a thought is being closed."""
        return self._closing[0] if self._closing else None

    def open(self) -> None:
        """The model opened a thought."""
        self.is_open, self._label, self._newline = True, _LABEL, True

    def leave(self) -> None:
        """The thought is over."""
        self.is_open, self.closed_one = False, True
        self._characters.reset()

    def push(self, id: int) -> None:
        """An id inside the thought."""
        if id == self.close_id:
            self._closing.clear()
            self.leave()
        elif self._closing:
            self._closing.popleft()
        else:
            self._count(id)

    def _count(self, id: int) -> None:
        piece = self._tokenizer.piece(id)
        if self._label and self._label.startswith(piece):
            self._label = self._label[len(piece) :]
            return
        self._label = b""
        self.spent += 1
        self._newline = piece.endswith(b"\n")
        self._characters.decode(piece)
        self.looped = self._loops.push(id)
        if self.looped or (self._is_spent and self._is_whole):
            self._close()

    @property
    def _is_spent(self) -> bool:
        return self._budget is not None and self.spent >= self._budget

    @property
    def _is_whole(self) -> bool:
        """Whether no character is half written."""
        return not self._characters.getstate()[0] or self.spent >= (self._budget or 0) + _UNFINISHED

    def _close(self) -> None:
        newline = [] if self._newline else self._tokenizer.encode("\n", add_bos=False)
        self._closing.extend(id for id in (*newline, self.close_id) if id is not None)
