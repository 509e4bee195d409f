"""The control tokens around an answer, by what they mean, in the two families that call tools.

Inside the body of a call each of them is one stand-in: a lone surrogate, which no decoded text can contain. So a token
is never mistaken for the same characters written letter by letter, and a body is one text that expressions can search.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from pocketgem.text.tokenizer import Tokenizer


class Mark(enum.Enum):
    """What a control token means. The value is its stand-in in the body of a call."""

    DELIMITER = "\udc00"  # begins and ends a text
    CALL = "\udc01"
    CALL_END = "\udc02"
    THOUGHT = "\udc03"
    THOUGHT_END = "\udc04"
    TURN = "\udc05"
    END = ""  # of the model's turn
    SILENT = " "


_NAMES = {
    Mark.DELIMITER: ('<|"|>', "<escape>"),
    Mark.CALL: ("<|tool_call>", "<start_function_call>"),
    Mark.CALL_END: ("<tool_call|>", "<end_function_call>"),
    Mark.THOUGHT: ("<|channel>",),
    Mark.THOUGHT_END: ("<channel|>",),
    Mark.TURN: ("<|turn>", "<start_of_turn>"),
    Mark.SILENT: ("<bos>", "<pad>"),
}
STAND_INS = "\udc00-\udc05"  # for expressions


class Markers:
    """The control tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_tokens
        found = {mark: [name for name in names if name in special] for mark, names in _NAMES.items()}
        self._marks: Mapping[int, Mark] = {
            **{special[name]: mark for mark, names in found.items() for name in names},
            **dict.fromkeys(tokenizer.end_ids, Mark.END),
        }
        self._names = str.maketrans(
            {mark.value: names[0] for mark, names in found.items() if names and mark is not Mark.SILENT}
        )

    def of(self, id: int) -> Mark | None:
        """What ``id`` means; None for text."""
        return self._marks.get(id)

    def spelled(self, body: str) -> str:
        """A body with its tokens written out by name."""
        return body.translate(self._names)
