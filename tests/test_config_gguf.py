"""GGUF metadata gives the model that the Hugging Face config gives, and bad metadata gives a named error."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.config.counts import count_parameters
from pocketgem.config.fields import MAX_LAYERS
from pocketgem.config.gguf import from_gguf
from pocketgem.config.hf import from_hf
from pocketgem.config.model import ModelConfig
from pocketgem.config.released import RELEASED, released_config
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError

Metadata = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
LAYOUTS = sorted(RELEASED)
FREQS = [1.0] * 64 + [1e30] * 192


def expected(name: str) -> ModelConfig:
    """The file of the text model knows neither towers nor whether there are encoders."""
    return dataclasses.replace(from_hf(released_config(name)), vision=None, audio=None, unified=False)


def as_gguf(config: ModelConfig) -> tuple[Metadata, Shapes]:
    """What llama.cpp's converter writes for this model: metadata, and the shapes its reader needs."""
    shared = config.num_layers - sum(layer.writes_kv for layer in config.layers)
    metadata: Metadata = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.head_count": config.layers[0].num_heads,
        "attention.sliding_window": config.layers[0].window,
        "attention.key_length": config.layers[-1].head_dim,
        "attention.value_length": config.layers[-1].head_dim,
        "rope.freq_base": 1e6,
    }
    if config.family == "gemma3":
        metadata |= gemma3_keys(config)
    else:
        metadata["attention.sliding_window_pattern"] = [layer.kind == "sliding" for layer in config.layers]
        metadata |= {"attention.shared_kv_layers": shared, "final_logit_softcapping": 30.0}
        metadata |= gemma3n_keys(config) if config.family == "gemma3n" else gemma4_keys(config)
    metadata = {f"{config.family}.{key}": value for key, value in metadata.items()}
    tokenizer = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1}
    return {"general.architecture": config.family, **metadata, **tokenizer}, tensor_shapes(config)


def gemma3_keys(config: ModelConfig) -> Metadata:
    """No layer pattern and no attention scale: readers know both."""
    keys: Metadata = {
        "attention.head_count_kv": config.layers[0].num_kv_heads,
        "feed_forward_length": config.layers[0].intermediate_size,
    }
    stretched = {"rope.scaling.type": "linear", "rope.scaling.factor": config.layers[5].rope.factor}
    return keys | (stretched if config.layers[5].rope.factor != 1.0 else {})


def gemma3n_keys(config: ModelConfig) -> Metadata:
    cutoffs = [layer.sparsity_cutoff for layer in config.layers]
    return {
        "attention.head_count_kv": 2,
        "feed_forward_length": [layer.intermediate_size for layer in config.layers],
        "activation_sparsity_scale": [-math.inf if cutoff is None else cutoff for cutoff in cutoffs],
        "altup.active_idx": 0,
        "altup.num_inputs": 4,
        "embedding_length_per_layer_input": 256,
    }


def gemma4_keys(config: ModelConfig) -> Metadata:
    keys: Metadata = {
        "attention.head_count_kv": [layer.num_kv_heads for layer in config.layers],
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "feed_forward_length": [layer.intermediate_size for layer in config.layers],
        "rope.freq_base_swa": 1e4,
        "embedding_length_per_layer_input": config.per_layer.hidden_size if config.per_layer else 0,
    }
    if config.experts is not None:
        keys |= {"expert_count": config.experts.num_experts, "expert_used_count": config.experts.top_k}
        keys["expert_feed_forward_length"] = config.experts.intermediate_size
    return keys


def tensor_shapes(config: ModelConfig) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (config.vocab_size, config.hidden_size)}
    if config.per_layer is not None:
        packed = config.num_layers * config.per_layer.hidden_size
        shapes["per_layer_token_embd.weight"] = (config.per_layer.vocab_size, packed)
    if config.altup is not None:
        shapes["blk.0.laurel_l.weight"] = (config.altup.laurel_rank, config.hidden_size)
    for layer in config.layers:
        if layer.writes_kv and not layer.value_is_key:
            shapes[f"blk.{layer.index}.attn_v.weight"] = (layer.num_kv_heads * layer.head_dim, config.hidden_size)
    return shapes


# --- the same model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_metadata_gives_the_released_model(name: str) -> None:
    metadata, shapes = as_gguf(expected(name))
    assert from_gguf(metadata, shapes, FREQS) == expected(name)


def test_an_untied_head_is_a_tensor() -> None:
    metadata, shapes = as_gguf(expected("gemma-3-270m"))
    assert not from_gguf(metadata, shapes | {"output.weight": (262_144, 640)}).tied_head


def test_rope_freqs_say_how_many_pairs_turn() -> None:
    metadata, shapes = as_gguf(expected("gemma-4-E2B"))
    config = from_gguf(metadata, shapes, [1.0] * 32 + [1e30] * 224)
    assert (config.layers[4].rope.rotated_pairs, config.layers[3].rope.rotated_pairs) == (32, 128)
    with pytest.raises(FormatError, match=r"rope_freqs.weight is missing"):  # no guess: the file must say
        from_gguf(metadata, shapes)


def test_a_period_stands_for_a_pattern() -> None:
    metadata, shapes = as_gguf(expected("gemma-4-E2B"))
    metadata["gemma4.attention.sliding_window_pattern"] = 5
    assert from_gguf(metadata, shapes, FREQS) == expected("gemma-4-E2B")


