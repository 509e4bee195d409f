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

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise PromptError(f"{name} is {str(value)[:40]!r}, expected {low} to {high}")

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
    ("seed", 0, 2**63 - 1),
)  # fmt: skip


@dataclass(frozen=True)
class TrainingPlan:
    """Which matrices get a change, by name, and how many parameters that is. ``left``: kinds that get none."""

    shapes: Mapping[str, tuple[int, int]]
    rank: int
    left: Mapping[str, int]

    @property
    def parameters(self) -> int:
        return sum(self.rank * (out + inside) for out, inside in self.shapes.values())

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many matrices of each kind are trained."""
        return Counter(name.split(".")[-1] for name in self.shapes)


def plan_training(model: Gemma, recipe: Recipe) -> TrainingPlan:
    """What of this model the recipe trains. Raises WeightsError where that is nothing, or a kind is asked for that this
    model does not have: layers that share another's keys have no k_proj and v_proj, layers whose values are their keys
    no v_proj, and that is no error while some layer has one."""
    known = {name: shape for name, shape in targets(model).items() if name.split(".")[0] not in NEVER}
    matrices = {name: shape for name, shape in known.items() if len(shape) == 2}
    chosen = {name: (shape[0], shape[1]) for name, shape in matrices.items() if name.split(".")[-1] in recipe.modules}
    absent = set(recipe.modules) - {name.split(".")[-1] for name in chosen}
    if absent or not chosen:
        there = ", ".join(sorted({name.split(".")[-1] for name in matrices}))
        raise WeightsError(f"this model has no {', '.join(sorted(absent)) or 'matrix to train'}; it has {there}")
    left = Counter(name.split(".")[-1] for name in known.keys() - chosen.keys())
    return TrainingPlan(chosen, recipe.rank, left)
