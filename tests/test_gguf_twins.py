"""The twins written to GGUF and read back: same shapes, same logits, and the names of the format's own library."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from pocketgem.checkpoint import names
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.write import write_gguf
from pocketgem.errors import CheckpointError
from tests.test_parity import PROMPT_TOKENS, load, run
from tests.twins import LAYOUTS, make_twin

PREFIXES = ("model.", "model.language_model.")


@pytest.fixture(scope="module", params=list(LAYOUTS))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(resolve(make_twin(request.param, tmp_path_factory.mktemp("twin")).folder))


@pytest.fixture(scope="module")
def written(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "twin.gguf"
    export_gguf(source, path, StoredType.F32)
    return path


def test_weights_are_the_same_bits_and_logits_agree(source: Checkpoint, written: Path) -> None:
    back, original = load(written), load(Path(source.where).parent)
    for (name, ours), theirs in zip(back.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    sizes = [10, PROMPT_TOKENS - 10]  # where a tensor lies in memory may change the last bits of a product
    torch.testing.assert_close(run(back, sizes), run(original, sizes), atol=1e-5, rtol=0)


def test_layers_read_back_as_they_were(source: Checkpoint, written: Path) -> None:
    back = open_checkpoint(resolve(written)).config
    for layer, original in zip(back.layers, source.config.layers, strict=True):
        assert layer.rope == original.rope
        assert (layer.window, layer.kv_layer, layer.value_is_key) == (
            original.window, original.kv_layer, original.value_is_key if original.writes_kv else layer.value_is_key,
        )  # fmt: skip
        assert layer.sparsity_cutoff == pytest.approx(original.sparsity_cutoff)


def test_names_are_those_of_the_formats_own_library(source: Checkpoint) -> None:
    arch = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[source.config.family]
    table = gguf.get_tensor_name_map(arch, source.config.num_layers)
    renamed = ("router.scale", "router.per_expert_scale", "altup_projections", "altup_unembed_projections")
    for hf in source.tensors:
        if not any(part in hf for part in renamed):  # the converter names these by hand
            stem = hf.removesuffix(".weight")
            found = {table.get_name(prefix + stem, try_suffixes=()) for prefix in PREFIXES} - {None}
            assert names.gguf_name(hf).rsplit(".", 1)[0] in found, hf


def test_split_expert_halves_are_joined(tmp_path: Path) -> None:
    folder = make_twin("26B-A4B", tmp_path / "twin").folder
    export_gguf(open_checkpoint(resolve(folder)), tmp_path / "fused.gguf", StoredType.F32)
    fused = GGUFFile.open(tmp_path / "fused.gguf")
    tensors = []
    for name, stored in fused.tensors.items():
        if "ffn_gate_up_exps" in name:
            gate, up = stored.dense().chunk(2, dim=1)
            tensors.append((name.replace("gate_up", "gate"), gate.contiguous(), StoredType.F32))
            tensors.append((name.replace("gate_up", "up"), up.contiguous(), StoredType.F32))
        else:
            tensors.append((name, stored.dense(), StoredType.F32))
    metadata = {key: value for key, value in fused.metadata.items() if not key.startswith("general.")}
    write_gguf(tmp_path / "split.gguf", "gemma4", metadata, tensors)
    split, whole = load(tmp_path / "split.gguf"), load(tmp_path / "fused.gguf")
    for (name, ours), theirs in zip(split.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_expert_half_without_the_other_is_named(tmp_path: Path) -> None:
    folder = make_twin("26B-A4B", tmp_path / "twin").folder
    source = open_checkpoint(resolve(folder))
    export_gguf(source, tmp_path / "fused.gguf", StoredType.F32)
    fused = GGUFFile.open(tmp_path / "fused.gguf")
    tensors = [
        (name.replace("gate_up_exps", "gate_exps"), stored.dense(), StoredType.F32)
        for name, stored in fused.tensors.items()
    ]
    metadata = {key: value for key, value in fused.metadata.items() if not key.startswith("general.")}
    write_gguf(tmp_path / "half.gguf", "gemma4", metadata, tensors)
    with pytest.raises(CheckpointError, match=r"ffn_gate_exps.weight has no blk.0.ffn_up_exps.weight"):
        load(tmp_path / "half.gguf")


def test_every_gemma_4_file_says_how_wide_its_per_layer_vectors_are(source: Checkpoint, written: Path) -> None:
    """llama.cpp refuses a Gemma 4 file without the key, also where there is no such table."""
    key = f"{source.config.family}.embedding_length_per_layer_input"
    width = 0 if source.config.per_layer is None else source.config.per_layer.hidden_size
    expected = None if source.config.family == "gemma3" else width
    assert GGUFFile.open(written).metadata.get(key) == expected
