"""Tiny models that see and hear: twins with real towers, a vocabulary with media tokens, and a template.

llm = sensing_llm(tmp_path, "E2B")          transformers' layout in small, random weights
give_senses(scripted_llm(...))              a scripted model with towers whose rows are a function of their input
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketgem.llm import LLM
from pocketgem.media.kinds import SAMPLE_RATE, Clip, Picture, Sound
from pocketgem.senses import Senses
from tests import text_fixtures as fixtures
from tests.audio_twins import hearing_twin
from tests.twins import make_twin

GEMMA_3 = {
    "<|turn>": "<start_of_turn>", "<turn|>": "<end_of_turn>", "<|image>": "<start_of_image>",
    "<|image|>": "<image_soft_token>", "<image|>": "<end_of_image>",
}  # fmt: skip
CONTEXT = 4096  # tokens: random answers that must be whole are long


class FakeTowers:
    """Rows that depend on what is seen and on nothing else, and a count of how often a tower ran."""

    def __init__(self, hidden: int, *, sees: bool = True, hears: bool = True, pool: int = 9) -> None:
        self.hidden, self.sees, self.hears, self.pool, self.runs, self.name = hidden, sees, hears, pool, 0, b"one"

    def see(self, values: Tensor, positions: Tensor) -> Tensor:
        assert len(positions) == len(values)
        return self._rows(values, len(values) // self.pool)

    def hear(self, values: Tensor) -> Tensor:
        return self._rows(values, (len(values) + 3) // 4)

    def _rows(self, values: Tensor, count: int) -> Tensor:
        self.runs += 1
        seed = int.from_bytes(hashlib.sha256(values.numpy().tobytes()).digest()[:6], "little")
        return torch.randn(count, self.hidden, generator=torch.Generator().manual_seed(seed))

    def identity(self, kind: str) -> bytes:
        return self.name + kind.encode()

    def drop(self) -> None:
        self.runs = 0


def sensing_llm(folder: Path, layout: str = "E2B", **options: Any) -> LLM:
    """A twin of a layout that sees (and hears, as E2B does), with a tokenizer and a chat template."""
    if layout == "E2B":
        hearing_twin(layout, folder)
    else:
        make_twin(layout, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    gemma3 = layout.startswith("gemma3")
    metadata = fixtures.gemma4_metadata()
    template = "gemma3_like.jinja" if gemma3 else "gemma4_like.jinja"
    if gemma3:  # its vocabulary is no tokenizer.json in the fixtures; its names are what matters here
        metadata["tokenizer.ggml.tokens"] = [GEMMA_3.get(name, name) for name in metadata["tokenizer.ggml.tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(fixtures.tokenizer_json(metadata)))
    (folder / "chat_template.jinja").write_text((fixtures.DATA / template).read_text(encoding="utf-8"))
    return LLM.load(folder, dtype=torch.float32, threads=1, **options)


def give_senses(llm: LLM, **options: Any) -> FakeTowers:
    """Make a model without towers see and hear, in the manner of Gemma 4."""
    towers = FakeTowers(llm.model.config.hidden_size)
    config = replace(llm.model.config, family="gemma4")
    llm.senses = Senses(towers, config, llm.tokenizer, **options)
    return towers


def picture(number: int = 0, height: int = 60, width: int = 90) -> Picture:
    """Random pixels."""
    return Picture(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(number: int = 0, height: int = 60, width: int = 90) -> bytes:
    """The same as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture(number, height, width).pixels).save(file, "PNG")
    return file.getvalue()


def sound(seconds: float = 0.5, number: int = 0) -> Sound:
    """Noise."""
    samples = np.random.default_rng(number).normal(0, 0.1, int(seconds * SAMPLE_RATE))
    return Sound(samples.astype(np.float32))


def wav(seconds: float = 0.5, number: int = 0) -> bytes:
    """The same as a file of 16-bit samples."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound(seconds, number).samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def clip(frames: int = 3, *, has_sound: bool = False) -> Clip:
    """Random pictures, one every 20 seconds."""
    pictures = tuple(picture(100 + index, 48, 48) for index in range(frames))
    return Clip(pictures, tuple(20.0 * index for index in range(frames)), 20.0 * frames, has_sound)


def mp4(seconds: float = 2.0, size: int = 64) -> bytes:
    """A video of one colour that gets brighter, ten frames a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as box:
        stream = box.add_stream("mpeg4", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(int(seconds * 10)):
            pixels = np.full((size, size, 3), min(255, 10 * index), np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        box.mux(stream.encode())
    return file.getvalue()


def ask(*content: Any) -> list[dict[str, Any]]:
    """A turn of the person: texts as they are, media as decoded or as files ``(kind, bytes)``."""
    return [{"role": "user", "content": [_part(one) for one in content]}]


def _part(one: Any) -> dict[str, Any]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    if isinstance(one, dict):
        return one
    if isinstance(one, tuple):
        return {"type": one[0], one[0]: one[1]}
    kind = {Picture: "image", Sound: "audio", Clip: "video"}[type(one)]
    return {"type": kind, kind: one}
