"""Logits to one id: pure functions over one row, which know no model, no batch and no other request.

    raw logits -> repetition, presence and frequency penalties -> logit bias -> suppressed ids -> a guide's mask
               -> temperature -> top-k -> top-p -> min-p -> one draw

This is the order of transformers' ``generate``, so that its processors can be our oracle; it has no presence and
frequency penalties, and its own kind of bias comes first. Temperature keeps the order of the logits, so top-k runs
before it, and whatever follows touches k numbers instead of the whole vocabulary.

Rules up to top-k run in float32 on the logits' device and give the same tensor back when there is nothing to change;
the candidates go on in float64 on the CPU. The caller's logits are never written to.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketgem.engine.guide import Mask
from pocketgem.engine.request import Sampled, SamplingParams
from pocketgem.errors import PromptError, RunError
from pocketgem.model.ops import peaks

# For each value of a byte of a mask: infinity where the bit is set, minus infinity where it is not; lowest bit first.
_CEILINGS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), math.inf, -math.inf
)
_CEILINGS = _CEILINGS.astype(np.float32)  # [256, 8]
WIDE, GROUP = 128, 64  # times k: ids worth searching in groups, and the ids of a group
HEAD = 1024  # ids among which top-p's are looked for first
LEVELS, LEVELS_A_NAT = 512, 8  # of logits, where the mass is spread wider
ROUNDING = 1e-12  # of a sum of so many probabilities, in float64


def sample(
    logits: Tensor,
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    generator: torch.Generator | None,
    allowed: Mask | None = None,
    best: int | None = None,
) -> Sampled:
    """Choose the id that follows ``prompt_ids`` and ``output_ids``.

    ``logits`` is [vocab], any float type. Of equally probable ids greedy takes the lowest. Any other choice takes
    exactly one number from ``generator`` (see make_generator), whatever the options are; None will do for greedy only.
    ``allowed`` has a bit for each id that may be chosen, None for all; one bit alone is the choice, and draws nothing.
    ``best`` is what ``Gemma.peaks`` found, None where nobody looked.

    Raises RunError for logits that are not finite, PromptError for options that leave no id to choose or name one that
    the vocabulary does not have.
    """
    logits = logits.detach()  # a model in training is sampled too
    best = peak(logits) if best is None else best
    if params.temperature == 0 and allowed is None and _stands(params, best, len(output_ids), len(logits)):
        return report(logits, best, params.logprobs)  # whatever else is removed, the largest is still there
    scores = apply_penalties(logits.float(), params, prompt_ids=prompt_ids, output_ids=output_ids)  # [vocab]
    scores = apply_bias(scores, params)
    scores = suppress(scores, params, num_output=len(output_ids))
    if allowed is not None:
        scores = keep_allowed(scores, allowed)
    best = most_probable(scores)
    if params.temperature == 0 or (allowed is not None and int(np.bitwise_count(allowed).sum()) == 1):
        return report(logits, best, params.logprobs)
    ids, scores = candidates(scores, params)  # [n] each
    return report(logits, int(ids[draw(scores, generator)]), params.logprobs)


def make_generator(seed: int | None) -> torch.Generator:
    """A source of random numbers for one request; None seeds it from the system's entropy."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def peak(logits: Tensor) -> int:
    """The id of the largest of the logits [vocab]. Raises RunError unless all are finite."""
    if logits.dim() != 1 or not logits.numel():
        raise RunError(f"the sampler takes the logits of one position, [vocab], not {list(logits.shape)}")
    if (best := peaks(logits[None])[0]) is not None:
        return best
    id = int(logits.isfinite().logical_not().nonzero()[0])
    value = float(logits[id])
    raise RunError(f"the model's logits hold {value} at id {id}: its weights are damaged or a kernel is wrong")


def _stands(params: SamplingParams, best: int, num_output: int, vocab: int) -> bool:
    """Whether no option makes another id the most probable. Raises as ``suppress`` does."""
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    if penalties or params.logit_bias:
        return False
    return not any(best in _checked(ids, name, vocab) for name, ids in _removed(params, num_output))


def most_probable(scores: Tensor) -> int:
    """The id of the largest score, the lowest of equals. Raises when the options leave none, or push one too far."""
    # numpy's vector search takes a fifth of the time of torch's, where the numbers are in reach of it.
    id = int(scores.numpy().argmax() if scores.device.type == "cpu" else scores.argmax())
    best = float(scores[id])
    if best == -math.inf:
        raise PromptError(
            "logit_bias, suppress_ids, min_tokens and the answer's form leave no id to choose; allow at least one"
        )
    if best == math.inf:
        raise RunError(f"the penalties push the logit of id {id} beyond float32: the model's logits are too large")
    return id


