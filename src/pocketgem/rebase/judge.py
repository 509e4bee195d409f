"""The gate: whether an adapter on a new base still does what it did on the old one, judged by behaviour.

Two things are measured on prompts that nothing has learned from:

    kept    1 - KL(old pair || candidate) / KL(old pair || new base alone): the share of the effect that is there
    match   the share of greedy answers that are the old pair's, id by id

Neither has a limit of its own: ``kept`` is relative to a new base without any adapter, ``match`` to what an answer
drawn from the old pair itself would score (an adapter for prose has no single right answer, and is not asked for one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pocketgem.llm import LLM
from pocketgem.model.lora import LowRank, attach_, detach_
from pocketgem.rebase.capsule import Answer, Capsule
from pocketgem.rebase.divergence import Rows, divergence, rows_of
from pocketgem.rebase.record import SIDE_BY_SIDE, Prompt, greedy_answers

SMALL = 0.02  # nat a token: a base this near to the old pair leaves no effect to speak of, and no share to divide by


@dataclass(frozen=True)
class Limits:
    """What is accepted: see docs/rebase.md for how these were found. match: of the old pair's own consistency.

    same: the match from which on old weights that pass need no new ones beside them.
    """

    kept: float = 0.9
    match: float = 0.9
    same: float = 0.97


@dataclass(frozen=True)
class Marks:
    """What was measured. positions: mean KL by the answer's first, second, ... id."""

    kl: float
    kept: float
    match: float
    f1: float
    prompts: int
    positions: tuple[float, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may take the old pair's place, and why not."""

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """Something that was before the gate."""

    marks: Marks
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures candidates on one base against one capsule. alone: what that base says without any."""

    llm: LLM
    capsule: Capsule
    answers: tuple[Answer, ...]
    alone: Rows
    bare: float  # KL of the base alone
    consistency: float  # the old pair's mean probability of its own greedy answer

    @classmethod
    def of(cls, llm: LLM, capsule: Capsule, part: str = "gate") -> Judge:
        """No adapter must be on ``llm``, which keeps no pasts."""
        answers = capsule.part(part)
        alone = rows_of(llm.model, answers, capsule.tops.ids)
        bare = float(_divergences(capsule, alone).mean())
        return cls(llm, capsule, answers, alone, bare, consistency(capsule, answers))

    def measure(self, deltas: Mapping[str, LowRank] | None) -> Marks:
        """Put a candidate on, ask it, take it off. None: the base alone."""
        if deltas is None:
            return self._marks(self.alone)
        attach_(self.llm.model, deltas)
        try:
            return self._marks(rows_of(self.llm.model, self.answers, self.capsule.tops.ids))
        finally:
            detach_(self.llm.model)

    def _marks(self, rows: Rows) -> Marks:
        match, f1, prompts = self._match(rows)
        found = _divergences(self.capsule, rows)
        kl = float(found.mean())
        return Marks(kl, 1 - kl / max(self.bare, SMALL), match, f1, prompts, _by_position(self.answers, found))

    def _match(self, rows: Rows) -> tuple[float, float, int]:
        """Greedy decoding says an answer exactly when each id of it is the best one after those before it: only the
        prompts where one is not are decoded, to see what is said instead."""
        same, others, row = 0, [], 0
        for one in self.answers:
            count = len(one.said)
            if one.greedy:
                exact = rows.best[row : row + count].tolist() == list(one.said)
                same += exact
                others += [] if exact else [one]
            row += count
        scores = [token_f1(one.said, said) for one, said in zip(others, self._said(others), strict=True)]
        total = same + len(others)
        return same / total, (same + sum(scores)) / total, total

    def _said(self, answers: Sequence[Answer]) -> list[Prompt]:
        found: list[Prompt] = []
        for start in range(0, len(answers), SIDE_BY_SIDE):
            batch = answers[start : start + SIDE_BY_SIDE]
            longest = max(len(one.said) for one in batch)
            found += greedy_answers(self.llm, [one.ids[: one.answer] for one in batch], longest)
        return found

    def verdict(self, marks: Marks, limits: Limits) -> Verdict:
        """The gate itself."""
        return verdict(marks, limits, self.consistency)


def is_same(candidate: Candidate, limits: Limits, consistency: float) -> bool:
    """Whether a candidate passed, and answers so much as the old pair did that nothing better need be made."""
    return candidate.verdict.accepted and candidate.marks.match >= limits.same * consistency


def better(one: Candidate, other: Candidate) -> Candidate | None:
    """Of two that were before the gate the one that keeps more, of equals the second; None where neither passed."""
    passed = [candidate for candidate in (other, one) if candidate.verdict.accepted]
    return max(passed, key=lambda candidate: (candidate.marks.kept, candidate.marks.match), default=None)


def verdict(marks: Marks, limits: Limits, consistency: float) -> Verdict:
    """Whether both marks are what is asked for. A mark that is no number is not."""
    reasons = []
    if not marks.kept >= limits.kept:
        reasons.append(f"{marks.kept:.1%} of the effect is kept, {limits.kept:.0%} is asked for")
    if not marks.match >= (wanted := limits.match * consistency):
        reasons.append(f"{marks.match:.1%} of the answers are the old ones, {wanted:.1%} is asked for")
    return Verdict(not reasons, tuple(reasons))


def consistency(capsule: Capsule, answers: Sequence[Answer]) -> float:
    """The old pair's mean probability of its own greedy answers: what an answer drawn from it would match of them."""
    greedy = [one for one in answers if one.greedy]
    tops = capsule.tops.tuned[:, :-1].max(-1).values
    logs = [float(tops[one.row : one.row + len(one.said)].sum()) for one in greedy]
    return float(torch.tensor(logs).exp().mean())


def token_f1(wanted: Sequence[int], found: Sequence[int]) -> float:
    """Harmonic mean of the shares of ids in common, order aside."""
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / (len(wanted) + len(found)) if wanted or found else 1.0


def _divergences(capsule: Capsule, rows: Rows) -> Tensor:
    return divergence(capsule.tops.tuned[rows.numbers], rows.logs)


def _by_position(answers: Sequence[Answer], found: Tensor) -> tuple[float, ...]:
    sums: list[list[float]] = []
    values, row = found.tolist(), 0
    for one in answers:
        for position in range(len(one.said)):
            if position == len(sums):
                sums.append([])
            sums[position].append(values[row])
            row += 1
    return tuple(sum(one) / len(one) for one in sums)
