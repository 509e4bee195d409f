"""transformers in bfloat16 with torch's own kernels: a plain loop over the model, which ``generate`` only adds to.

``source`` says where the weights come from: ``folder`` and ``gguf`` are loaded; ``config`` is built with random ones.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from pocketgem.bench.protocol import argmax_rows, main, timed

RANDOM = 1 << 20  # random numbers that are laid out over and over: what they are changes no time
SCALE = 0.02


class Transformers:
    """A loaded causal model."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.torch: Any = import_module("torch")
        self.lib: Any = import_module("transformers")
        self.torch.set_num_threads(options["threads"])
        self.source = options["source"]
        self.model = getattr(self, f"_from_{self.source}")(options).eval()
        self.vocabulary = options["vocabulary"]

    def facts(self) -> dict[str, object]:
        weights = {"config": "same shapes, random weights", "gguf": "the file, dequantised", "folder": "the folder"}
        return {
            "version": f"transformers {self.lib.__version__}",
            "torch": self.torch.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights": weights[self.source],
        }

    def _from_folder(self, options: dict[str, Any]) -> Any:
        return self.lib.AutoModelForCausalLM.from_pretrained(options["model"], dtype=self.torch.bfloat16)

    def _from_gguf(self, options: dict[str, Any]) -> Any:
        file = Path(options["model"])
        load = self.lib.AutoModelForCausalLM.from_pretrained
        return load(str(file.parent), gguf_file=file.name, dtype=self.torch.bfloat16)

    def _from_config(self, options: dict[str, Any]) -> Any:
        """Parameters start without memory, so that no time goes into initialising them; buffers are made as ever."""
        settings = dict(options["config"])
        config = self.lib.AutoConfig.for_model(settings.pop("model_type"), **settings)
        with import_module("accelerate").init_empty_weights(include_buffers=False):
            model = self.lib.AutoModelForCausalLM.from_config(config, dtype=self.torch.bfloat16)
        noise = self.torch.randn(RANDOM, generator=self.torch.Generator().manual_seed(0)) * SCALE
        for module in model.modules():
            for name, empty in list(module.named_parameters(recurse=False)):
                weights = self.torch.nn.Parameter(self._filled(empty.shape, noise), requires_grad=False)
                setattr(module, name, weights)
        model.tie_weights()
        return model.to(self.torch.bfloat16)

    def _filled(self, shape: Any, noise: Any) -> Any:
        """A tensor in bfloat16: every page is written, for pages that were never written are read faster."""
        tensor = self.torch.empty(shape, dtype=self.torch.bfloat16)
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), RANDOM):
            piece = flat[start : start + RANDOM]
            piece.copy_(noise[: piece.numel()])
        return tensor

    def prefill(self, prompt: list[int]) -> float:
        return timed(lambda: self._start([prompt]))

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._start(prompts)
        return [timed(self._step) for _ in range(steps)]

    def _start(self, prompts: list[list[int]]) -> None:
        self.cache = self.lib.DynamicCache(config=self.model.config)
        self.last = self._next(prompts)

    def _step(self) -> None:
        self.last = self._next([[id] for id in self.last])

    def _next(self, ids: list[list[int]]) -> list[int]:
        with self.torch.inference_mode():
            rows = self.torch.tensor(ids)  # [sequences, tokens]
            out = self.model(input_ids=rows, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            return list(argmax_rows(out.logits[:, -1]))


if __name__ == "__main__":
    main(Transformers)