def apply_penalties(
    logits: Tensor, params: SamplingParams, *, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Tensor:
    """Make ids that were already seen less probable (or more, where the option says so).

    Repetition, over prompt and output: a positive logit is divided by the penalty and a negative one multiplied, once
    however often the id was seen (CTRL, arXiv 1909.05858, with transformers' treatment of the sign). Presence and
    frequency, over the output: logit -= presence + frequency * count (OpenAI API, "Frequency and presence penalties").
    """
    if params.repetition_penalty != 1:
        seen = _index({*prompt_ids, *output_ids}, "prompt and output", logits)  # [seen]
        old = logits[seen]
        new = torch.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        logits = logits.index_copy(0, seen, new)
    if output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output_ids)
        seen = _index(counts, "output", logits)
        count = torch.tensor(list(counts.values()), device=logits.device)
        logits = logits.index_add(0, seen, -(params.presence_penalty + params.frequency_penalty * count))
    return logits


def apply_bias(logits: Tensor, params: SamplingParams) -> Tensor:
    """Add ``logit_bias`` to the ids it names; -inf removes an id."""
    if not params.logit_bias:
        return logits
    ids = _index(params.logit_bias, "logit_bias", logits)
    bias = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    return logits.index_add(0, ids, bias)


def suppress(logits: Tensor, params: SamplingParams, *, num_output: int) -> Tensor:
    """Remove ``suppress_ids``, and ``stop_ids`` while fewer than ``min_tokens`` ids are made."""
    for name, ids in _removed(params, num_output):
        logits = logits.index_fill(0, _index(ids, name, logits), -math.inf)
    return logits


def _removed(params: SamplingParams, num_output: int) -> Iterator[tuple[str, frozenset[int]]]:
    """Ids that are not chosen now, by the option that says so."""
    if params.suppress_ids:
        yield "suppress_ids", params.suppress_ids
    if params.stop_ids and num_output < params.min_tokens:
        yield "stop_ids", params.stop_ids


def keep_allowed(scores: Tensor, allowed: Mask) -> Tensor:
    """Remove the ids whose bit is not set; ids beyond the mask have none."""
    # Eight ceilings for each byte, from a table: a tenth of the time that unpacking the bits and filling takes.
    rows = np.empty((allowed.nbytes, 8), dtype=np.float32)
    np.take(_CEILINGS, allowed.view(np.uint8), axis=0, out=rows, mode="clip")
    ceilings = rows.reshape(-1)[: len(scores)]
    if len(ceilings) < len(scores):
        ceilings = np.pad(ceilings, (0, len(scores) - len(ceilings)), constant_values=-math.inf)
    return torch.minimum(scores, torch.from_numpy(ceilings).to(scores.device))


def candidates(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The ids that may be drawn and their logits at the temperature, [n] each, float64, on the CPU."""
    if params.top_k is None:
        ids = torch.arange(len(scores))
    else:
        kept = keep_top_k(scores, params.top_k)
        ids, scores = kept.cpu(), scores[kept]
    scores = apply_temperature(scores.cpu().double(), params.temperature)
    if params.top_p < 1:
        kept = keep_top_p(scores, params.top_p)
        ids, scores = ids[kept], scores[kept]
    if params.min_p > 0:
        kept = keep_min_p(scores, params.min_p)
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """``logits / temperature``, shifted so that the largest is 0.

    Softmax does not see the shift, and without it a tiny temperature would give inf - inf.
    """
    return (logits - logits.max()) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Indices, ascending, of the ``k`` largest logits and all equal to the k-th: no order of ties decides the set."""
    if k >= len(logits):
        return torch.arange(len(logits), device=logits.device)
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64) and len(logits) >= WIDE * k:
        return torch.from_numpy(_largest(logits.numpy(), k))
    return (logits >= logits.topk(k).values[-1]).nonzero().squeeze(1)


