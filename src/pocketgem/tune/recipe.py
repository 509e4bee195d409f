"""What is trained and how: the numbers of one run, checked, and the plan of which matrices they touch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pocketgem.errors import PromptError, WeightsError
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import targets

USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARN = ("answers", "all")
EXPERTS = "experts"  # names both stacks of every layer's routed experts
NEVER = ("lm_head",)  # read by every token; a change of it is no small file


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. Raises PromptError for a number out of range."""

    rank: int = 8
    alpha: float = 16.0
    stabilised: bool = False  # scale alpha / sqrt(rank) instead of alpha / rank
    modules: tuple[str, ...] = USUAL  # last parts of names
    learning_rate: float = 2e-4
    warmup: float = 0.05  # share of the steps
    steps: int = 100
    batch: int = 8  # examples a step
    max_length: int = 512
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 1
    dora: bool = False  # also train the lengths of the changed rows
    dropout: float = 0.0  # share of what a change sees
    learn: str = "answers"  # or "all": prompts too
    tokens: int | None = None  # a step takes examples up to so many tokens, instead of ``batch`` of them
    accumulate: int = 1  # parts of a step that run one after the other: the same step in less memory
    forgetful: bool = False  # layers keep their inputs only and are computed again for the way back
    patience: int | None = None  # stop after so many validations without a better one
    valid_every: int | None = None  # steps; None: ten times in a run

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise PromptError(f"{name} is {str(value)[:40]!r}, expected {low} to {high}")
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise PromptError(f"{name} is {str(value)[:40]!r}, expected a whole number from 1 on")
        if self.learn not in LEARN:
            raise PromptError(f"learn is {str(self.learn)[:40]!r}, expected {' or '.join(LEARN)}")
        if self.dora and self.dropout:
            raise PromptError("dropout with DoRA is not trained by this version; leave one of them out")

    @property
    def scale(self) -> float:
        return self.alpha / math.sqrt(self.rank) if self.stabilised else self.alpha / self.rank

    def rate(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0): a rise over the warm-up, then half a cosine down to nothing."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


_RANGES = (
    ("rank", 1, 1024), ("alpha", 1e-3, 1e5), ("learning_rate", 1e-9, 1.0), ("warmup", 0.0, 1.0), ("steps", 1, 10**7),
    ("batch", 1, 4096), ("max_length", 2, 131_072), ("weight_decay", 0.0, 1.0), ("clip", 1e-6, 1e6),
    ("seed", 0, 2**63 - 1), ("dropout", 0.0, 0.9), ("accumulate", 1, 4096),
)  # fmt: skip
_OPTIONAL = ("tokens", "patience", "valid_every")


@dataclass(frozen=True)
class TrainingPlan:
    """Which matrices get a change, by name, and how many parameters that is. ``left``: kinds that get none.

    Shapes are ``[out, in]``, and ``[experts, out, in]`` for a stack of experts.
    """

    shapes: Mapping[str, tuple[int, ...]]
    rank: int
    left: Mapping[str, int]
    dora: bool = False

    @property
    def parameters(self) -> int:
        return sum(self.of(shape) for shape in self.shapes.values())

    def of(self, shape: tuple[int, ...]) -> int:
        """Parameters of one matrix's change, or of a stack's."""
        *stacked, out, inside = shape
        lengths = out if self.dora and not stacked else 0
        return math.prod(stacked) * (self.rank * (out + inside)) + lengths

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many matrices of each kind are trained."""
        return Counter(kind_of(name) for name in self.shapes)


def kind_of(name: str) -> str:
    """``layers.3.mlp.up_proj`` -> ``up_proj``; stacks of experts -> ``experts.down_proj``."""
    parts = name.split(".")
    return ".".join(parts[-2:] if EXPERTS in parts else parts[-1:])


def plan_training(model: Gemma, recipe: Recipe) -> TrainingPlan:
    """What of this model the recipe trains. Raises WeightsError where that is nothing, or a kind is asked for that this
    model does not have: layers that share another's keys have no k_proj and v_proj, layers whose values are their keys
    no v_proj, and that is no error while some layer has one."""
    known = {name: shape for name, shape in targets(model).items() if name.split(".")[0] not in NEVER}
    chosen = {name: shape for name, shape in known.items() if _asked(name, shape, recipe.modules)}
    found = {EXPERTS if len(shape) > 2 else kind_of(name) for name, shape in chosen.items()}
    absent = set(recipe.modules) - found
    if absent or not chosen:
        there = ", ".join(sorted({EXPERTS if len(shape) > 2 else kind_of(name) for name, shape in known.items()}))
        raise WeightsError(f"this model has no {', '.join(sorted(absent)) or 'matrix to train'}; it has {there}")
    left = Counter(kind_of(name) for name in known.keys() - chosen.keys())
    return TrainingPlan(chosen, recipe.rank, left, recipe.dora)


def _asked(name: str, shape: tuple[int, ...], modules: tuple[str, ...]) -> bool:
    return EXPERTS in modules if len(shape) > 2 else kind_of(name) in modules
