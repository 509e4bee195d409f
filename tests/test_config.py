"""Every spelling of a config gives the same model, and that model is the released one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import transformers

from pocketgem.config.hf import from_hf
from pocketgem.config.model import ModelConfig, Rope
from pocketgem.config.released import RELEASED, released_config

Json = dict[str, Any]
LAYOUTS = sorted(RELEASED)
MULTIMODAL = [name for name in LAYOUTS if "text_config" in RELEASED[name]]
GEMMA3 = [name for name in LAYOUTS if name.startswith("gemma-3-")]


def text_of(config: Json) -> Json:
    """The text part, wherever it stands; writing to it changes ``config``."""
    part: Json = config.get("text_config", config)
    return part


def without_towers(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, vision=None, audio=None)


# --- one model, many spellings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_diff", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_transformers_saves_is_the_same_model(name: str, use_diff: bool) -> None:
    """transformers 5 writes ``rope_parameters`` and, for Gemma 4, ``per_layer_config`` by zero-padded layer number."""
    config: Json = released_config(name)
    (architecture,) = config.pop("architectures")
    saved = json.loads(getattr(transformers, architecture).config_class(**config).to_json_string(use_diff=use_diff))
    assert without_towers(from_hf(saved)) == without_towers(from_hf(released_config(name)))


def test_transformers_really_writes_per_layer_config() -> None:
    """Should it stop, the test above would no longer read that spelling."""
    saved = json.loads(transformers.Gemma4TextConfig(num_hidden_layers=12).to_json_string())
    assert saved["per_layer_config"] == {"05": {"head_dim": 512}, "11": {"head_dim": 512}}


@pytest.mark.parametrize("name", GEMMA3)
def test_gemma3_in_the_hub_s_old_spelling(name: str) -> None:
    config: Json = released_config(name)
    expected = from_hf(config)
    text = text_of(config)
    full = text.pop("rope_parameters")["full_attention"]
    del text["layer_types"]
    text |= {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "sliding_window_pattern": 6}
    text["rope_scaling"] = {key: full[key] for key in ("rope_type", "factor")} if "factor" in full else None
    assert from_hf(config) == expected


def test_the_oldest_rope_scaling_says_type() -> None:
    config: Json = released_config("gemma-3-4b")
    expected = from_hf(config)
    del config["text_config"]["rope_parameters"]
    config["text_config"]["rope_scaling"] = {"type": "linear", "factor": 8.0}
    assert from_hf(config) == expected


TEXT_CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma3": transformers.Gemma3TextConfig,
    "gemma3n": transformers.Gemma3nTextConfig,
    "gemma4": transformers.Gemma4TextConfig,
    "gemma4_unified": transformers.Gemma4UnifiedTextConfig,
}
ALWAYS_WRITTEN = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_global_key_value_heads"}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_sparse_text_config_means_the_reference_s_defaults(name: str) -> None:
    """Early multimodal files leave out of ``text_config`` all that equals the class default, even ``model_type``."""
    config: Json = released_config(name)
    expected = from_hf(config)
    text, default = config["text_config"], json.loads(TEXT_CONFIGS[config["model_type"]]().to_json_string(False))
    missing = {key for key in set(text) - ALWAYS_WRITTEN if key not in default or default[key] == text[key]}
    assert {"model_type", "rms_norm_eps"} <= missing
    for key in missing:
        del text[key]
    assert from_hf(config) == expected


def test_null_means_absent() -> None:
    config: Json = released_config("gemma-4-31B")
    text = config["text_config"]
    text |= {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": None, "use_double_wide_mlp": None}
    assert from_hf(config) == from_hf(released_config("gemma-4-31B"))


def test_an_untied_head_and_lists_of_stop_ids() -> None:
    config: Json = released_config("gemma-4-E2B")
    config |= {"eos_token_id": [1, 106, 50]}
    config["text_config"] |= {"tie_word_embeddings": False, "bos_token_id": 7}
    read = from_hf(config)
    assert (read.eos_ids, read.bos_id, read.tied_head) == ((1, 106, 50), 7, False)


# --- what single layouts are ------------------------------------------------------------------------------------------


# What no tensor's shape tells: (window, context, every n-th layer sees all, stretch of its positions).
REACH = {
    "gemma-3-270m": (512, 32_768, 6, 1.0),
    "gemma-3-1b": (512, 32_768, 6, 1.0),
    "gemma-3-4b": (1024, 131_072, 6, 8.0),
    "gemma-3-12b": (1024, 131_072, 6, 8.0),
    "gemma-3-27b": (1024, 131_072, 6, 8.0),
    "gemma-3n-E2B": (512, 32_768, 5, 1.0),
    "gemma-3n-E4B": (512, 32_768, 5, 1.0),
    "gemma-4-E2B": (512, 131_072, 5, 1.0),
    "gemma-4-E4B": (512, 131_072, 6, 1.0),
    "gemma-4-12B": (1024, 262_144, 6, 1.0),
    "gemma-4-26B-A4B": (1024, 262_144, 6, 1.0),
    "gemma-4-31B": (1024, 262_144, 6, 1.0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_how_far_a_layout_sees(name: str) -> None:
    config = from_hf(released_config(name))
    window, context, period, stretch = REACH[name]
    full = [layer for layer in config.layers if layer.kind == "full"]
    assert [layer.index for layer in full] == list(range(period - 1, config.num_layers, period))
    assert (config.layers[0].window, config.max_position_embeddings) == (window, context)
    assert {layer.rope.factor for layer in full} == {stretch}


def test_e2b_layer_by_layer() -> None:
    config = from_hf(released_config("gemma-4-E2B"))
    assert [layer.index for layer in config.layers if layer.kind == "full"] == [4, 9, 14, 19, 24, 29, 34]
    assert [layer.kv_layer for layer in config.layers[13:21]] == [13, 14, 13, 13, 13, 13, 14, 13]
    assert (config.last_writer, config.num_layers) == (14, 35)
    full, sliding = config.layers[4], config.layers[3]
    assert full.rope == Rope(theta=1e6, head_dim=512, rotated_pairs=64)
    assert sliding.rope == Rope(theta=1e4, head_dim=256, rotated_pairs=128)
    assert (full.window, sliding.window, full.head_dim, sliding.head_dim) == (None, 512, 512, 256)
    assert (config.layers[14].intermediate_size, config.layers[15].intermediate_size) == (6144, 12_288)
    assert config.attention_scale == 1.0


def test_26b_has_experts_and_31b_few_full_heads() -> None:
    config = from_hf(released_config("gemma-4-26B-A4B"))
    assert config.experts is not None
    assert (config.experts.num_experts, config.experts.top_k, config.experts.intermediate_size) == (128, 8, 704)
    full = from_hf(released_config("gemma-4-31B")).layers[5]
    assert (full.num_kv_heads, full.num_heads, full.value_is_key) == (4, 32, True)


def test_gemma3_scales_and_stretches() -> None:
    small, large = from_hf(released_config("gemma-3-1b")), from_hf(released_config("gemma-3-27b"))
    assert (small.attention_scale, large.attention_scale) == (256**-0.5, 168**-0.5)
    assert [layer.rope.factor for layer in large.layers[4:6]] == [1.0, 8.0]
    assert small.final_logit_softcapping is None


def test_gemma3n_shares_and_drops() -> None:
    config = from_hf(released_config("gemma-3n-E4B"))
    assert {layer.kv_layer for layer in config.layers[20:]} == {18, 19}
    cutoff = config.layers[9].sparsity_cutoff
    assert cutoff is not None
    assert math.isclose(cutoff, 1.6448536269514722)  # 95 % of a standard normal lie below
    assert config.layers[10].sparsity_cutoff is None


def test_gemma4_forces_its_last_layer_to_see_all() -> None:
    config: Json = released_config("gemma-4-E4B")
    config["text_config"]["layer_types"][-1] = "sliding_attention"
    assert from_hf(config) == from_hf(released_config("gemma-4-E4B"))
