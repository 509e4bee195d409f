"""Names of the audio part of an mmproj file, against the table of the gguf library that writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import softplus

from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.mmproj import with_mmproj
from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS, audio_config, audio_name, audio_tensors
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import StoredType
from pocketgem.config import from_hf, released_config
from pocketgem.config.towers import audio_shapes
from pocketgem.errors import UnsupportedError
from pocketgem.model.towers import Towers
from tests.audio_twins import HEARING, PREPARE, hearing_twin, sound
from tests.twins import Twin

KINDS = (".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min")
E2B, UNIFIED = (from_hf(released_config(f"gemma-4-{size}"), size) for size in ("E2B", "12B"))
SHAPES = audio_shapes(E2B)


@cache
def table() -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 12)


def written_name(ours: str) -> str:
    """What a converter calls a tensor: the library's table, asked with the names it knows the parts by."""
    known = ours.replace("audio_tower.", "conformer.").replace("embed_audio.", "model.embed_audio.")
    known = known.replace(".linear.", ".")
    known = f"{known}.weight" if known.endswith("per_dim_scale") else known
    name = table().get_name(known, KINDS)
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


# ---- towers of twins, written and read back --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(HEARING))
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return hearing_twin(request.param, tmp_path_factory.mktemp("twin"))


def write_mmproj(twin: Twin, path: Path, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Path:
    """The audio part of a twin as llama.cpp's converter writes it. ``change`` is applied to matrices."""
    config = json.loads((twin.folder / "config.json").read_text(encoding="utf-8"))["audio_config"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.audio.projector_type", "gemma4a" if twin.name == "E2B" else "gemma4ua")
    writer.add_uint32("clip.audio.embedding_length", config.get("hidden_size", 640))
    writer.add_uint32("clip.audio.block_count", config.get("num_hidden_layers", 0))
    writer.add_uint32("clip.audio.attention.head_count", config.get("num_attention_heads", 0))
    for name, tensor in load_file(twin.folder / "model.safetensors").items():
        ours = name.removeprefix("model.")
        if not ours.startswith(("audio_tower.", "embed_audio.")):
            continue
        value = softplus(tensor) if ours.endswith("per_dim_scale") else tensor
        value = value.reshape(written_shape(ours, tuple(value.shape)))
        writer.add_tensor(written_name(ours), (change(value) if value.ndim > 1 else value).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rows(checkpoint: Checkpoint, twin: Twin) -> Tensor:
    return Towers.of(checkpoint).hear(torch.from_numpy(PREPARE[twin.name](sound(9_000)).values))


def test_a_tower_read_back_beside_a_gguf_file_makes_the_same_rows(twin: Twin, tmp_path: Path) -> None:
    folder = open_checkpoint(resolve(twin.folder))
    export_gguf(folder, tmp_path / "text.gguf", StoredType.F32)
    text = open_checkpoint(resolve(tmp_path / "text.gguf"))
    assert not Towers.of(text).hears
    hearing = with_mmproj(text, write_mmproj(twin, tmp_path / "mmproj.gguf"))
    assert Towers.of(hearing).hears
    torch.testing.assert_close(rows(hearing, twin), rows(folder, twin), atol=1e-5, rtol=0)


def test_half_precision_is_read(twin: Twin, tmp_path: Path) -> None:
    folder = open_checkpoint(resolve(twin.folder))
    path = write_mmproj(twin, tmp_path / "mmproj.gguf", lambda tensor: tensor.half())
    torch.testing.assert_close(rows(with_mmproj(folder, path), twin), rows(folder, twin), atol=0.05, rtol=0.05)
