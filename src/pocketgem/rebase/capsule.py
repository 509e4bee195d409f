"""A capsule: what a base with an adapter answers to some prompts, in a few megabytes, for when that base is gone.

    ids         the prompts and answers, one after the other
    answers     [answers, 4]: which prompt it answers, ids in all, ids before the answer, whether it is the greedy one
    top         [rows, k]: the most probable ids of base + adapter before each id of an answer
    tuned       [rows, k + 1]: their log-probabilities, and that of all other ids together
    base        [rows, k + 1]: the same ids' and the same rest's under the base alone

A safetensors file whose metadata holds one JSON text. What comes out of ``load`` was checked: it is somebody's file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor

from pocketgem.checkpoint.durable import write_file
from pocketgem.checkpoint.safetensors import SafetensorsFile
from pocketgem.config.fields import Fields
from pocketgem.errors import FormatError

FORMAT, VERSION = "pocketgem capsule", 1
FILE = "capsule.safetensors"  # beside an adapter's files
MOST_BYTES = 256 << 20
MOST_TOP, MOST_ANSWERS, MOST_IDS = 1024, 1 << 16, 1 << 24
LEAST_PROMPTS = 8  # fewer cannot be divided
_KEY = "capsule"
_TYPES = {"ids": "I32", "answers": "I32", "top": "I32", "tuned": "F16", "base": "F16"}


@dataclass(frozen=True)
class About:
    """Whose answers these are. Hashes are 64 hex digits.

    adapter    identity of the adapter's values          base_name  for people
    base       hash of all the base's matrices           tokenizer  hash of the vocabulary that the ids are of
    vocabulary how many ids there are
    """

    adapter: str
    base: str
    base_name: str
    tokenizer: str
    vocabulary: int


@dataclass(frozen=True)
class Answer:
    """``ids``, of which those from ``answer`` on were said; row ``row`` of the tables is before the first of these."""

    prompt: int
    ids: tuple[int, ...]
    answer: int
    greedy: bool
    row: int

    @property
    def said(self) -> tuple[int, ...]:
        return self.ids[self.answer :]

    @property
    def rows(self) -> range:
        return range(self.row, self.row + len(self.said))


@dataclass(frozen=True, eq=False)
class Tops:
    """Distributions, cut to their most probable ids and one bucket for all others. float32 but for ``ids``."""

    ids: Tensor  # [rows, k] int64
    tuned: Tensor  # [rows, k + 1], natural logarithms
    base: Tensor  # [rows, k + 1]

    def at(self, rows: Sequence[int] | Tensor) -> Tops:
        """Of some rows only."""
        where = torch.as_tensor(rows, dtype=torch.int64)
        return Tops(self.ids[where], self.tuned[where], self.base[where])


@dataclass(frozen=True, eq=False)
class Capsule:
    """Answers with what stood behind each of their ids."""

    about: About
    answers: tuple[Answer, ...]
    tops: Tops

    @cached_property
    def digest(self) -> str:
        """64 hex digits of all of it."""
        found = hashlib.sha256(json.dumps(asdict(self.about), sort_keys=True).encode())
        for name, tensor in sorted(_tensors(self).items()):
            found.update(f"{name} {list(tensor.shape)}\n".encode())
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def part(self, name: str) -> tuple[Answer, ...]:
        """``learn``, ``watch`` or ``gate``: five, one and two of every eight prompts. The gate's are learned from by
        nobody, the watch's tell when to stop."""
        wanted = {"learn": (0, 1, 2, 4, 6), "watch": (5,), "gate": (3, 7)}[name]
        return tuple(one for one in self.answers if one.prompt % 8 in wanted)


def save_capsule(path: Path, capsule: Capsule) -> int:
    """Write it, whole or not at all; returns the bytes. Raises CheckpointError, RunError."""
    about = {"format": FORMAT, "version": VERSION, "digest": capsule.digest, **asdict(capsule.about)}
    content = as_safetensors(_tensors(capsule), metadata={_KEY: json.dumps(about)})
    write_file(path, content)
    return len(content)


def _tensors(capsule: Capsule) -> dict[str, Tensor]:
    ids = [id for one in capsule.answers for id in one.ids]
    answers = [(one.prompt, len(one.ids), one.answer, int(one.greedy)) for one in capsule.answers]
    return {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "answers": torch.tensor(answers, dtype=torch.int32),
        "top": capsule.tops.ids.to(torch.int32).contiguous(),
        "tuned": capsule.tops.tuned.to(torch.float16).contiguous(),
        "base": capsule.tops.base.to(torch.float16).contiguous(),
    }


