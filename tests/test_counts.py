"""Parameter counts and tensor shapes of every released layout, against transformers' models built without memory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.gemma3n import modeling_gemma3n

from pocketgem.config.counts import ParameterCounts, count, count_parameters, decoder_shapes
from pocketgem.config.hf import from_hf
from pocketgem.config.model import ModelConfig
from pocketgem.config.released import RELEASED, released_config
from pocketgem.config.towers import audio_shapes, vision_shapes
from pocketgem.errors import CheckpointError, FormatError

Shapes = dict[str, tuple[int, ...]]
LAYOUTS = sorted(RELEASED)
SHARED = Path(os.environ.get("POCKETGEM_SHARED", Path(__file__).parents[2] / "shared"))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What transformers says of one layout: stored tensors under our names, and trained parameters."""

    text: Shapes
    towers: Shapes
    parameters: int


@cache
def config_of(name: str) -> ModelConfig:
    return from_hf(released_config(name), where=name)


@cache
def counts_of(name: str) -> ParameterCounts:
    return count_parameters(config_of(name))


@cache
def reference(name: str) -> Reference:
    modules = gemma3n_modules(name) if name.startswith("gemma-3n") else {"": whole_model(name)}
    stored: Shapes = {}
    for prefix, module in modules.items():
        stored |= {prefix + key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    stored.pop("lm_head.weight")  # tied
    names = {key: our_name(name, key) for key in stored}
    text = {names[key]: shape for key, shape in stored.items() if not is_tower(names[key])}
    towers = {names[key]: shape for key, shape in stored.items() if is_tower(names[key])}
    trained = sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
    return Reference(text, towers, trained)


def whole_model(name: str) -> nn.Module:
    config: dict[str, Any] = released_config(name)
    (architecture,) = config.pop("architectures")
    model_class = getattr(transformers, architecture)
    with torch.device("meta"):
        model: nn.Module = model_class(model_class.config_class(**config))
    return model


def gemma3n_modules(name: str) -> dict[str, nn.Module]:
    """Gemma 3n in parts: its vision tower needs the library timm, the rest does not."""
    config: dict[str, Any] = released_config(name)
    text = transformers.Gemma3nTextConfig(**config["text_config"])
    audio = transformers.Gemma3nAudioConfig(**config["audio_config"])
    vision = transformers.Gemma3nVisionConfig(**config["vision_config"])
    with torch.device("meta"):
        return {
            "": transformers.Gemma3nForCausalLM(text),
            "model.audio_tower.": modeling_gemma3n.Gemma3nAudioEncoder(audio),
            "model.embed_audio.": modeling_gemma3n.Gemma3nMultimodalEmbedder(audio, text),
            "model.embed_vision.": modeling_gemma3n.Gemma3nMultimodalEmbedder(vision, text),
        }


def our_name(layout: str, key: str) -> str:
    """transformers renames the 12B's image embedder on loading; the files say ``vision_embedder``."""
    name = key.removeprefix("model.").removeprefix("language_model.")
    if layout != "gemma-4-12B" or not name.startswith("embed_vision."):
        return name
    name = name.replace("embed_vision.", "vision_embedder.")
    return name.replace("vision_embedder.multimodal_embedder.", "embed_vision.")


def is_tower(name: str) -> bool:
    roots = ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder", "multi_modal_projector")
    return name.startswith(roots)


# --- shapes and totals equal the reference's --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_text_tensors_are_the_reference_s(name: str) -> None:
    assert decoder_shapes(config_of(name)) == reference(name).text


@pytest.mark.parametrize("name", LAYOUTS)
def test_tower_tensors_are_the_reference_s(name: str) -> None:
    config = config_of(name)
    assert vision_shapes(config) | audio_shapes(config) == reference(name).towers


@pytest.mark.parametrize("name", LAYOUTS)
def test_totals_are_the_reference_s(name: str) -> None:
    """As ``parameters()`` counts: a tied head once, buffers (layer_scalar, clip bounds, tower statistics) never."""
    assert counts_of(name).total == reference(name).parameters


@pytest.mark.parametrize("name", LAYOUTS)
def test_groups_partition_the_text_tensors(name: str) -> None:
    counts = counts_of(name)
    assert counts.text == count(decoder_shapes(config_of(name)))
    assert counts.head == 0
    assert counts.effective == counts.text - counts.per_layer_table - counts.experts
    assert counts.active <= counts.text


def test_only_gemma3n_has_a_tower_it_cannot_count() -> None:
    uncounted = {name: counts_of(name).not_counted for name in LAYOUTS if counts_of(name).not_counted}
    towers = ("vision tower mobilenetv5_300m_enc",)
    assert uncounted == {"gemma-3n-E2B": towers, "gemma-3n-E4B": towers}
    assert vision_shapes(config_of("gemma-3n-E2B")).keys() == {  # its projector is counted
        "embed_vision.embedding.weight",
        "embed_vision.embedding_projection.weight",
        "embed_vision.hard_embedding_norm.weight",
        "embed_vision.soft_embedding_norm.weight",
    }


# --- published figures ------------------------------------------------------------------------------------------------

# (layout, what is counted, published figure in 1e9). The cards round; so does the test, to the digits given.
PUBLISHED = [
    ("gemma-4-E2B", "total", "5.1"),
    ("gemma-4-E2B", "effective", "2.3"),
    ("gemma-4-E4B", "total", "8"),
    ("gemma-4-12B", "total", "12"),
    ("gemma-4-12B", "total", "11.96"),
    ("gemma-4-26B-A4B", "text", "25.2"),
    ("gemma-4-26B-A4B", "active", "3.8"),
    ("gemma-4-31B", "text", "30.7"),
    ("gemma-3-270m", "total", "0.268"),
    ("gemma-3-270m", "total", "0.27"),
    ("gemma-3-270m", "embedding", "0.17"),
    ("gemma-3-270m", "core", "0.10"),
    ("gemma-3-1b", "total", "1.0"),
    ("gemma-3-4b", "total", "4.3"),
    ("gemma-3-12b", "total", "12.2"),
    ("gemma-3-27b", "total", "27.4"),
]


@pytest.mark.parametrize(("name", "group", "published"), PUBLISHED)
def test_published_figures(name: str, group: str, published: str) -> None:
    digits = len(published.partition(".")[2])
    assert f"{getattr(counts_of(name), group) / 1e9:.{digits}f}" == published


def test_e4b_effective_is_core_and_embedding() -> None:
    """Google says 4.5 B and not how it counts; by our definition, which gives E2B its 2.3 B, it is 4.64 B."""
    assert f"{counts_of('gemma-4-E4B').effective / 1e9:.2f}" == "4.64"


# Gemma 4 by group, in 1e9: embedding, per-layer table, core, routed experts, text, vision, audio.
GROUPS = {
    "gemma-4-E2B": (0.403, 2.349, 1.877, 0.0, 4.629, 0.1685, 0.3072),
    "gemma-4-E4B": (0.671, 2.819, 3.973, 0.0, 7.463, 0.1693, 0.3088),
    "gemma-4-12B": (1.007, 0.0, 10.901, 0.0, 11.907, 0.0499, 0.0025),
    "gemma-4-26B-A4B": (0.738, 0.0, 1.657, 22.838, 25.233, 0.5728, 0.0),
    "gemma-4-31B": (1.409, 0.0, 29.288, 0.0, 30.697, 0.5757, 0.0),
}


@pytest.mark.parametrize(("name", "expected"), GROUPS.items())
def test_gemma4_groups(name: str, expected: tuple[float, ...]) -> None:
    counts = counts_of(name)
    text = (counts.embedding, counts.per_layer_table, counts.core, counts.experts, counts.text)
    assert [round(group / 1e9, 3) for group in text] == list(expected[:5])
    assert [round(group / 1e9, 4) for group in (counts.vision, counts.audio)] == list(expected[5:])


def test_gemma3n_text_parts() -> None:
    """The published 5 B and 8 B include a vision tower of 0.3 B (its name says so) that is not counted here."""
    small, large = counts_of("gemma-3n-E2B"), counts_of("gemma-3n-E4B")
    assert (small.text, large.text) == (4_435_182_688, 6_835_235_568)
    assert [f"{(counts.total + 0.3e9) / 1e9:.0f}" for counts in (small, large)] == ["5", "8"]


# --- what a config changes --------------------------------------------------------------------------------------------


def test_layers_that_share_keys_have_queries_only() -> None:
    shapes = decoder_shapes(config_of("gemma-4-E2B"))
    projections = {name.split(".")[-2] for name in shapes if name.startswith("layers.15.self_attn.")}
    assert projections == {"q_proj", "q_norm", "o_proj"}
    assert shapes["layers.14.self_attn.k_proj.weight"] == (512, 1536)
    assert shapes["layers.15.mlp.gate_proj.weight"] == (12_288, 1536)


def test_layers_whose_values_are_keys_have_no_value_projection() -> None:
    shapes = decoder_shapes(config_of("gemma-4-31B"))
    assert "layers.5.self_attn.v_proj.weight" not in shapes
    assert shapes["layers.5.self_attn.k_proj.weight"] == (4 * 512, 5376)
    assert shapes["layers.4.self_attn.v_proj.weight"] == (16 * 256, 5376)


def test_an_untied_head_counts_apart() -> None:
    tied = config_of("gemma-3-270m")
    untied = count_parameters(dataclasses.replace(tied, tied_head=False))
    assert untied.head == untied.embedding == 262_144 * 640
    assert untied.effective == counts_of("gemma-3-270m").effective + untied.head


def test_text_alone_counts_no_towers() -> None:
    alone = dataclasses.replace(config_of("gemma-4-E2B"), vision=None, audio=None)
    counts = count_parameters(alone)
    assert (counts.vision, counts.audio, counts.total) == (0, 0, counts.text)


def test_buffers_are_listed_but_not_counted() -> None:
    shapes = decoder_shapes(config_of("gemma-4-31B"))
    assert shapes["layers.0.layer_scalar"] == (1,)
    assert count(shapes) == sum(math.prod(shape) for shape in shapes.values()) - 60


TOWER_KEYS = [
    ("gemma-3-4b", "vision_config", "image_size"),
    ("gemma-3-4b", "vision_config", "num_hidden_layers"),
    ("gemma-3n-E2B", "audio_config", "sscp_conv_channel_size"),
    ("gemma-3n-E2B", "audio_config", "conf_num_hidden_layers"),
    ("gemma-3n-E2B", "vision_config", "architecture"),
    ("gemma-4-E2B", "vision_config", "use_clipped_linears"),
    ("gemma-4-E2B", "vision_config", "num_hidden_layers"),
    ("gemma-4-E2B", "audio_config", "subsampling_conv_channels"),
    ("gemma-4-E2B", "audio_config", "num_attention_heads"),
    ("gemma-4-12B", "vision_config", "patch_size"),
    ("gemma-4-12B", "audio_config", "audio_embed_dim"),
]


@pytest.mark.parametrize("value", [-1, 10**12, 10**5000, math.nan, [1, 2, 3], {"a": 1}], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(("name", "section", "key"), TOWER_KEYS)
def test_bad_tower_values_are_named(name: str, section: str, key: str, value: object) -> None:
    config: dict[str, Any] = released_config(name)
    config[section][key] = value
    with pytest.raises(FormatError, match=f"{section}: {key} "):
        count_parameters(from_hf(config))


# --- the released configs themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("gemma-4")])
def test_released_configs_equal_the_shared_ones(name: str) -> None:
    path = SHARED / "configs" / f"{name}.json"
    if not path.is_file():
        pytest.skip("no shared configs beside this checkout (set POCKETGEM_SHARED)")
    assert released_config(name) == json.loads(path.read_text())


def test_released_names_ignore_case_and_come_fresh() -> None:
    first: dict[str, Any] = released_config("GEMMA-4-e2b")
    first["text_config"]["layer_types"].clear()
    second: dict[str, Any] = released_config("gemma-4-E2B")
    assert len(second["text_config"]["layer_types"]) == 35


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'gemma-5'.*gemma-3-270m.*gemma-4-31B"):
        released_config("gemma-5")
