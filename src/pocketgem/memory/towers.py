"""What towers take when they are built: at the first image or sound, not before. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pocketgem.checkpoint.adapted import AdaptedTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.towers import AUDIO, VISION
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import ModelConfig
from pocketgem.config.fields import Fields
from pocketgem.config.towers import audio_shapes, vision_shapes
from pocketgem.errors import FormatError

Kind = Literal["vision", "audio"]
PLAIN = (StoredType.F32, StoredType.BF16, StoredType.F16)  # matrices that stay pages of the file
IMAGE_ROWS = 280  # the usual budget; each is nine patches for an encoder


@dataclass(frozen=True)
class TowerBytes:
    """One tower. stored: bytes in its file; mapped: of these, those it is computed from as they lie there; private:
    what is unpacked beside; work: the most that encoding one picture or 30 s of sound adds."""

    kind: Kind
    stored: int
    mapped: int
    private: int
    work: int


def towers_of(config: ModelConfig, others: Mapping[str, StoredTensor]) -> tuple[TowerBytes, ...]:
    """The towers among the tensors beside the text model's."""
    return tuple(tower for kind in _KINDS for tower in _stored(config, kind, others))


def towers_as(config: ModelConfig) -> tuple[TowerBytes, ...]:
    """The towers a config describes, as they are released: matrices as bfloat16."""
    return tuple(tower for kind in _KINDS for tower in _described(config, kind))


_KINDS: Mapping[Kind, tuple[str, ...]] = {"vision": VISION, "audio": AUDIO}


def _stored(config: ModelConfig, kind: Kind, others: Mapping[str, StoredTensor]) -> Iterator[TowerBytes]:
    parts = [tensor for name, tensor in others.items() if name.removeprefix("model.").startswith(_KINDS[kind])]
    if not parts or not _runs(config, kind):
        return
    mapped = sum(part.nbytes for part in parts if _is_mapped(part))
    private = sum(4 * part.numel for part in parts if not _is_mapped(part))
    with suppress(FormatError):  # a tower whose config cannot be takes nothing: it is refused when it is asked for
        yield TowerBytes(kind, sum(part.nbytes for part in parts), mapped, private, _work(config, kind))


def _described(config: ModelConfig, kind: Kind) -> Iterator[TowerBytes]:
    if not _runs(config, kind):
        return
    with suppress(FormatError):
        shapes = vision_shapes(config) if kind == "vision" else audio_shapes(config)
        matrices = 2 * sum(math.prod(shape) for shape in shapes.values() if len(shape) > 1)
        vectors = 4 * sum(math.prod(shape) for shape in shapes.values() if len(shape) < 2)
        yield TowerBytes(kind, matrices + vectors // 2, matrices, vectors, _work(config, kind))


def _is_mapped(part: StoredTensor) -> bool:
    return len(part.shape) > 1 and part.type in PLAIN and not isinstance(part, AdaptedTensor)


def _runs(config: ModelConfig, kind: Kind) -> bool:
    """Whether this version runs such a tower: Gemma 3n's it does not."""
    described = config.vision if kind == "vision" else config.audio
    return described is not None and config.family != "gemma3n" and (kind == "vision" or config.family == "gemma4")


# ---- work ------------------------------------------------------------------------------------------------------------


def _work(config: ModelConfig, kind: Kind) -> int:
    """float32 rows that live at once in a layer, and the widest weight as float32.

    Four rows of the MLP's width and half a dozen of the tower's live at once; with what the allocator keeps between
    them it is about twice that, as measured: 260 to 295 MiB for the small encoder's 2,304 patches
    (``benchmarks/towers.py``).
    """
    if kind == "audio":
        return _audio_work(Fields(config.audio or {}, "audio_config"))
    fields = Fields(config.vision or {}, "vision_config")
    if config.unified:
        numbers = 3 * (fields.int("patch_size", 16) * fields.int("pooling_kernel_size", 3)) ** 2
        hidden = fields.int("mm_embed_dim", 3840)
        return 4 * (IMAGE_ROWS * (2 * numbers + 3 * hidden) + numbers * hidden)
    hidden, wide = fields.int("hidden_size", 768), fields.int("intermediate_size", 3072)
    if config.family == "gemma3":
        rows = (fields.int("image_size", 224) // fields.int("patch_size", 16)) ** 2
    else:
        rows = IMAGE_ROWS * fields.int("pooling_kernel_size", 3) ** 2
    return 4 * (rows * (9 * hidden + 8 * wide) + hidden * wide)


def _audio_work(fields: Fields) -> int:
    """30 s of sound: 750 rows of four times the width, and before them 3,000 frames through 128 channels."""
    hidden = fields.int("hidden_size", 1024)
    return 4 * (750 * 10 * hidden + 1500 * 64 * fields.ints("subsampling_conv_channels", 2, (128, 32))[0])
