"""Recording a capsule: prompts are answered by base + adapter, then both are asked what they thought of each id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.engine.request import FinishReason, SamplingParams
from pocketgem.errors import InputError, RunError
from pocketgem.llm import LLM
from pocketgem.model.lora import LowRank, attach_, detach_
from pocketgem.rebase.capsule import LEAST_PROMPTS, MOST_ANSWERS, About, Answer, Capsule, Tops
from pocketgem.rebase.divergence import rows_of, tops_of

SIDE_BY_SIDE = 16  # requests that are answered together
Watch = Callable[[str, int, int], None]  # what is going on, steps done, steps in all
Prompt = tuple[int, ...]  # ids; of an answer too


@dataclass(frozen=True)
class Wishes:
    """top: ids kept of each distribution. samples: answers drawn beside the greedy one. max_tokens: of an answer."""

    top: int = 32
    samples: int = 1
    max_tokens: int = 64
    temperature: float = 1.0
    seed: int = 1


def record(llm: LLM, adapter: Adapter, prompts: Sequence[Prompt], wishes: Wishes, watch: Watch) -> Capsule:
    """Answer ``prompts`` with the adapter on, and record. ``llm`` must keep no pasts; no adapter is on it after.

    Raises InputError for too few prompts, RunError where nothing is answered.
    """
    if len(prompts) < LEAST_PROMPTS:
        raise InputError(f"{len(prompts)} prompts; a capsule needs at least {LEAST_PROMPTS}, and 100 are better")
    about = about_of(Base(llm.checkpoint, llm.tokenizer), adapter.identity, adapter.deltas)
    attach_(llm.model, adapter.deltas)
    try:
        answers = _answered(llm, prompts, wishes, watch)
        watch("probabilities", 0, 2)
        ids, tuned = tops_of(llm.model, answers, min(wishes.top, llm.model.config.vocab_size - 1))
    finally:
        detach_(llm.model)
    watch("probabilities", 1, 2)
    base = rows_of(llm.model, answers, ids).logs
    watch("probabilities", 2, 2)
    return Capsule(about, tuple(answers), Tops(ids, tuned, base))


def about_of(base: Base, identity: str, deltas: Mapping[str, LowRank]) -> About:
    """What ties a capsule to its adapter and base. Raises WeightsError for an adapter of another model."""
    return About(identity, base_hash(base, deltas), base.name, base.tokenizer or "", base.checkpoint.config.vocab_size)


def base_hash(base: Base, deltas: Mapping[str, LowRank]) -> str:
    """64 hex digits of all of a base's weights, in the parts in which an adapter's manifest knows them."""
    digest = hashlib.sha256(base.rest(deltas).encode())
    for module in sorted(deltas):
        digest.update(base.sha256(module).encode())
    return digest.hexdigest()


def _answered(llm: LLM, prompts: Sequence[Prompt], wishes: Wishes, watch: Watch) -> list[Answer]:
    """Each prompt's greedy answer, and those sampled ones that differ from what is there already."""
    found: list[Answer] = []
    row = 0
    for at, (number, ids, drawn) in enumerate(_drawn(llm, prompts, wishes)):
        watch("answers", at + 1, len(prompts))
        for rank, answer in enumerate(dict.fromkeys(drawn)):
            if answer:
                found.append(Answer(number, (*ids, *answer), len(ids), rank == 0, row))
                row += len(answer)
    if not found:
        raise RunError("the model with the adapter answers nothing to these prompts")
    return found


def _drawn(llm: LLM, prompts: Sequence[Prompt], wishes: Wishes) -> Iterator[tuple[int, Prompt, list[Prompt]]]:
    """Numbers, prompts, and the answers to each: the greedy one first."""
    for start in range(0, len(prompts), SIDE_BY_SIDE):
        batch = prompts[start : start + SIDE_BY_SIDE]
        rounds = [greedy_answers(llm, batch, wishes.max_tokens)]
        for sample in range(wishes.samples):
            first = wishes.seed * 1_000_003 + sample * MOST_ANSWERS + start
            params = _params(llm, wishes.max_tokens, wishes.temperature)
            rounds.append(said(llm, batch, [replace(params, seed=first + at) for at in range(len(batch))]))
        for at, ids in enumerate(batch):
            yield start + at, ids, [one[at] for one in rounds]


def greedy_answers(llm: LLM, prompts: Sequence[Prompt], max_tokens: int) -> list[Prompt]:
    """What greedy decoding says, with the id that ends it where one does."""
    return said(llm, prompts, [_params(llm, max_tokens, 0.0)] * len(prompts))


def said(llm: LLM, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[Prompt]:
    """Answers side by side, each prompt by options of its own: the same prompt twice is answered twice."""
    requests = [llm.request(list(ids), params=one) for ids, one in zip(prompts, params, strict=True)]
    runs = [llm.flights.start(request) for request in requests]
    try:
        sampled = [[output.sampled for output in llm.flights.outputs(run)] for run in runs]
        return [tuple(one.id for one in some if one is not None) for some in sampled]
    finally:
        for run in runs:
            llm.flights.end(run, FinishReason.ABORT)


def _params(llm: LLM, max_tokens: int, temperature: float) -> SamplingParams:
    stops = SamplingParams.from_generation_config(llm.defaults).stop_ids | llm.tokenizer.end_ids
    return SamplingParams(temperature=temperature, stop_ids=stops, max_tokens=max_tokens)
