"""An adapter in memory, whatever file it came from, and the checks that every reader makes of its parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.errors import WeightsError
from pocketgem.model.lora import LowRank

MOST_RANK = 4096
TEXT_PREFIX = "model."  # of a text model in transformers; "model.language_model." in one that sees and hears
_PREFIXES = ("base_model.model.", "model.", "language_model.", "model.")  # taken off in this order, each where it is


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter changes, and 64 hex digits that name its content: its weights and what scales them."""

    where: str
    identity: str
    deltas: Mapping[str, LowRank]  # by module, as ``model/lora.py`` takes them
    base: str | None  # the name of the model it was trained on, as its config says
    kind: str = "lora"  # or rslora, dora: what its config calls it; the deltas say it all
    prefix: str = TEXT_PREFIX  # where the text model stands in transformers' class of the base, as its names say
    invocation: tuple[int, ...] = ()  # an activated LoRA acts from these ids on; none: it always acts

    @property
    def nbytes(self) -> int:
        """Bytes of all values in memory."""
        return sum(delta.A.nbytes + delta.B.nbytes for delta in self.deltas.values())

    @property
    def rank(self) -> int:
        """The largest."""
        return max(delta.A.shape[-2] for delta in self.deltas.values())


def split_name(name: str) -> tuple[str, str]:
    """A path in transformers' or mlx-lm's class -> what stands before the text model's own names, and the rest."""
    rest = name
    for prefix in _PREFIXES:
        rest = rest.removeprefix(prefix)
    return name.removesuffix(rest).removeprefix("base_model.model."), rest


def prefix_of(found: set[str]) -> str:
    """The longest, in transformers' order: parts outside the text model (a head) have less of it."""
    prefix = max(found, key=len, default=TEXT_PREFIX)
    return "model.language_model." if "language_model." in prefix else TEXT_PREFIX


def grouped(
    stored: Mapping[str, StoredTensor], key: re.Pattern[str], where: str, spelt: Callable[[str], str] = str
) -> tuple[dict[str, dict[str, StoredTensor]], str]:
    """Tensors by the matrix they change, and the prefix of their names. key: matches a name as module and part.
    spelt: a module's name in the file -> ours.

    Raises WeightsError for a name that is no part of a low-rank change.
    """
    groups: dict[str, dict[str, StoredTensor]] = {}
    prefixes = set()
    for name, tensor in stored.items():
        match = key.fullmatch(name)
        if match is None:
            raise WeightsError(f"{where}: tensor {name[:200]} is no part of a low-rank change")
        prefix, module = split_name(match["module"])
        prefixes.add(prefix)
        groups.setdefault(spelt(module), {})[match["part"]] = tensor
    return groups, prefix_of(prefixes)


def checked_delta(name: str, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> LowRank:
    """The change of one matrix. Raises WeightsError where its halves do not fit or change nothing."""
    if a.ndim < 2 or b.ndim != a.ndim or a.shape[-2] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
        raise WeightsError(f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit each other")
    if not b.any() or not a.any():
        raise WeightsError(
            f"{name}: lora_{'A' if not a.any() else 'B'} is all zeros: the adapter changes nothing there"
        )
    if magnitude is not None and magnitude.shape != (b.shape[-2],):
        raise WeightsError(f"{name}: {magnitude.numel()} lengths for {b.shape[-2]} rows")
    return LowRank(a.contiguous(), b.contiguous(), scale, magnitude)


def values_of(name: str, part: str, stored: StoredTensor) -> Tensor:
    """float32. Raises WeightsError for what is no number."""
    values = stored.dense(torch.float32).clone()
    if not bool(values.isfinite().all()):
        raise WeightsError(f"{name}: {part} holds a NaN or an infinity")
    return values


def identity_of(deltas: Mapping[str, LowRank]) -> str:
    """64 hex digits of what is changed and how."""
    digest = hashlib.sha256()
    for name, delta in sorted(deltas.items()):
        digest.update(f"{name} {delta.scale!r} {list(delta.A.shape)} {list(delta.B.shape)}".encode())
        for part in (delta.A, delta.B, *(() if delta.magnitude is None else (delta.magnitude,))):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()
