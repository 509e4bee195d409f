"""Text to ids and back. Plain text never becomes a control token, and every text comes back exactly as it went in.

How this differs from other readers of the same files, on purpose:

- A literal ▁ (U+2581) is encoded as its three bytes. SentencePiece, and so Hugging Face, take it for a space.
- Runs of more than 31 spaces follow SentencePiece, which the models were trained with: 40 spaces are a token of 31 and
  one of 9. Hugging Face's import of a GGUF merges them to 16 + 24.
- Control tokens in plain text are text (``parse_special=False``). User-defined tokens, such as runs of newlines or HTML
  tags, are whole in both modes: they are how the models were taught to read that text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, models

from pocketgem.text import vocab
from pocketgem.text.vocab import SPACE, Vocabulary, guarded
from pocketgem.text.vocab_json import from_json

# Characters that cannot go through the merges: ▁, which stands for a space there, and bytes that were not UTF-8, which
# Python carries as lone surrogates when it reads with errors="surrogateescape".
_AS_BYTES = re.compile("([▁\udc80-\udcff]+)")
_NO_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for nothing at all


class Tokenizer:
    """A vocabulary at work. Immutable, and safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Builds the encoder, in a second for a quarter of a million tokens. Raises TokenizerError for bad merges."""
        self._bpe = _encoder(vocabulary)
        self._own = replace(vocabulary, merges=tuple)  # the lists they are made of are as large as the encoder
        self._name(self._own)

    def _name(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special_ids = vocabulary.control_ids
        self._lengths = sorted({len(text) for text in vocabulary.control}, reverse=True)
        self._starts = re.compile(f"[{re.escape(''.join(sorted({text[0] for text in vocabulary.control})))}]")

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """From a ``tokenizer.json`` or the folder it lies in. Raises TokenizerError."""
        return cls(from_json(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """From the ``tokenizer.ggml.*`` keys of a GGUF file. Raises TokenizerError."""
        return cls(vocab.from_gguf(metadata))

    def renamed(self, names: Mapping[str, int]) -> Tokenizer:
        """The same with reserved tokens (``<unused7>``) called by these names.

        Names of ordinary tokens, and of ids that this vocabulary does not have, say nothing here: libraries list all
        they know. Raises TokenizerError for a control token that has another name, and for a name of another token.
        """
        other = copy(self)  # it shares the encoder, which never makes a control token
        other._name(self._vocabulary.renamed(names))
        return other

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that has a token."""
        return len(self._vocabulary.spellings)

    @property
    def bos_id(self) -> int:
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._vocabulary.eos_id

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens with which a model ends its turn."""
        return self._vocabulary.end_ids

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the vocabulary as its file has it, whatever its tokens were renamed to."""
        return self._own.fingerprint

    @property
    def special_ids(self) -> frozenset[int]:
        """The control tokens: those that only ``parse_special`` may produce."""
        return self._special_ids

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The control tokens by their text."""
        return self._vocabulary.control

    def token_id(self, text: str) -> int | None:
        """The id of the token spelt ``text`` (spaces as ▁), or None. It is not an encoding: see ``encode``."""
        return self._bpe.token_to_id(text) if text not in self.special_tokens else self.special_tokens[text]

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of ``text``. ``parse_special`` is for prompts that a template or the user wrote with control tokens.

        ``add_bos`` as in ``with_bos``. Any string is taken: bytes that came in as surrogate escapes become byte tokens,
        other lone surrogates become U+FFFD.
        """
        text = _NO_CHARACTER.sub("\ufffd", text)
        ids: list[int] = []
        for part in self.split_special(text) if parse_special else [text]:
            ids.extend(self._plain(part) if isinstance(part, str) else [part])
        return self.with_bos(ids) if add_bos else ids

    def with_bos(self, ids: Iterable[int]) -> list[int]:
        """``ids`` after the begin token, unless they start with it or the vocabulary says not to add it."""
        ids = list(ids)
        return ids if not self._vocabulary.adds_bos or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def split_special(self, text: str) -> Iterator[str | int]:
        """``text`` cut at its control tokens, leftmost and then longest first: plain parts as text, tokens as ids."""
        done = 0
        for match in self._starts.finditer(text):
            found = self._special_at(text, match.start()) if match.start() >= done else None
            if found is not None:
                if match.start() > done:
                    yield text[done : match.start()]
                yield self.special_tokens[found]
                done = match.start() + len(found)
        if done < len(text):
            yield text[done:]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError for an id out of range."""
        return b"".join(self._pieces(ids, skip_special)).decode("utf-8", "replace")

    def piece(self, id: int) -> bytes:
        """The bytes that one token stands for: a whole text, or a single byte for a byte token."""
        return self._vocabulary.piece(id)

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder for ids that arrive bit by bit."""
        return StreamDecoder(self, skip_special)

    def _pieces(self, ids: Iterable[int], skip_special: bool) -> Iterator[bytes]:
        return (self.piece(id) for id in ids if not (skip_special and id in self._special_ids))

    def _special_at(self, text: str, start: int) -> str | None:
        parts = (text[start : start + length] for length in self._lengths)
        return next((part for part in parts if part in self.special_tokens), None)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(_AS_BYTES.split(text)):  # every second part is what the pattern captured
            ids.extend(self._as_bytes(part) if index % 2 else self._merged(part))
        return ids

    def _merged(self, text: str) -> list[int]:
        ids = self._bpe.encode(text.replace(" ", SPACE), add_special_tokens=False).ids
        if self._special_ids.isdisjoint(ids):
            return ids
        # Only a vocabulary made to do harm has merges that end in a control token. Its text is still only text.
        return [b for id in ids for b in (self._as_bytes(self.piece(id).decode()) if id in self._special_ids else [id])]

    def _as_bytes(self, text: str) -> list[int]:
        return [self._vocabulary.byte_ids[byte] for byte in text.encode("utf-8", "surrogateescape")]


def _encoder(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """What turns text without control tokens, spaces as ▁, into ids."""
    ids = {text: id for id, text in enumerate(vocabulary.spellings) if text}
    merges = list(vocabulary.merges())
    model = guarded(lambda: models.BPE(vocab=ids, merges=merges, byte_fallback=True), "the vocabulary")
    encoder = tokenizers.Tokenizer(model)
    encoder.add_tokens([AddedToken(text, normalized=False, special=False) for text in vocabulary.whole])
    return encoder


class StreamDecoder:
    """Text of ids that arrive bit by bit. What it returns, joined, equals ``Tokenizer.decode`` of all the ids."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain after ``ids``; the bytes of a character that is not complete wait."""
        return self._decoder.decode(b"".join(self._tokenizer._pieces(ids, self._skip_special)))

    def finish(self) -> str:
        """U+FFFD if a character was left incomplete, else nothing. The decoder is then as new."""
        return self._decoder.decode(b"", final=True)
