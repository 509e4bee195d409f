"""Weights that stay in blocks where torch computes: the values of whole matrices, in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketgem import LLM
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import PromptError
from pocketgem.memory.options import outgrows
from pocketgem.model import blocks as blocks_module
from pocketgem.model.blocks import BlockEmbedding, BlockExperts, BlockLinear, Blocks
from pocketgem.model.build import build_model
from pocketgem.parts import fast_dtype
from tests.test_parity import PROMPT_TOKENS, run
from tests.text_fixtures import gemma4_metadata
from tests.twins import BLOCKS, LAYOUTS, make_twin


def in_blocks(layout: str, folder: Path, type: StoredType = StoredType.Q4_0) -> Checkpoint:
    source = open_checkpoint(resolve(make_twin(layout, folder / "twin", BLOCKS).folder))
    export_gguf(source, folder / "twin.gguf", type)
    return open_checkpoint(resolve(folder / "twin.gguf"))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_same_logits_as_whole_matrices(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "PIECE", 1000)  # several pieces a matrix, the last one shorter
    checkpoint = in_blocks(layout, tmp_path)
    whole = build_model(checkpoint, torch.float32)
    kept = build_model(checkpoint, torch.float32, blocks=True)
    kinds = [type(module) for module in kept.modules()]
    assert kinds.count(BlockLinear) > 4 * kept.config.num_layers
    assert BlockEmbedding in kinds
    assert (BlockExperts in kinds) == (kept.config.experts is not None)
    # a piece of a matrix is another shape, for which some processors' products sum in another order
    torch.testing.assert_close(run(kept, [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("type", [StoredType.Q4_1, StoredType.Q8_0, StoredType.Q5_0])
def test_other_types(type: StoredType, tmp_path: Path) -> None:
    checkpoint = in_blocks("gemma3", tmp_path, type)
    whole, kept = (build_model(checkpoint, torch.bfloat16, blocks=kept) for kept in (False, True))
    torch.testing.assert_close(run(kept, [PROMPT_TOKENS]), run(whole, [PROMPT_TOKENS]), atol=0.1, rtol=0.02)


def test_a_matrix_takes_the_files_bytes_and_no_more(tmp_path: Path) -> None:
    checkpoint = in_blocks("E4B", tmp_path)
    kept = build_model(checkpoint, torch.float32, blocks=True)
    held = {id(module): module for module in kept.modules() if isinstance(module, Blocks)}.values()
    stored = {
        tensor.nbytes
        for name, tensor in checkpoint.tensors.items()
        if tensor.type is StoredType.Q4_0 and name != "embed_tokens_per_layer.weight"
    }
    assert {module.data.nbytes for module in held} == stored
    assert kept.lm_head.blocks is kept.embed_tokens.blocks, "a tied head is held twice"


def test_a_whole_run_from_blocks(tmp_path: Path) -> None:
    source = open_checkpoint(resolve(make_twin("E2B", tmp_path / "twin", BLOCKS).folder))
    export_gguf(source, tmp_path / "e2b.gguf", StoredType.Q4_0, vocabulary=gemma4_metadata())
    ids = [
        LLM.load(tmp_path / "e2b.gguf", dtype=dtype).generate("hello world", max_tokens=12, temperature=0).ids
        for dtype in ("stored", fast_dtype())
    ]
    assert ids[0] == ids[1]


def test_a_word_that_is_no_type_is_refused(tmp_path: Path) -> None:
    folder = make_twin("E2B", tmp_path).folder
    with pytest.raises(PromptError, match="expected a floating type of torch, 'stored' or None"):
        LLM.load(folder, dtype="int4")


def test_weights_outgrow_a_card_that_has_no_room_for_them_unpacked(tmp_path: Path) -> None:
    checkpoint = in_blocks("E2B", tmp_path)
    assert not outgrows(checkpoint, 8 << 30)
    assert outgrows(checkpoint, 1 << 20)
    assert not outgrows(open_checkpoint(resolve(tmp_path / "twin")), 1 << 20), "a folder has no blocks to keep"
