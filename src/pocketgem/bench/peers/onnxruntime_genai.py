"""ONNX Runtime GenAI on its own model folder, made by its model builder. One conversation only."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from pocketgem.bench.protocol import main, timed


class OnnxRuntimeGenAI:
    """A loaded model folder; a generator is made anew for every prompt."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.lib: Any = import_module("onnxruntime_genai")
        config = self.lib.Config(options["peer_model"])
        session = {"intra_op_num_threads": options["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = self.lib.Model(config)

    def facts(self) -> dict[str, object]:
        ort: Any = import_module("onnxruntime")
        return {"version": f"onnxruntime-genai {self.lib.__version__}, onnxruntime {ort.__version__}"}

    def prefill(self, prompt: list[int]) -> float:
        generator = self._generator(len(prompt) + 1)
        return timed(lambda: self._read(generator, prompt))

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        if len(prompts) > 1:
            raise NotImplementedError("one conversation only")
        generator = self._generator(len(prompts[0]) + steps + 1)
        self._read(generator, prompts[0])
        return [timed(generator.generate_next_token) for _ in range(steps)]

    def _generator(self, length: int) -> Any:
        """``min_length`` keeps a stop token from ending it early."""
        params = self.lib.GeneratorParams(self.model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        return self.lib.Generator(self.model, params)

    def _read(self, generator: Any, prompt: list[int]) -> None:
        generator.append_tokens(prompt)
        generator.generate_next_token()


if __name__ == "__main__":
    main(OnnxRuntimeGenAI)