def test_early_gemma3n_files_do_not_say_what_is_shared() -> None:
    metadata, shapes = as_gguf(expected("gemma-3n-E4B"))
    del metadata["gemma3n.attention.shared_kv_layers"]
    assert from_gguf(metadata, shapes) == expected("gemma-3n-E4B")


@pytest.mark.weights
def test_the_real_270m_file(real_model_path: Path) -> None:
    file = GGUFFile.open(real_model_path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = from_gguf(file.metadata, shapes)
    assert math.isclose(config.rms_norm_eps, 1e-6, rel_tol=1e-7)  # stored as float32
    assert dataclasses.replace(config, rms_norm_eps=1e-6) == expected("gemma-3-270m")
    assert count_parameters(config).total == sum(math.prod(shape) for shape in shapes.values())


# --- bad metadata -----------------------------------------------------------------------------------------------------

NOT_AN_INT = [-1, 1.5, "12", True, 2**63, 10**400, math.nan, [1, 2], b"12"]
NOT_A_NUMBER = [-1.0, "1", True, 10**400, math.nan, math.inf, [1.0]]
INT_KEYS = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_swa",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "embedding_length_per_layer_input",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
]
FLOAT_KEYS = ["attention.layer_norm_rms_epsilon", "final_logit_softcapping", "rope.freq_base", "rope.freq_base_swa"]


def refuse(key: str, value: object, kind: type[CheckpointError] = FormatError, name: str = "gemma-4-26B-A4B") -> None:
    metadata, shapes = as_gguf(expected(name))
    metadata[f"{metadata['general.architecture']}.{key}"] = value
    with pytest.raises(kind, match=key) as caught:
        from_gguf(metadata, shapes, FREQS, where="model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", NOT_AN_INT, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", INT_KEYS)
def test_not_an_int(key: str, value: object) -> None:
    refuse(key, value)


@pytest.mark.parametrize("value", NOT_A_NUMBER, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", FLOAT_KEYS)
def test_not_a_number(key: str, value: object) -> None:
    refuse(key, value)


@pytest.mark.parametrize("pattern", [[True] * 29, [1] * 30, "sliding", -1, [[True]] * 30, True, {}])
def test_bad_layer_patterns(pattern: object) -> None:
    refuse("attention.sliding_window_pattern", pattern)


@pytest.mark.parametrize("scales", [[1.6] * 31, [math.nan] * 30, [math.inf] * 30, ["1"] * 30, "1"])
def test_bad_sparsity_scales(scales: object) -> None:
    refuse("activation_sparsity_scale", scales, name="gemma-3n-E2B")


def test_valid_but_unsupported() -> None:
    refuse("attention.value_length", 128, UnsupportedError)
    refuse("rope.scaling.type", "yarn", UnsupportedError)


@pytest.mark.parametrize(
    "freqs",
    [[1.0] * 64, [1.0] * 64 + [2.0] * 192, [1e30] * 192 + [1.0] * 64, [math.nan] * 256, [1.0] * 64 + [math.nan] * 192],
)
def test_rope_freqs_of_another_form(freqs: list[float]) -> None:
    metadata, shapes = as_gguf(expected("gemma-4-E2B"))
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        from_gguf(metadata, shapes, freqs)


@pytest.mark.parametrize("architecture", [None, "llama", "gemma2", "gemma4-assistant", 4, "x" * 10_000])
def test_another_architecture(architecture: object) -> None:
    with pytest.raises(CheckpointError, match=r"architecture") as caught:
        from_gguf({"general.architecture": architecture}, {})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gemma-3-270m", "token_embd.weight"),
        ("gemma-4-E2B", "per_layer_token_embd.weight"),
        ("gemma-3n-E2B", "blk.0.laurel_l.weight"),
    ],
)
@pytest.mark.parametrize("shape", [None, (), (64,), (0, 64), (10**12, 64), (64, 64, 64)])
def test_tensors_that_tell_a_size(name: str, tensor: str, shape: tuple[int, ...] | None) -> None:
    metadata, shapes = as_gguf(expected(name))
    del shapes[tensor]
    with pytest.raises(FormatError, match=tensor):
        from_gguf(metadata, shapes if shape is None else shapes | {tensor: shape}, FREQS)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.booleans() | st.integers(-1, 9) | st.floats(), max_size=40),
)


@st.composite
def broken_metadata(draw: st.DrawFn) -> tuple[Metadata, Shapes]:
    metadata, shapes = as_gguf(expected(draw(st.sampled_from(LAYOUTS))))
    for key in draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=4)):
        metadata[key] = draw(VALUES)
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=2)):
        shapes[name] = tuple(draw(st.lists(st.integers(-1, 300_000), max_size=3)))
    return metadata, shapes


def outcome(metadata: Metadata, shapes: Shapes, freqs: list[float] | None) -> ModelConfig | str:
    try:
        return from_gguf(metadata, shapes, freqs)
    except CheckpointError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(broken_metadata(), st.none() | st.lists(st.floats() | st.sampled_from([1.0, 1e30]), max_size=260))
def test_broken_metadata_gives_a_model_or_a_named_error(
    broken: tuple[Metadata, Shapes], freqs: list[float] | None
) -> None:
    result = outcome(*broken, freqs)
    if isinstance(result, str):
        assert "\n" not in result
    else:
        assert 1 <= result.num_layers <= MAX_LAYERS
