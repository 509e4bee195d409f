"""Synthetic checkpoints have the right shapes, load as real ones do, stay numbers, and say what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketgem import LLM, SamplingParams
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.synth import Dice, Routing, synthesize, write_synthetic
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.config import ModelConfig, decoder_shapes, from_hf, released_config
from pocketgem.errors import CheckpointError, UnsupportedError
from pocketgem.model.experts import Router

SMALL = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "global_head_dim": 128, "num_global_key_value_heads": 1, "sliding_window": 16, "vocab_size": 1024,
    "vocab_size_per_layer_input": 1024, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64,
    "laurel_rank": 32,
}  # fmt: skip
LAYERS = {
    "gemma-4-E2B": (10, 5),
    "gemma-4-26B-A4B": (6, 0),
    "gemma-4-31B": (6, 0),
    "gemma-3n-E2B": (10, 5),
    "gemma-3-4b": (6, 0),
}


def small(layout: str) -> ModelConfig:
    """The layout with narrow, few layers: its structure at a size for tests."""
    released = released_config(layout)
    text = released.get("text_config", released)
    assert isinstance(text, dict)
    count, shared = LAYERS[layout]
    text |= {key: value for key, value in SMALL.items() if text.get(key) is not None}
    text |= {"num_hidden_layers": count, "num_kv_shared_layers": shared}
    text.pop("activation_sparsity_pattern", None)
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:count]
    text["intermediate_size"] = 256
    return from_hf({**text, "model_type": text["model_type"]}, layout)


@pytest.mark.parametrize("layout", list(LAYERS))
@pytest.mark.parametrize("type", [StoredType.Q4_0, StoredType.Q8_0])
def test_every_layout_loads_and_writes_ordinary_numbers(tmp_path: Path, layout: str, type: StoredType) -> None:
    config = small(layout)
    write_synthetic(config, layout, tmp_path / "x.gguf", type)
    back = open_checkpoint(resolve(tmp_path / "x.gguf"))
    shapes = {name: one.shape for name, one in back.tensors.items()}
    assert shapes.items() >= decoder_shapes(config).items()
    assert all("self_attn" in name for name in shapes.keys() - decoder_shapes(config).keys())
    assert [layer.rope for layer in back.config.layers] == [layer.rope for layer in config.layers]
    llm = LLM.load(tmp_path / "x.gguf", dtype=torch.float32)
    answer = llm.generate(list(range(300, 350)), params=SamplingParams(max_tokens=5, logprobs=1))
    assert len(answer.ids) == 5
    assert llm.generate("w000001 hello", params=SamplingParams(max_tokens=2)).ids
    score = torch.tensor(llm.score(list(range(300, 350))).logprobs)
    assert -40 < score.mean() < -2  # noise, neither certain nor broken


def test_it_says_what_it_is_and_repeats(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(small("gemma-4-E2B"), "gemma-4-E2B", tmp_path / name, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    assert GGUFFile.open(tmp_path / "a").metadata["general.name"] == "synthetic gemma-4-E2B (random weights)"


@pytest.mark.parametrize("type", [StoredType.Q4_0, StoredType.Q8_0, StoredType.Q6_K])
def test_weights_have_the_spread_asked_for(tmp_path: Path, type: StoredType) -> None:
    from pocketgem.checkpoint.dequant import dequantize

    values = dequantize(Dice(0).blocks(type, (64, 1024), 0.25).view(-1, type.type_size), type)
    assert values.std().item() == pytest.approx(0.25, rel=0.03)
    assert abs(values.mean().item()) < 0.03  # a 4-bit value has one more step below zero than above


def test_gemma_3n_has_a_row_for_every_token_as_llama_cpp_insists(tmp_path: Path) -> None:
    config = small("gemma-3n-E2B")
    wider = replace(config, vocab_size=1280)
    write_synthetic(wider, "gemma-3n-E2B", tmp_path / "x.gguf")
    assert GGUFFile.open(tmp_path / "x.gguf").tensors["per_layer_token_embd.weight"].shape[0] == 1280


def test_skewed_routing_is_like_zipfs_law() -> None:
    rows = torch.randn(4000, 256, generator=torch.Generator().manual_seed(1))
    chosen = (rows @ Dice(0).skewed_router((128, 256)).T).topk(8).indices.flatten()
    use = chosen.bincount(minlength=128).sort(descending=True).values / chosen.numel()
    assert 0.7 < use[:43].sum() < 0.9  # of even routing 0.34
    assert use[7] > 1.5 * use[23] > 4.5 * use[71] > 0


def test_tokens_of_one_text_choose_experts_of_their_own(tmp_path: Path) -> None:
    write_synthetic(small("gemma-4-26B-A4B"), "gemma-4-26B-A4B", tmp_path / "x.gguf")
    llm, chosen = LLM.load(tmp_path / "x.gguf", dtype=torch.float32), list[torch.Tensor]()
    for module in llm.model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _, __, out: chosen.append(out[1]))
    llm.score(list(range(300, 400)))
    for indices in chosen:  # [rows, 2] of 4 experts: each is near half of the rows
        assert (indices.flatten().bincount(minlength=4) / len(indices)).sub(0.5).abs().max() < 0.2


def test_a_file_of_skewed_routing_says_so_and_runs(tmp_path: Path) -> None:
    config, path = small("gemma-4-26B-A4B"), tmp_path / "x.gguf"
    write_synthetic(config, "gemma-4-26B-A4B", path, routing=Routing.SKEWED)
    assert GGUFFile.open(path).metadata["general.name"] == "synthetic gemma-4-26B-A4B (random weights, skewed routing)"
    assert LLM.load(path, dtype=torch.float32).generate([300, 301], params=SamplingParams(max_tokens=2)).ids
    with pytest.raises(UnsupportedError, match="no experts"):
        synthesize("gemma-3-270m", tmp_path / "y.gguf", routing=Routing.SKEWED)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="rows of 640 weights do not fill blocks of 256"):
        Dice(0).blocks(StoredType.Q6_K, (2, 640), 1.0)
    with pytest.raises(CheckpointError, match="gemma-4-E2B"):
        synthesize("gemma-9", tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError, match="not Q2_K"):
        synthesize("gemma-3-270m", tmp_path / "x.gguf", StoredType.Q2_K)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_and_does_not_overwrite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.gguf"
    assert main(["synth", "gemma-3-270m", str(target)]) == 0
    checkpoint = open_checkpoint(resolve(target))
    released = decoder_shapes(from_hf(released_config("gemma-3-270m")))
    assert {name: one.shape for name, one in checkpoint.tensors.items()} == released
    before = target.stat().st_mtime_ns
    assert main(["synth", "gemma-3-270m", str(target)]) == 2
    assert "already there" in capfd.readouterr().err
    assert target.stat().st_mtime_ns == before
    assert main(["synth", "gemma-9", str(tmp_path / "y.gguf")]) == 2
