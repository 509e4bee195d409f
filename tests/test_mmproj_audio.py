"""Names of the audio part of an mmproj file, against the table of the gguf library that writes them."""

from __future__ import annotations

import gguf
import pytest

from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS, audio_config, audio_name, audio_tensors
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import from_hf, released_config
from pocketgem.config.towers import audio_shapes
from pocketgem.errors import UnsupportedError

KINDS = (".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min")
E2B, UNIFIED = (from_hf(released_config(f"gemma-4-{size}"), size) for size in ("E2B", "12B"))
SHAPES = audio_shapes(E2B)


def written_name(ours: str) -> str:
    """What a converter calls a tensor: the library's table, asked with the names it knows the parts by."""
    known = ours.replace("audio_tower.", "conformer.").replace("embed_audio.", "model.embed_audio.")
    known = known.replace(".linear.", ".")
    known = f"{known}.weight" if known.endswith("per_dim_scale") else known
    name = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 12).get_name(known, KINDS)
    assert name is not None, ours
    return name


def written_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "depthwise" in ours:
        return (shape[0], shape[2])
    return shape or (1,)


def stored(shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("t", shape, StoredType.F32, None, 0, 0)  # type: ignore[arg-type]  # nobody reads it


def file_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    return {written_name(name): stored(written_shape(name, shape)) for name, shape in shapes.items()}


def test_every_tensor_of_an_e2b_comes_back_under_its_name_and_shape() -> None:
    found = {name: tensor.shape for name, tensor in audio_tensors(file_of(SHAPES), "f").items()}
    assert found == {name.replace("self_attn.per_dim_scale", SCALE_AS_IS): shape for name, shape in SHAPES.items()}


def test_tensors_of_the_vision_part_are_not_audio() -> None:
    assert audio_tensors({"v.blk.0.ln1.weight": stored((4,)), "mm.input_projection.weight": stored((4, 4))}, "f") == {}


@pytest.mark.parametrize("name", ["a.blk.0.per_dim_k_scale.weight", "a.blk.x.ln2.weight", "a.blk.0.ln2.bias", "a.w"])
def test_a_tensor_nobody_takes_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="belongs to no tower"):
        audio_name(name, "f")


def test_the_config_of_an_e2b() -> None:
    metadata = {"clip.audio.embedding_length": 1024, "clip.audio.block_count": 12, "clip.audio.attention.head_count": 8}
    found = audio_config(metadata, audio_tensors(file_of(SHAPES), "f"))
    assert found is not None
    assert E2B.audio is not None
    assert found == {key: E2B.audio[key] for key in found}


def test_the_config_of_a_12b_and_of_a_file_without_audio() -> None:
    tensors = audio_tensors({"mm.a.input_projection.weight": stored((3840, 640))}, "f")
    found = audio_config({}, tensors)
    assert found is not None
    assert UNIFIED.audio is not None
    assert found == {key: UNIFIED.audio[key] for key in found}
    assert audio_config({}, {}) is None
