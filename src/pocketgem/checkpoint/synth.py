"""Synthetic checkpoints: a released layout's exact shapes with random weights, so that size and speed can be measured.

What such a model writes is noise, and its name says so. Weights are random bits packed straight into blocks, scaled so
that activations stay of ordinary size; no tensor is ever made in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pocketgem.checkpoint import names
from pocketgem.checkpoint.draft import Draft, value_bytes
from pocketgem.checkpoint.export import metadata_of, rope_divisors, unused_keys
from pocketgem.checkpoint.formats import stored_as
from pocketgem.checkpoint.types import Progress, StoredType
from pocketgem.config import ModelConfig, decoder_shapes, from_hf, released_config
from pocketgem.errors import UnsupportedError

NIBBLE_STD = math.sqrt((16**2 - 1) / 12)  # of a uniform 4-bit value
BYTE_STD = math.sqrt((256**2 - 1) / 12)
SIXBIT_STD = math.sqrt((64**2 - 1) / 12)
SIXBIT_SCALE = 32  # of every sub-block of a Q6_K block
FORMATS = (StoredType.Q4_0, StoredType.Q8_0)
# What a layer adds to a token. Random attention gives all tokens of a text the same; soon that would be all there is,
# and they would choose the same experts. Kept small, a token stays itself, as it does in a trained model.
BRANCH, BRANCH_NORMS = 0.005, (".post_attention_norm.weight", ".post_ffw_norm.weight")
ROUTER = ".ffn_gate_inp.weight"
SKEW = 0.5  # of 128 experts the most used third then takes about 80 % of all choices of 8


class Routing(StrEnum):
    """How rows spread over experts. ``EVEN``: all experts alike, as random weights do, the worst case for a cache."""

    EVEN = "even"
    SKEWED = "skewed"


def synthesize(
    layout: str,
    path: Path,
    type: StoredType = StoredType.Q4_0,
    *,
    seed: int = 0,
    routing: Routing = Routing.EVEN,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file with the shapes of a released layout and random weights.

    Matrices are ``type`` (Q4_0 or Q8_0); the token embedding, which is also the head, is Q6_K in a Q4_0 file, as in the
    released ones; vectors are float32. ``progress`` hears of bytes. One tensor is held at a time: the largest is the
    per-layer table. ``routing``: how rows spread over experts. Raises CheckpointError for an unknown layout,
    UnsupportedError for another type and for a routing of a layout without experts.
    """
    config = from_hf(released_config(layout), layout)
    write_synthetic(config, layout, path, type, seed=seed, routing=routing, progress=progress)


def write_synthetic(
    config: ModelConfig,
    name: str,
    path: Path,
    type: StoredType = StoredType.Q4_0,
    *,
    seed: int = 0,
    routing: Routing = Routing.EVEN,
    progress: Progress | None = None,
) -> None:
    """``synthesize`` for any shapes; rows must fill whole blocks, save those of a few numbers."""
    config = _padded(config)
    if type not in FORMATS:
        raise UnsupportedError(f"synthetic weights can be {' or '.join(FORMATS)}, not {type}")
    if routing is not Routing.EVEN and config.experts is None:
        raise UnsupportedError(f"{name} has no experts to route to")
    kind = "random weights" if routing is Routing.EVEN else f"random weights, {routing} routing"
    metadata = {
        "general.architecture": config.family,
        "general.name": f"synthetic {name} ({kind})",
        **metadata_of(config),
        **_vocabulary(config),
    }
    shapes = _shapes(config)
    routers = {name for name in shapes if name.endswith(ROUTER)} if routing is Routing.SKEWED else set()
    stored = {name: stored_as(name, shape, type) for name, shape in shapes.items()}
    stored |= dict.fromkeys(routers, StoredType.F32)  # their rows differ in size
    divisors = list(rope_divisors(config))
    described = [(name, shape, stored[name]) for name, shape in shapes.items()]
    described += [(name, tuple(values.shape), kind) for name, values, kind in divisors]
    values = {key: value_bytes(key, value) for key, value in metadata.items()}
    tensors = chain(_tensors(config, stored, shapes, routers, Dice(seed)), (values for _, values, _ in divisors))
    with Draft(path, values, described) as draft:
        draft.fill(([tensor.view(-1).view(torch.uint8).numpy().data] for tensor in tensors), progress)
        draft.publish()


