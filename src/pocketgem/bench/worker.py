"""Our own worker: one LLM, driven through its engine so that one step advances every sequence.

python -m pocketgem.bench.worker '{"model": ..., "threads": 2, "context": 4352, "vocabulary": 262144, ...}'
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import torch

import pocketgem
from pocketgem import kernels
from pocketgem.bench.protocol import main
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.llm import LLM
from pocketgem.memory.experts import ExpertUse


class Ours:
    """A loaded LLM whose engine forgets every finished request."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.engine = llm, llm.engine
        self.engine.prefixes.budget = 0  # every prompt is read whole
        self._numbers = count()
        self._costs: dict[str, float] = {}

    def facts(self) -> dict[str, object]:
        return {
            "version": pocketgem.__version__,
            "torch": torch.__version__,
            "dtype": str(self.llm.model.dtype).removeprefix("torch."),
            "kernels": kernels.status.reason,
        }

    def prefill(self, prompt: list[int]) -> float:
        before, began = self.llm.expert_use, time.perf_counter()
        self._submit([prompt])
        self._read_prompts(1)
        seconds = time.perf_counter() - began
        self._note(before, len(prompt))
        self._drop()
        return seconds

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self.engine.scheduler.max_running = max(self.engine.scheduler.max_running, len(prompts))
        self._submit(prompts)
        self._read_prompts(len(prompts))
        seconds, before = [], self.llm.expert_use
        for _ in range(steps):
            began = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - began)
        self._note(before, steps * len(prompts))
        self._drop()
        return seconds

    def costs(self) -> dict[str, float]:
        """Of the last command, what experts under a budget cost; empty without one."""
        return self._costs

    def _note(self, before: ExpertUse | None, tokens: int) -> None:
        now = self.llm.expert_use
        if before is None or now is None:
            return
        use = now - before
        self._costs = {
            "hit_rate": use.hit_rate or 0.0,
            "bytes_per_token": use.bytes_read / tokens,
            "wait_s_per_token": use.wait_seconds / tokens,
        }

    def _submit(self, prompts: list[list[int]]) -> None:
        """Without stop ids: random weights may write one at any time."""
        self._sequences = [
            self.engine.submit(Request(f"bench-{next(self._numbers)}", tuple(ids), SamplingParams())) for ids in prompts
        ]

    def _read_prompts(self, number: int) -> None:
        """Step until one step gives every sequence a token."""
        while sum(output.sampled is not None for output in self.engine.step()) < number:
            pass

    def _drop(self) -> None:
        for sequence in self._sequences:
            self.engine.abort(sequence)


def load(options: dict[str, Any]) -> Ours:
    """Nothing is fetched: the parent has found the files."""
    names = ("context", "threads", "keep_packed", "ple", "device", "expert_memory")
    return Ours(LLM.load(options["model"], offline=True, **{name: options[name] for name in names}))


if __name__ == "__main__":
    main(load)
