"""A model whose matrices are read from the file whenever they are used computes what the dense model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketgem.checkpoint import stream
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.convert.gate import hidden_states
from pocketgem.model import streamed
from pocketgem.model.build import build_model
from pocketgem.model.gemma import Gemma
from pocketgem.model.streamed import build_streamed
from tests.twins import BLOCKS, LAYOUTS, VOCAB, make_twin


@pytest.fixture(scope="module", params=list(LAYOUTS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twin(request.param, tmp_path_factory.mktemp("twin"), BLOCKS).folder


@torch.inference_mode()
def logits(model: Gemma) -> torch.Tensor:
    ids = torch.randint(0, VOCAB - 20, (21,), generator=torch.Generator().manual_seed(5)).tolist()
    return model.logits(hidden_states(model, ids))


def agree(checkpoint: Checkpoint) -> None:
    expected = logits(build_model(checkpoint, torch.float32))
    torch.testing.assert_close(logits(build_streamed(checkpoint)), expected, atol=1e-4, rtol=1e-4)


def test_a_folder_streamed_is_the_dense_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "CHUNK", 1000)  # many pieces, the last one shorter
    agree(open_checkpoint(resolve(folder)))


def test_blocks_streamed_are_the_dense_model(folder: Path, tmp_path: Path) -> None:
    export_gguf(open_checkpoint(resolve(folder)), tmp_path / "x.gguf", StoredType.Q4_0)
    agree(open_checkpoint(resolve(tmp_path / "x.gguf")))


def test_pieces_cover_a_tensor_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 700)
    for one in stream.source_tensors(open_checkpoint(resolve(folder))):
        if one.values is None:
            seen = [stream.read_values(*piece) for piece in one.pieces()]
            whole = torch.cat([part.dense().flatten() for part in one.stored])
            assert torch.equal(torch.cat(seen).flatten(), whole)
            assert whole.numel() == one.numel
