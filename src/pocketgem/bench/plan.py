"""What is asked for becomes rows: each has a name, the command that measures it, and how much work that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pocketgem.config import ModelConfig
from pocketgem.errors import InputError

SEQUENCE_DEPTH = 128  # prompt tokens of each of several sequences
WARM_PROMPT, WARM_STEPS = 16, 2

Kind = Literal["prefill", "decode", "sequences"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All lengths are in tokens. ``threads`` hold for every subject; every row is measured ``runs`` times."""

    prefill: tuple[int, ...] = (512, 2048)
    decode: int = 64  # steps timed one by one at every depth
    depth: tuple[int, ...] = (128, 4096)
    sequences: tuple[int, ...] = (1, 4, 10)
    runs: int = 3
    threads: int = 1

    @property
    def context(self) -> int:
        """Tokens the longest row needs. Sequences read side by side: the first writes while the last still reads."""
        ahead = max(self.sequences, default=0)
        lengths = [*self.prefill, *(depth + self.decode for depth in self.depth), WARM_PROMPT + WARM_STEPS]
        return max(*lengths, SEQUENCE_DEPTH + self.decode + ahead if ahead else 0) + 2

    def check(self, config: ModelConfig) -> None:
        """Raise InputError when the model's context is too short for a row."""
        limit = config.max_position_embeddings
        if self.context > limit:
            raise InputError(
                f"these lengths need {self.context} tokens, but the model's context holds {limit}; "
                "give shorter --prefill, --depth or --decode"
            )


@dataclass(frozen=True)
class Row:
    """One line of the report. ``size``: tokens of a prompt, or sequences side by side."""

    name: str
    kind: Kind
    size: int
    command: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0  # what it takes, all in all: for the progress bar


def rows(plan: Plan) -> tuple[Row, ...]:
    """Longer work later and many sequences last, so that peak memory can be told before and after them."""
    return (
        *(Row(f"prefill {size}", "prefill", size, {"prefill": size}, size) for size in sorted({*plan.prefill})),
        *(_decode(plan.decode, depth) for depth in sorted({*plan.depth})),
        *(_sequences(plan.decode, number) for number in sorted({*plan.sequences})),
    )


def _decode(steps: int, depth: int) -> Row:
    return Row(f"decode @{depth}", "decode", depth, {"decode": steps, "depth": depth}, depth + steps)


def _sequences(steps: int, number: int) -> Row:
    command = {"sequences": number, "decode": steps, "depth": SEQUENCE_DEPTH}
    name = f"{number} sequence{'s' if number > 1 else ''}"
    return Row(name, "sequences", number, command, number * (SEQUENCE_DEPTH + steps))
