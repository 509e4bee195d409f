"""OpenVINO GenAI on its own model folder, made by optimum-intel. One conversation only."""

from __future__ import annotations

import time
from importlib import import_module
from itertools import pairwise
from typing import Any

from pocketgem.bench.protocol import main


class OpenVinoGenAI:
    """A loaded pipeline. A streamer writes down when each token came."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.lib: Any = import_module("openvino_genai")
        self.core: Any = import_module("openvino")
        self.numpy: Any = import_module("numpy")
        self.pipe = self.lib.LLMPipeline(options["peer_model"], "CPU", INFERENCE_NUM_THREADS=options["threads"])

    def facts(self) -> dict[str, object]:
        return {"version": f"openvino-genai {self.lib.__version__}"}

    def prefill(self, prompt: list[int]) -> float:
        return self._times(prompt, 1)[0]

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        if len(prompts) > 1:
            raise NotImplementedError("one conversation only")
        return self._times(prompts[0], steps + 1)[1:]

    def _times(self, prompt: list[int], tokens: int) -> list[float]:
        """Seconds until each token, counted from the one before."""
        settings = self.lib.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        clock = [time.perf_counter()]
        self.pipe.generate(self._inputs(prompt), settings, self._streamer(clock))
        if len(clock) != tokens + 1:
            raise RuntimeError(f"asked for {tokens} tokens, saw {len(clock) - 1} come")
        return [after - before for before, after in pairwise(clock)]

    def _inputs(self, prompt: list[int]) -> Any:
        ids = self.numpy.array([prompt], dtype="int64")
        mask = self.numpy.ones_like(ids)
        return self.lib.TokenizedInputs(self.core.Tensor(ids), self.core.Tensor(mask))

    def _streamer(self, clock: list[float]) -> Any:
        """Called with each token, not with text: text is held back where a character is unfinished."""

        def write(streamer: Any, token: Any) -> Any:
            came = time.perf_counter()
            clock.extend([came] * (len(token) if isinstance(token, list) else 1))
            return self.lib.StreamingStatus.RUNNING

        kind = type("Clock", (self.lib.StreamerBase,), {"write": write, "end": lambda streamer: None})
        return kind()


if __name__ == "__main__":
    main(OpenVinoGenAI)