# ---- read, and checked -----------------------------------------------------------------------------------------------


def load_capsule(path: Path) -> Capsule:
    """Raises CheckpointError for a file that is missing, FormatError for one that is no whole capsule."""
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes, a capsule has at most {MOST_BYTES}")
    file = SafetensorsFile(path)
    if {name: entry.dtype for name, entry in file.entries.items()} != _TYPES:
        raise FormatError(f"{path}: is no capsule: it does not hold {', '.join(_TYPES)}")
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in _TYPES}
        text = (opened.metadata() or {}).get(_KEY, "")
    fields = _header(text, str(path))
    about = _about(fields)
    tops = _tops(tensors, about.vocabulary, str(path))
    capsule = Capsule(about, _answers(tensors, about.vocabulary, len(tops.ids), str(path)), tops)
    if capsule.digest != fields.str("digest"):
        raise FormatError(f"{path}: the capsule's content is not what its header says: it was damaged or changed")
    return capsule


def _header(text: str, where: str) -> Fields:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{where}: is no capsule: its header says nothing of one")
    fields = Fields(content, where)
    if (version := fields.int("version")) != VERSION:
        raise FormatError(f"{where}: a capsule of version {version}; this version of pocketgem reads {VERSION}")
    return fields


def _about(fields: Fields) -> About:
    return About(
        adapter=fields.str("adapter"),
        base=fields.str("base"),
        base_name=fields.str("base_name"),
        tokenizer=fields.str("tokenizer"),
        vocabulary=fields.int("vocabulary"),
    )


def _tops(tensors: dict[str, Tensor], vocabulary: int, where: str) -> Tops:
    top, tuned, base = (tensors[name] for name in ("top", "tuned", "base"))
    fits = top.ndim == 2 and 1 <= top.shape[1] <= MOST_TOP and tuned.shape == base.shape
    if not fits or tuned.shape != (top.shape[0], top.shape[1] + 1):
        raise FormatError(f"{where}: top {list(top.shape)}, tuned {list(tuned.shape)}, base {list(base.shape)}: no fit")
    if not _within(top, vocabulary):
        raise FormatError(f"{where}: an id is not of the vocabulary of {vocabulary}")
    found = Tops(top.long(), tuned.float(), base.float())
    for name, logs in (("tuned", found.tuned), ("base", found.base)):
        if not bool(logs.isfinite().all()) or not bool(((logs.exp().sum(-1) - 1).abs() < 0.02).all()):
            raise FormatError(f"{where}: {name} holds rows that are no probabilities")
    return found


def _answers(tensors: dict[str, Tensor], vocabulary: int, rows: int, where: str) -> tuple[Answer, ...]:
    ids, table = tensors["ids"], tensors["answers"]
    if table.ndim != 2 or table.shape[1] != 4 or ids.ndim != 1 or len(table) > MOST_ANSWERS or len(ids) > MOST_IDS:
        raise FormatError(f"{where}: answers {list(table.shape)} and ids {list(ids.shape)} are no capsule's")
    if not _within(ids, vocabulary):
        raise FormatError(f"{where}: an id is not of the vocabulary of {vocabulary}")
    found: list[Answer] = []
    start, row, numbers = 0, 0, ids.tolist()
    for prompt, length, answer, greedy in table.tolist():
        if not 0 <= prompt < MOST_ANSWERS or not 0 < answer < length or greedy not in (0, 1):
            raise FormatError(f"{where}: answer {len(found)} has {answer} of {length} ids before it")
        found.append(Answer(prompt, tuple(numbers[start : start + length]), answer, bool(greedy), row))
        start, row = start + length, row + length - answer
    if start != len(numbers) or row != rows:
        raise FormatError(f"{where}: answers of {start} ids and {row} rows, there are {len(numbers)} and {rows}")
    if len({one.prompt for one in found}) < LEAST_PROMPTS:
        raise FormatError(
            f"{where}: answers to fewer than {LEAST_PROMPTS} prompts, too few to learn from and to judge by"
        )
    return tuple(found)


def _within(ids: Tensor, vocabulary: int) -> bool:
    return bool(((ids >= 0) & (ids < vocabulary)).all())
