"""30 s of sound through the E2B's audio tower, ours beside transformers', on random weights of the real sizes.

    python -m benchmarks.towers_audio [--threads 2] [--runs 5] [--seconds 30] [--no-bfloat16]

Weights lie in a file as bfloat16, as released. Ours reads that file; transformers' model holds them as float32, and
another as bfloat16. They take turns in one process, so that a busy minute hits all alike. Mel frames are made before;
the time of that is told too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Gemma4AudioConfig, Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel, Gemma4MultimodalEmbedder

from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.config import from_hf, released_config
from pocketgem.media.kinds import SAMPLE_RATE, Sound
from pocketgem.media.mel import mel
from pocketgem.model.towers import Towers


class Theirs(nn.Module):
    """The reference's tower and projector."""

    def __init__(self, config: dict[str, object], hidden_size: int) -> None:
        super().__init__()
        audio = Gemma4AudioConfig(**{key: value for key, value in config.items() if key != "model_type"})
        self.audio_tower = Gemma4AudioModel(audio)
        self.embed_audio = Gemma4MultimodalEmbedder(audio, Gemma4TextConfig(hidden_size=hidden_size))

    def forward(self, frames: Tensor) -> Tensor:
        mask = torch.ones(1, len(frames), dtype=torch.bool)
        dtype = self.embed_audio.embedding_projection.weight.dtype
        rows: Tensor = self.embed_audio(self.audio_tower(frames[None].to(dtype), mask).last_hidden_state)
        return rows[0]


def sides(folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    config = from_hf(released_config("gemma-4-E2B"), "E2B")
    theirs = Theirs(dict(config.audio or {}), config.hidden_size).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            tensor.copy_(tensor.bfloat16())
    weights = {f"model.{name}": tensor.bfloat16().contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    halved = Theirs(dict(config.audio or {}), config.hidden_size).bfloat16().eval()
    halved.load_state_dict(theirs.state_dict())
    return {
        "pocketgem": Towers(config, open_safetensors(folder), "E2B").hear,
        "transformers float32": theirs,
        "transformers bfloat16": halved,
    }


@torch.inference_mode()
def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--no-bfloat16", action="store_true", help="leave the slower of transformers' two out")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    samples = np.random.default_rng(0).standard_normal(int(given.seconds * SAMPLE_RATE)).astype(np.float32) * 0.1
    began = time.perf_counter()
    frames = torch.from_numpy(mel(Sound(samples)).values)
    print(f"mel frames: {time.perf_counter() - began:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        models = sides(Path(folder))
        if given.no_bfloat16:
            del models["transformers bfloat16"]
        compare(models, frames, given.runs)


def compare(models: dict[str, Callable[[Tensor], Tensor]], frames: Tensor, runs: int) -> None:
    expected = models["transformers float32"](frames)
    apart = (models["pocketgem"](frames) - expected).abs().max() / expected.abs().max()
    print(f"rows differ by {apart:.1e} of the largest number")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(runs):
        for name, model in models.items():
            seconds[name].append(timed(model, frames))
    for name, found in seconds.items():
        walls, processor = zip(*found, strict=True)
        spread = f"{min(walls):.2f} to {max(walls):.2f}, {runs} runs"
        print(f"{name:22} {median(walls):.2f} s ({spread}); {median(processor):.2f} s of processor time")
    ours, *others = ([median(column) for column in zip(*found, strict=True)] for found in seconds.values())
    times = [mine / min(theirs) for mine, theirs in zip(ours, zip(*others, strict=True), strict=True)]
    print(f"{times[0]:.2f} times the faster of transformers'; {times[1]:.2f} in processor time")
    print(json.dumps({"seconds": seconds, "times": times}))


def timed(model: Callable[[Tensor], Tensor], frames: Tensor) -> tuple[float, float]:
    """Seconds on the wall, and of this process's threads, which a busy machine does not stretch as much."""
    wall, processor = time.perf_counter(), time.process_time()
    model(frames)
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
