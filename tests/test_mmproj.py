"""Twins' towers written as llama.cpp's ``mmproj`` files and read back: the same rows; files of strangers: a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.mmproj import with_mmproj
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError, WeightsError
from pocketgem.model.towers import Towers
from tests.mmproj_files import write_mmproj
from tests.vision_twins import SEEING, SeeingTwin, make_seeing_twin


@pytest.fixture(scope="module", params=list(SEEING))
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SeeingTwin:
    return make_seeing_twin(request.param, tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="module")
def text(twin: SeeingTwin, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The text model alone, as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "text.gguf"
    export_gguf(open_checkpoint(resolve(twin.folder)), path, StoredType.F32)
    return open_checkpoint(resolve(path))


@pytest.fixture
def write(twin: SeeingTwin, tmp_path: Path) -> Callable[..., Path]:
    def written(*change: Callable[[str, Tensor], tuple[str, Tensor] | None], **keys: Any) -> Path:
        return write_mmproj(twin.folder, tmp_path / "mmproj.gguf", *change, **keys)

    return written


def rows(checkpoint: Checkpoint, twin: SeeingTwin) -> Tensor:
    image = twin.image(5, 2, 3)
    return Towers.of(checkpoint).see(image.values, image.positions)


def test_the_tower_read_back_makes_the_same_rows(
    twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]
) -> None:
    assert not Towers.of(text).sees
    seeing = with_mmproj(text, write())
    expected = rows(open_checkpoint(resolve(twin.folder)), twin)
    torch.testing.assert_close(rows(seeing, twin), expected, atol=1e-6, rtol=0)
    assert seeing.config.layers == text.config.layers
    assert seeing.config.unified == (twin.name == "12B")


def test_it_takes_the_place_of_a_folders_own_tower(twin: SeeingTwin, write: Callable[..., Path]) -> None:
    folder = open_checkpoint(resolve(twin.folder))
    name = "mm.input_projection.weight"
    path = write(lambda found, tensor: (found, tensor * 2 if found == name else tensor))
    torch.testing.assert_close(rows(with_mmproj(folder, path), twin), 2 * rows(folder, twin), atol=1e-5, rtol=0)


def test_half_precision_files_are_read(twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]) -> None:
    path = write(lambda name, tensor: (name, tensor.half() if tensor.ndim > 1 else tensor))
    expected = rows(open_checkpoint(resolve(twin.folder)), twin)
    torch.testing.assert_close(rows(with_mmproj(text, path), twin), expected, atol=0.02, rtol=0.02)


def test_gemma_3s_exchanged_mlp_matrices_are_put_right(tmp_path: Path) -> None:
    """Files of early converters have ``ffn_up`` and ``ffn_down`` under each other's names."""
    swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}

    def exchanged(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return ".".join(swap.get(part, part) for part in name.split(".")), tensor

    twin = make_seeing_twin("gemma3", tmp_path / "twin")
    folder = open_checkpoint(resolve(twin.folder))
    path = write_mmproj(twin.folder, tmp_path / "mmproj.gguf", exchanged)
    torch.testing.assert_close(rows(with_mmproj(folder, path), twin), rows(folder, twin), atol=1e-6, rtol=0)


# ---- strangers -------------------------------------------------------------------------------------------------------


def test_another_architecture_is_refused(twin: SeeingTwin, text: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"architecture '(gemma3|gemma4)'; an mmproj file's is 'clip'"):
        with_mmproj(text, text.where)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clip__vision__projector_type": "qwen2vl_merger"}, "projector 'qwen2vl_merger' is not one of"),
        ({"clip__vision__projector_type": "gemma3nv"}, "MobileNet"),
        ({"clip__vision__embedding_length": 0}, "embedding_length is 0"),
        ({"clip__vision__embedding_length": "wide"}, "embedding_length is 'wide'"),
        ({"clip__vision__patch_size": None}, "patch_size"),
        ({"clip__vision__patch_size": 1 << 31}, "patch_size"),
        ({"clip__vision__embedding_length": 36}, "the config says"),
    ],
)
def test_metadata_that_cannot_be_are_refused(
    twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path], keys: dict[str, object], message: str
) -> None:
    if keys == {"clip__vision__patch_size": None} and twin.name == "12B":
        message = "the config says"  # a size has a default there; the tensors are of another
    with pytest.raises((UnsupportedError, FormatError, WeightsError), match=message):
        with_mmproj(text, write(**keys))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1000, "tensors of the tower are missing, first vision_tower"),
        (1, "have no place in the tower"),
        (100_000, "block_count is 100000"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    text: Checkpoint, twin: SeeingTwin, write: Callable[..., Path], count: int, message: str
) -> None:
    path = write(clip__vision__block_count=count)
    if twin.name == "12B":  # no layers: what such a key says is not looked at
        assert Towers.of(with_mmproj(text, path)).sees
        return
    with pytest.raises((FormatError, WeightsError), match=message):
        with_mmproj(text, path)


@pytest.mark.parametrize("name", ["v.patch_embd.weight", "mm.input_projection.weight", "v.position_embd.weight"])
def test_missing_tensors_are_named(twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path], name: str) -> None:
    with pytest.raises(CheckpointError, match=r"missing"):
        with_mmproj(text, write(lambda found, tensor: None if found == name else (found, tensor)))


def test_foreign_tensors_are_named(twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]) -> None:
    path = write(lambda name, tensor: ("v.resampler.weight" if name == "v.patch_embd.weight" else name, tensor))
    with pytest.raises(UnsupportedError, match=r"v\.resampler\.weight"):
        with_mmproj(text, path)


def test_patches_that_are_no_squares_are_refused(
    twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]
) -> None:
    path = write(lambda name, tensor: (name, tensor[..., :-1] if name == "v.patch_embd.weight" else tensor))
    with pytest.raises((FormatError, WeightsError), match=r"patch"):
        with_mmproj(text, path)


def test_another_models_tower_is_known_by_its_rows(
    twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]
) -> None:
    wider = replace(text, config=replace(text.config, hidden_size=text.config.hidden_size * 2))
    with pytest.raises(WeightsError, match="makes rows of 48 numbers, the model takes 96: it belongs to another"):
        with_mmproj(wider, write())


def test_another_familys_tower_is_refused(twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]) -> None:
    other = replace(text, config=replace(text.config, family="gemma3n"))
    with pytest.raises(UnsupportedError, match="but the model is gemma3n"):
        with_mmproj(other, write())


def test_a_file_without_towers_is_refused(twin: SeeingTwin, text: Checkpoint, write: Callable[..., Path]) -> None:
    path = write(lambda name, tensor: None, clip__projector_type=None, clip__vision__projector_type=None)
    with pytest.raises(WeightsError, match="no vision or audio tower"):
        with_mmproj(text, path)
