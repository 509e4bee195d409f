"""llama.cpp through llama-cpp-python's bindings of its C interface, so that one call advances every sequence.

Its own defaults, but the sliding-window cache that its command-line tools choose (``swa_full`` off: it is faster).
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

from pocketgem.bench.protocol import main, timed

BATCH = 512  # tokens of a prompt computed at a time
PAD = 256  # llama.cpp rounds a context up to this


class LlamaCpp:
    """A loaded model, and one context at a time: as many places as the command at hand needs."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.lib: Any = import_module("llama_cpp")
        self.numpy: Any = import_module("numpy")
        self.threads, self.vocabulary = options["threads"], options["vocabulary"]
        self.lib.llama_backend_init()
        params = self.lib.llama_model_default_params()
        if options.get("mapped"):  # weights stay in the file's pages: no second form of them in memory
            params.use_extra_bufts = False
        self.model = self.lib.llama_model_load_from_file(options["model"].encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the model")
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None
        self.shape = (0, 0)  # sequences, tokens each
        self._open(1, options["context"])

    def facts(self) -> dict[str, object]:
        return {
            "version": f"llama-cpp-python {self.lib.__version__}",
            "system": " ".join(self.lib.llama_print_system_info().decode().split()),
            "batch": BATCH,
        }

    def prefill(self, prompt: list[int]) -> float:
        self._open(1, len(prompt) + 1)
        return timed(lambda: self._read(0, prompt))

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._open(len(prompts), len(prompts[0]) + steps + 1)
        self.last = [self._read(index, prompt) for index, prompt in enumerate(prompts)]
        self.position = len(prompts[0])
        return [timed(self._step) for _ in range(steps)]

    def _open(self, sequences: int, tokens: int) -> None:
        """An empty context: the one there is, where its places are enough, else a new one."""
        places, room = self.shape
        if places != sequences or room < tokens:
            self._make(sequences, -(-tokens // PAD) * PAD)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def _make(self, sequences: int, tokens: int) -> None:
        if self.context is not None:
            self.lib.llama_free(self.context)
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.swa_full = False
        self.context, self.shape = self.lib.llama_init_from_model(self.model, params), (sequences, tokens)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not make a context of {sequences} x {tokens} tokens")

    def _read(self, sequence: int, prompt: list[int]) -> int:
        """Read a prompt in pieces; the id that follows it."""
        for start in range(0, len(prompt), BATCH):
            piece = prompt[start : start + BATCH]
            rows = [(id, start + index, sequence) for index, id in enumerate(piece)]
            self._run(rows, wanted=range(len(prompt) - 1 - start, len(rows)))
        return self._choose(len(rows) - 1)

    def _step(self) -> None:
        """One token to every sequence, in one call."""
        self._run([(id, self.position, index) for index, id in enumerate(self.last)], wanted=range(len(self.last)))
        self.position += 1
        self.last = [self._choose(row) for row in range(len(self.last))]

    def _run(self, rows: list[tuple[int, int, int]], wanted: range) -> None:
        """``rows``: (id, position, sequence); logits are computed for the wanted ones."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for row, (id, position, sequence) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = id, position, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, row in wanted
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode answered {code}")

    def _choose(self, row: int) -> int:
        logits = self.lib.llama_get_logits_ith(self.context, row)
        values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents
        return int(self.numpy.frombuffer(values, dtype="float32").argmax())


if __name__ == "__main__":
    main(LlamaCpp)
