"""Log-probabilities as ``/v1/completions`` has them: four lists side by side, one entry a token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pocketgem.answers import TokenLogprob
from pocketgem.engine.request import Sampled
from pocketgem.text.tokenizer import StreamDecoder, Tokenizer

LOWEST = -9999.0  # JSON has no infinity; what the OpenAI API says for "never"


@dataclass
class Lists:
    """The lists of one choice, or of one chunk of it.

    tokens          texts; one that is no text by itself is written bytes:\\xNN
    token_logprobs  null for the first token of a prompt, which has no past
    top_logprobs    the best alternatives by their texts and always the token itself; null for the first as well
    text_offset     where the token begins in the text, in characters
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def extend(self, more: Lists) -> None:
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset

    def as_data(self) -> dict[str, object]:
        return dict(vars(self))


class LogprobWriter:
    """Writes the lists of one choice."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.offset = tokenizer, 0
        self._decoder: StreamDecoder = tokenizer.stream()

    def write(self, tokens: Iterable[TokenLogprob | Sampled | int]) -> Lists:
        """Entries of the next tokens. A bare id is the first of a prompt; a begin token is then no text."""
        lists = Lists()
        for token in tokens:
            id = token if isinstance(token, int) else token.id
            lists.tokens.append(self.name(id))
            lists.text_offset.append(self.offset)
            if token != self.tokenizer.bos_id:
                self.offset += len(self._decoder.push([id]))
            if isinstance(token, int):
                lists.token_logprobs.append(None)
                lists.top_logprobs.append(None)
            else:
                lists.token_logprobs.append(finite(token.logprob))
                lists.top_logprobs.append(self._top(token))
        return lists

    def name(self, id: int) -> str:
        """The token's text, or its bytes where they are only a part of a character."""
        piece = self.tokenizer.piece(id)
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _top(self, token: TokenLogprob | Sampled) -> dict[str, float]:
        """Most probable first. Of two tokens with one text the more probable stays."""
        found: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(self.name(id), finite(logprob))
        return found


def finite(logprob: float | None) -> float:
    return logprob if logprob is not None and math.isfinite(logprob) else LOWEST
