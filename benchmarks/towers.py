"""Encoding one picture of 768 x 768 pixels beside transformers: E2B's real sizes, random weights, the same for both.

    python -m benchmarks.towers [CASE ...] [--rounds 5] [--threads 2]

Weights lie in a safetensors file as bfloat16, as released; ours is opened by our own loader. Both sides get what their
own preprocessing makes of one picture (transformers' pads it to the budget) and take turns in one process, so that a
busy minute hits both. ``theirs`` holds its weights in float32, ``theirs-bf16`` as they are released. Times are medians;
a ratio has its spread over the rounds. Where others keep the machine busy, processors' time says more than the clock's.
``peak``: what an encode adds to the resident memory at the highest, in a round of its own. ``gap``: the largest
difference of a row's number, beside the largest number. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pocketgem.checkpoint.safetensors import open_safetensors
from pocketgem.config import from_hf, released_config
from pocketgem.media.kinds import Picture
from pocketgem.media.patches import patches
from pocketgem.model.towers import Towers

OURS = "ours"


@dataclass(frozen=True)
class Case:
    """The sides of one comparison by name, each a call that encodes once."""

    name: str
    sides: dict[str, Callable[[], Tensor]]


@torch.inference_mode()
def image(folder: Path, layout: str) -> Case:
    """A picture through the vision tower and its projector."""
    import transformers
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
    from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder, Gemma4VisionModel

    released = released_config(layout)
    ours = from_hf(released, layout)
    wanted = transformers.Gemma4Config(**{k: v for k, v in released.items() if k.endswith("_config")})
    parts = nn.ModuleDict(
        {
            "vision_tower": Gemma4VisionModel(wanted.vision_config),
            "embed_vision": Gemma4MultimodalEmbedder(wanted.vision_config, wanted.text_config),
        }
    ).eval()
    _randomise(parts)
    stored = {f"model.{name}": tensor.bfloat16() for name, tensor in parts.state_dict().items()}
    save_file(stored, folder / "model.safetensors")
    towers = Towers(ours, open_safetensors(folder), layout)
    picture = Picture(np.random.default_rng(1).integers(0, 256, (768, 768, 3), np.uint8))
    cut = patches(picture, 280)
    values, positions = torch.from_numpy(cut.values), torch.from_numpy(cut.positions)
    theirs = Gemma4ImageProcessorPil()(images=[picture.pixels], return_tensors="pt")

    def reference(dtype: torch.dtype) -> Callable[[], Tensor]:
        own = _in(parts, dtype)

        def encode() -> Tensor:
            seen = own["vision_tower"](theirs["pixel_values"].to(dtype), theirs["image_position_ids"])
            rows: Tensor = own["embed_vision"](seen.last_hidden_state)
            return rows.float()

        return encode

    return Case(
        f"image, {layout}",
        {
            OURS: lambda: towers.see(values, positions),
            "theirs": reference(torch.float32),
            "theirs-bf16": reference(torch.bfloat16),
        },
    )


def _in(parts: nn.ModuleDict, dtype: torch.dtype) -> dict[str, nn.Module]:
    """As transformers loads them: weights in ``dtype``, the rope's frequencies in float32 whatever it is."""
    own = copy.deepcopy(parts).to(dtype)
    for module, original in zip(own.modules(), parts.modules(), strict=True):
        for name, buffer in original.named_buffers(recurse=False):
            if name.endswith("inv_freq"):
                setattr(module, name, buffer)
    return dict(own.items())


def _randomise(parts: nn.Module) -> None:
    """Weights as trained ones are sized, bounds that clip a little, statistics that are not one and zero."""
    torch.manual_seed(1)
    for name, tensor in [*parts.named_parameters(), *parts.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if leaf.endswith(("_min", "_max")):
            tensor.fill_(-6.0 if leaf.endswith("_min") else 6.0)
        elif leaf == "std_scale":
            tensor.fill_(1.0)
        elif "q_norm" in name:
            tensor.fill_(0.1)  # else each patch sees one other alone, and sixteen such layers make rounding large
        elif leaf == "std_bias" or leaf == "position_embedding_table":
            tensor.normal_(std=0.02)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
        if not name.endswith("inv_freq"):
            tensor.copy_(tensor.bfloat16())  # as released


CASES: dict[str, Callable[[Path], Case]] = {
    "image": lambda folder: image(folder, "gemma-4-E2B"),
    "image-31B": lambda folder: image(folder, "gemma-4-31B"),
}


# ---- measuring -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measured(case: Case, rounds: int) -> dict[str, Any]:
    """All sides in turn, ``rounds`` times after one that is not counted."""
    rows = {side: encode() for side, encode in case.sides.items()}
    peaks = {side: _peak(encode) for side, encode in case.sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in case.sides}
    work: dict[str, list[float]] = {side: [] for side in case.sides}
    for _ in range(rounds):
        for side, encode in case.sides.items():
            began, spent = time.perf_counter(), time.process_time()
            encode()
            seconds[side].append(time.perf_counter() - began)
            work[side].append(time.process_time() - spent)
    found: dict[str, Any] = {"case": case.name}
    for side in case.sides:
        found[side] = {
            "seconds": median(seconds[side]), "processor_seconds": median(work[side]), "peak_bytes": peaks[side],
        }  # fmt: skip
        if side != OURS:
            ratios = sorted(ours / theirs for ours, theirs in zip(seconds[OURS], seconds[side], strict=True))
            gap = float((rows[OURS] - rows[side]).abs().max())
            found[side] |= {"ratio": median(ratios), "ratio_low": ratios[0], "ratio_high": ratios[-1], "gap": gap}
    found["largest"] = float(rows[OURS].abs().max())
    return found


def _peak(encode: Callable[[], Tensor]) -> int:
    """Bytes that one call adds to the resident memory, at the highest (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what the last call gave back to the allocator goes back to the system
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    before = _status("VmRSS")
    encode()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def show(found: dict[str, Any]) -> None:
    print(f"{found['case']}: largest number of a row {found['largest']:.3g}")
    for side, numbers in found.items():
        if isinstance(numbers, dict):
            line = f"  {side:12} {numbers['seconds']:7.2f} s ({numbers['processor_seconds']:.2f} s of processors)"
            line += f"  +{numbers['peak_bytes'] / 2**20:6.0f} MiB"
            if "ratio" in numbers:
                line += f"  ours takes {numbers['ratio']:.2f} times as long"
                line += f" ({numbers['ratio_low']:.2f} to {numbers['ratio_high']:.2f}); gap {numbers['gap']:.2g}"
            print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=list(CASES), default=["image"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    every = []
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            every.append(measured(CASES[name](Path(folder)), asked.rounds))
            show(every[-1])
    print(json.dumps({"threads": asked.threads, "rounds": asked.rounds, "torch": torch.__version__, "found": every}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