def _padded(config: ModelConfig) -> ModelConfig:
    """In GGUF, Gemma 3n's per-layer table has a row for every token, those of media too; llama.cpp insists."""
    if config.family != "gemma3n" or config.per_layer is None:
        return config
    return replace(config, per_layer=replace(config.per_layer, vocab_size=config.vocab_size))


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return _stacked({**decoder_shapes(config), **unused_keys(config)})


def _tensors(
    config: ModelConfig,
    stored: dict[str, StoredType],
    shapes: dict[str, tuple[int, ...]],
    routers: set[str],
    dice: Dice,
) -> Iterator[Tensor]:
    for name, shape in shapes.items():
        if name in routers:
            yield dice.skewed_router(shape)
        elif stored[name] is not StoredType.F32:
            yield dice.blocks(stored[name], shape, _fan_in(name, shape, config) ** -0.5)
        else:
            size = BRANCH if config.experts is not None and name.endswith(BRANCH_NORMS) else 1.0
            yield torch.full(shape, size) if len(shape) == 1 else dice.normal(shape, 0.02)


def _fan_in(name: str, shape: tuple[int, ...], config: ModelConfig) -> int:
    """Over how many weights a product sums; a row of the per-layer table is cut by layer first."""
    if name == "per_layer_token_embd.weight" and config.per_layer is not None:
        return config.per_layer.hidden_size
    return shape[-1]


def _stacked(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """By GGUF's names, members of a stack counted into one shape."""
    found: dict[str, tuple[int, ...]] = {}
    for hf, shape in shapes.items():
        name, index = names.gguf_name(hf), names.stack_index(hf)
        found[name] = shape if index is None else (index + 1, *shape)
    return found


class Dice:
    """Random weights, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...], std: float) -> Tensor:
        return torch.randn(shape, generator=self._generator) * std

    def skewed_router(self, shape: tuple[int, ...]) -> Tensor:
        """``[experts, hidden]``, each row's size its expert's rank, a random one, to the power of -SKEW.

        A larger row's score spreads wider, so it is among the best more often: use falls about as Zipf's law has it.
        """
        ranks = torch.randperm(shape[0], generator=self._generator) + 1.0
        return self.normal(shape, shape[-1] ** -0.5) * ranks[:, None] ** -SKEW

    def blocks(self, type: StoredType, shape: tuple[int, ...], std: float) -> Tensor:
        """uint8 ``[*leading, bytes a row]`` whose weights have standard deviation ``std``."""
        rows, (per_row, left) = math.prod(shape[:-1]), divmod(shape[-1], type.block_size)
        if left:
            raise UnsupportedError(f"rows of {shape[-1]} weights do not fill blocks of {type.block_size} ({type})")
        out = torch.empty((rows * per_row, type.type_size), dtype=torch.uint8)
        out.random_(generator=self._generator)
        _SCALES[type](out, std)
        return out.view(*shape[:-1], per_row * type.type_size)


def _put_half(blocks: Tensor, at: int, value: float) -> None:
    blocks[:, at : at + 2] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)


def _scale_q4_0(blocks: Tensor, std: float) -> None:
    _put_half(blocks, 0, std / NIBBLE_STD)


def _scale_q8_0(blocks: Tensor, std: float) -> None:
    _put_half(blocks, 0, std / BYTE_STD)


def _scale_q6_k(blocks: Tensor, std: float) -> None:
    blocks[:, 192:208] = SIXBIT_SCALE
    _put_half(blocks, 208, std / SIXBIT_STD / SIXBIT_SCALE)


_SCALES = {StoredType.Q4_0: _scale_q4_0, StoredType.Q8_0: _scale_q8_0, StoredType.Q6_K: _scale_q6_k}


def _vocabulary(config: ModelConfig) -> dict[str, object]:
    """A vocabulary of the right size: control tokens, 256 bytes, printable characters, and words that mean nothing."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    letters = ["▁", *map(chr, range(33, 127)), "▁w"]  # the last is what the one merge makes
    known = [*control, *bytes_, *letters]
    words = [f"▁w{number:06d}" for number in range(config.vocab_size - len(known))]
    types = [3] * len(control) + [6] * len(bytes_) + [1] * (len(letters) + len(words))
    form = {"tokenizer.ggml.merges": ["▁ w"]} if config.family == "gemma4" else {}
    return {
        "tokenizer.ggml.model": "gemma4" if config.family == "gemma4" else "llama",
        "tokenizer.ggml.tokens": [*known, *words],
        "tokenizer.ggml.scores": [-1000.0] * len(known) + [-float(rank) for rank in range(len(words))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        **form,
    }