def _largest(values: npt.NDArray[np.floating[Any]], k: int) -> npt.NDArray[np.int64]:
    """``keep_top_k`` in a seventh of the time: a vocabulary is searched once, and only groups with large values again.

    Of groups that share no id, the k-th largest maximum is at most the k-th largest value: k values reach it.
    """
    height = min(GROUP, len(values) // (4 * k))
    width = len(values) // height
    groups = values[: height * width].reshape(height, width)  # a group is a column
    maxima = groups.max(0)
    bound = np.partition(maxima, width - k)[width - k]
    columns = np.flatnonzero(maxima >= bound)
    rows, hits = np.nonzero(groups[:, columns] >= bound)
    rest = np.arange(height * width, len(values))
    ids = np.sort(np.concatenate((rows * width + columns[hits], rest)))
    found = values[ids]
    kept: npt.NDArray[np.int64] = ids[found >= np.partition(found, len(found) - k)[len(found) - k]]
    return kept


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Indices, ascending, of the fewest most probable ids whose mass reaches ``p``: one at the least (nucleus, arXiv
    1904.09751).

    ``logits`` is [n] on the CPU. Of equally probable ids at the edge the lowest stay.
    """
    probabilities = logits.softmax(0)  # [n]
    head = keep_top_k(probabilities, HEAD)
    if len(head) == len(logits) or float(probabilities[head].sum()) >= p + ROUNDING:
        return head[_nucleus(probabilities[head], p)]
    if p >= 1:  # whether the last ids are needed is for rounding to say, and sums of levels round otherwise
        return _nucleus(probabilities, p)
    return torch.from_numpy(_wide_nucleus(logits.numpy(), probabilities.numpy(), p))


def _nucleus(probabilities: Tensor, p: float) -> Tensor:
    # Values alone, and by numpy: its vector sort takes a whole vocabulary in a tenth of the time of torch's.
    ordered = torch.from_numpy(np.sort(probabilities.numpy())).flip(0)
    before = ordered.cumsum(0) - ordered  # the mass of those more probable
    count = max(1, int((before < p).sum()))
    least = ordered[count - 1]
    kept = probabilities > least
    edge = (probabilities == least).nonzero().squeeze(1)
    kept[edge[: count - int(kept.sum())]] = True
    return kept.nonzero().squeeze(1)


def _wide_nucleus(
    logits: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], p: float
) -> npt.NDArray[np.int64]:
    """``keep_top_p`` without a sort of everything: of levels of like logits, only the one at the edge is sorted."""
    depths = np.minimum((logits.max() - logits) * LEVELS_A_NAT, LEVELS - 1).astype(np.int64)  # [n]
    reached = np.bincount(depths, weights=probabilities, minlength=LEVELS).cumsum()  # [levels]
    edge = min(int(np.searchsorted(reached, p)), LEVELS - 1)
    above = float(reached[edge - 1]) if edge else 0.0
    kept = depths < edge
    there = np.flatnonzero(depths == edge)
    kept[there[_nucleus(torch.from_numpy(probabilities[there]), p - above).numpy()]] = True
    return np.flatnonzero(kept)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Indices, ascending, of the ids at least ``min_p`` times as probable as the most probable (arXiv 2407.01082)."""
    relative = (logits - logits.max()).exp()  # [n], 1 for the most probable
    return (relative >= min_p).nonzero().squeeze(1)


def draw(logits: Tensor, generator: torch.Generator | None) -> int:
    """An index, with the probability that softmax gives it.

    Inverse transform: one uniform number looks up the running sum; torch.multinomial would draw one for every id.
    """
    if generator is None:
        raise RunError("sampling above temperature 0 needs a generator: make one for each request with make_generator")
    mass = logits.softmax(0).cumsum(0)  # [n]
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    # The first whose running sum lies beyond: never an id of mass 0. There is one: a float64 below 1, times the mass,
    # rounds to less than the mass.
    return int(torch.searchsorted(mass, uniform * float(mass[-1]), right=True))


def log_probabilities(logits: Tensor) -> Tensor:
    """Natural log-probabilities of the model's own distribution, [..., vocab] -> [..., vocab] float32.

    Its own is the one before penalties, bias, suppression and temperature: what it thought, not what was asked of it.
    """
    return logits.float().log_softmax(-1)


def report(logits: Tensor, id: int, logprobs: int | None) -> Sampled:
    """The chosen id with what was asked about it: its own log-probability, and the ``logprobs`` most probable ids."""
    if logprobs is None:
        return Sampled(id, None, ())
    return describe(log_probabilities(logits), id, logprobs)


def describe(logprob: Tensor, id: int, count: int) -> Sampled:
    """An id with its own of the log-probabilities [vocab], and those of the ``count`` most probable ids."""
    own = float(logprob[id])
    if count == 0:
        return Sampled(id, own, ())
    if count == 1:  # a search instead of a sort: this is asked for every id of long prompts
        best = int(logprob.argmax() if logprob.device.type != "cpu" else logprob.numpy().argmax())
        return Sampled(id, own, ((best, float(logprob[best])),))
    kept = keep_top_k(logprob, count)
    values, order = logprob[kept].sort(descending=True, stable=True)
    top = zip(kept[order].tolist(), values.tolist(), strict=True)
    return Sampled(id, own, tuple(top)[:count])


def _index(ids: Collection[int], name: str, logits: Tensor) -> Tensor:
    """The ids as an index into ``logits``. Raises PromptError for one outside the vocabulary."""
    return torch.tensor(list(_checked(ids, name, len(logits))), dtype=torch.int64, device=logits.device)


def _checked(ids: Collection[int], name: str, vocab: int) -> Collection[int]:
    for id in ids:
        if not 0 <= id < vocab:  # a negative one would count from the end, in silence
            raise PromptError(f"{name}: id {id} is not in the vocabulary, whose ids go from 0 to {vocab - 1}")
    return ids
