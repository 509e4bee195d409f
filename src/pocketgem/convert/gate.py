"""The quality gate: source and result read the same text, layer by layer from their files, and are compared.

Both are computed in float32 from what their files hold, so that what is measured is the weights' rounding and nothing
else: no kernel's, no activations'. Neither is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from pocketgem.checkpoint.card import QualityCard
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.convert.groups import Format
from pocketgem.convert.quality import Floats, Quality, compare
from pocketgem.errors import InputError
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma
from pocketgem.parts import tokenizer_of

POSITIONS = 128  # whose logits are held at once, for both: 2 x 128 MiB with 262,144 tokens
ROWS = 4  # of them compared at a time, in float64
MOST_TOKENS = 2048  # read in one step: attention holds a square of them for every head
COMPARED = "source and result from their files, in float32"
Tick = Callable[[], None]


@dataclass(frozen=True)
class Text:
    """Ids to measure over, and what they are called in a card."""

    name: str
    ids: list[int]


@dataclass(frozen=True)
class Limits:
    """What a result must keep to: divergences at most, agreement at least."""

    kl_mean: float
    kl_p99: float
    same_top1: float

    def broken(self, found: Quality) -> list[str]:
        """Every limit that is not kept, in words."""
        faults = []
        if not found.kl_mean <= self.kl_mean:  # not: >, which NaN would pass
            faults.append(f"mean divergence {found.kl_mean:.4f} is over {self.kl_mean:g}")
        if not found.kl_p99 <= self.kl_p99:
            faults.append(f"its 99 % quantile {found.kl_p99:.4f} is over {self.kl_p99:g}")
        if not found.same_top1 >= self.same_top1:
            faults.append(f"same best token at {found.same_top1:.1%}, under {self.same_top1:.0%}")
        return faults


# The gate finds what is broken, not what is coarse: these are about 1.5 to 2 times what sound rounding was measured
# at on the 270M, the smallest of the family and the most easily disturbed (docs/quantize.md). A scale gone wrong costs
# nats.
LIMITS = {
    Format.Q8_0: Limits(0.005, 0.05, 0.95),
    Format.Q6_K: Limits(0.01, 0.1, 0.93),
    Format.Q4_K: Limits(0.06, 0.5, 0.85),
    Format.Q4_0: Limits(0.7, 7.0, 0.5),
    Format.AUTO: Limits(0.05, 0.5, 0.85),
}


def limits_for(form: Format, max_kl: float | None) -> Limits:
    """The format's own limits, or those that go with another mean divergence."""
    return LIMITS[form] if max_kl is None else Limits(max_kl, 10 * max_kl, 0.0)


def calibration(checkpoint: Checkpoint, path: Path | None, tokens: int) -> Text:
    """The first ``tokens`` ids of a UTF-8 text: the given file's, or the one that comes with this package.

    Raises InputError for a text that cannot be read or is too short to tell anything.
    """
    try:
        data = (files("pocketgem.convert") / "calibration.txt" if path is None else path).read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the calibration text cannot be read as UTF-8 ({error})") from error
    ids = tokenizer_of(checkpoint).encode(text, add_bos=True)[: min(tokens, MOST_TOKENS)]
    if len(ids) < 16:
        raise InputError(f"{path}: a calibration text needs at least 16 tokens, this one has {len(ids)}")
    name = "built in" if path is None else path.name
    return Text(f"{name}, sha256 {hashlib.sha256(data).hexdigest()[:12]}", ids)


@torch.inference_mode()
def hidden_states(model: Gemma, ids: Sequence[int], tick: Tick | None = None) -> Tensor:
    """What the head is given at every position, ``[ids, hidden]``; ``tick`` is called after each layer."""
    if tick is not None:
        for layer in model.layers:
            layer.register_forward_hook(lambda *_: tick())
    step = Step.packed([model.new_cache()], [len(ids)], logits=[len(ids)])
    hidden: Tensor = model(model.embed(torch.tensor(ids)), step)
    return hidden


@torch.inference_mode()
def compared(reference: Gemma, expected: Tensor, model: Gemma, found: Tensor, ids: Sequence[int]) -> Quality:
    """Two models over one text, from their hidden states ``[ids, hidden]``.

    Rows of an embedding after the vocabulary, which one may have and the other not, are left out.
    """
    width = min(one.config.vocab_size for one in (reference, model))
    return compare(_logits(reference, expected, width), _logits(model, found, width), ids)


def _logits(model: Gemma, hidden: Tensor, width: int) -> Iterator[Floats]:
    for part in torch.split(hidden, POSITIONS):
        yield from (rows[:, :width].numpy() for rows in torch.split(model.logits(part), ROWS))


def card_of(form: Format, source: str, text: Text, found: Quality, reference: float, limits: Limits) -> QualityCard:
    """What is kept in the file of a measurement; ``reference`` is the source's own perplexity."""
    return QualityCard(
        format=str(form),
        source=source,
        compared=COMPARED,
        text=text.name,
        tokens=len(text.ids),
        kl_mean=found.kl_mean,
        kl_p99=found.kl_p99,
        kl_max=found.kl_max,
        same_top1=found.same_top1,
        perplexity=found.perplexity,
        source_perplexity=reference,
        within_limits=not limits.broken(found),
    )
