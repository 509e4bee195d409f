"""Configs that lie: every bad value is a named error on one line, and nothing in a config can name code to run."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketgem.config.counts import count_parameters, decoder_shapes
from pocketgem.config.fields import MAX_LAYERS
from pocketgem.config.hf import from_hf
from pocketgem.config.model import LayerConfig, ModelConfig
from pocketgem.config.released import RELEASED, released_config
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError

Json = dict[str, Any]
LAYOUTS = sorted(RELEASED)


def text_of(config: Json) -> Json:
    """The text part, wherever it stands; writing to it changes ``config``."""
    part: Json = config.get("text_config", config)
    return part


# --- bad values, one by one -------------------------------------------------------------------------------------------

NOT_AN_INT = [-1, 1.5, "12", True, 10**12, 10**400, 10**5000, math.nan, [1, 2], {"a": 1}]
NOT_A_NUMBER = [-1, "1", True, 10**400, 1e300, math.nan, math.inf, -math.inf, [1.0], {}]
INT_KEYS = [
    ("gemma-3-4b", "vocab_size"),
    ("gemma-3-4b", "hidden_size"),
    ("gemma-3-4b", "intermediate_size"),
    ("gemma-3-4b", "num_hidden_layers"),
    ("gemma-3-4b", "num_attention_heads"),
    ("gemma-3-4b", "num_key_value_heads"),
    ("gemma-3-4b", "head_dim"),
    ("gemma-3-4b", "sliding_window"),
    ("gemma-3-4b", "max_position_embeddings"),
    ("gemma-3-4b", "bos_token_id"),
    ("gemma-3n-E2B", "num_kv_shared_layers"),
    ("gemma-3n-E2B", "altup_num_inputs"),
    ("gemma-3n-E2B", "altup_active_idx"),
    ("gemma-3n-E2B", "laurel_rank"),
    ("gemma-4-E2B", "global_head_dim"),
    ("gemma-4-E2B", "hidden_size_per_layer_input"),
    ("gemma-4-E2B", "vocab_size_per_layer_input"),
    ("gemma-4-31B", "num_global_key_value_heads"),
    ("gemma-4-26B-A4B", "num_experts"),
    ("gemma-4-26B-A4B", "top_k_experts"),
    ("gemma-4-26B-A4B", "moe_intermediate_size"),
]
FLOAT_KEYS = [
    ("gemma-3-4b", "rms_norm_eps"),
    ("gemma-3-4b", "query_pre_attn_scalar"),
    ("gemma-3-4b", "rope_theta"),
    ("gemma-3-4b", "rope_local_base_freq"),
    ("gemma-4-E2B", "final_logit_softcapping"),
]
BOOL_KEYS = [
    ("gemma-3-4b", "attention_bias"),
    ("gemma-3-4b", "tie_word_embeddings"),
    ("gemma-3n-E2B", "altup_correct_scale"),
    ("gemma-4-E2B", "use_double_wide_mlp"),
    ("gemma-4-E2B", "attention_k_eq_v"),
    ("gemma-4-E2B", "enable_moe_block"),
]


def refuse(name: str, key: str, value: object, kind: type[CheckpointError] = FormatError, says: str = "") -> str:
    """Put ``value`` under ``key`` of the text config; the error must name the key, on one short line."""
    config: Json = released_config(name)
    text_of(config)[key] = value
    with pytest.raises(kind, match=says or key) as caught:
        from_hf(config, where="model/config.json")
    message = str(caught.value)
    assert message.startswith("model/config.json: ")
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("value", NOT_AN_INT, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("name", "key"), INT_KEYS)
def test_not_an_int(name: str, key: str, value: object) -> None:
    refuse(name, key, value)


@pytest.mark.parametrize("value", NOT_A_NUMBER, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("name", "key"), FLOAT_KEYS)
def test_not_a_number(name: str, key: str, value: object) -> None:
    refuse(name, key, value)


@pytest.mark.parametrize("value", [0, 1, "true", math.nan, [], {}], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("name", "key"), BOOL_KEYS)
def test_not_a_bool(name: str, key: str, value: object) -> None:
    refuse(name, key, value)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_size_without_a_default_must_be_there(key: str) -> None:
    refuse("gemma-4-E2B", key, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["sliding_attention"] * 29),
        ("layer_types", "sliding_attention"),
        ("layer_types", ["chunked_attention"] * 30),
        ("layer_types", [["full_attention"]] * 30),
        ("layer_types", [{}] * 30),
        ("layer_types", {}),
        ("intermediate_size", [8192] * 31),
        ("intermediate_size", [8192] * 29 + [-8192]),
        ("intermediate_size", []),
        ("activation_sparsity_pattern", [0.95]),
        ("activation_sparsity_pattern", [0.5] * 29 + [math.nan]),
        ("activation_sparsity_pattern", [0.5] * 29 + [10**400]),
        ("activation_sparsity_pattern", [0.5] * 29 + [1.0]),
        ("activation_sparsity_pattern", [0.5] * 29 + [-0.5]),
        ("activation_sparsity_pattern", "dense"),
        ("eos_token_id", "106"),
        ("eos_token_id", True),
        ("eos_token_id", 10**400),
        ("eos_token_id", [1, "106"]),
        ("eos_token_id", [1, -1]),
        ("rope_parameters", []),
        ("rope_parameters", {"full_attention": 7}),
        ("rope_parameters", {"full_attention": {"rope_theta": math.nan}}),
        ("rope_parameters", {"full_attention": {"rope_type": 3}}),
    ],
)
def test_lists_and_sections_of_the_wrong_form(key: str, value: object) -> None:
    refuse("gemma-3n-E2B", key, value, says=r"full_attention" if key == "rope_parameters" and value else key)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "per_layer_config"),
        ({"x": {}}, "per_layer_config: 'x'"),
        ({"²": {}}, "per_layer_config: '²'"),
        ({"9" * 5000: {}}, "per_layer_config: '999"),
        ({"35": {}}, "per_layer_config: '35'"),
        ({"04": 512}, "per_layer_config: 04 is 512"),
        ({"04": {"head_dim": -512}}, "04: head_dim is -512"),
        ({"04": {"num_key_value_heads": 0}}, "04: num_key_value_heads is 0"),
    ],
)
def test_bad_per_layer_config(value: object, says: str) -> None:
    refuse("gemma-4-E2B", "per_layer_config", value, says=says)


def test_bad_old_rope_scaling() -> None:
    for scaling, says in ([], "rope_scaling"), ({"rope_type": "linear", "factor": 0}, "factor is 0"):
        config: Json = released_config("gemma-3-4b")
        del config["text_config"]["rope_parameters"]
        config["text_config"]["rope_scaling"] = scaling
        with pytest.raises(FormatError, match=says):
            from_hf(config)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma-3-1b", "model_type", "gemma2"),
        ("gemma-3-1b", "model_type", "llama"),
        ("gemma-3-1b", "hidden_activation", "silu"),
        ("gemma-3-1b", "attention_bias", True),
        ("gemma-3-1b", "use_bidirectional_attention", True),
        ("gemma-4-E2B", "use_bidirectional_attention", "all"),
        ("gemma-3-1b", "attn_logit_softcapping", 50.0),
        ("gemma-3n-E2B", "altup_correct_scale", False),
    ],
)
def test_valid_but_unsupported(name: str, key: str, value: object) -> None:
    if key == "use_bidirectional_attention":
        refuse(name, key, value, UnsupportedError, says="bidirectional attention")
    else:
        refuse(name, key, value, UnsupportedError)


def test_an_unknown_rope_type_is_unsupported() -> None:
    parameters = {"full_attention": {"rope_type": "yarn", "factor": 4.0}}
    refuse("gemma-3-4b", "rope_parameters", parameters, UnsupportedError, says="rope_type 'yarn'")


@pytest.mark.parametrize("value", [None, 4, "", "x" * 10_000, ["gemma4"], {}], ids=lambda value: type(value).__name__)
def test_a_model_type_that_is_no_name(value: object) -> None:
    with pytest.raises(CheckpointError, match="model_type") as caught:
        from_hf({"model_type": value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("config", [[], "gemma4", 4, None, True])
def test_json_that_is_no_object(config: Any) -> None:
    with pytest.raises(FormatError, match="expected a JSON object"):
        from_hf(config)


def test_a_text_config_that_is_no_object() -> None:
    with pytest.raises(FormatError, match="text_config"):
        from_hf({"model_type": "gemma4", "text_config": ["hidden_size"]})


# --- laws between fields ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gemma-3-4b", {"num_key_value_heads": 3}, "8 query heads cannot share 3 key heads"),
        ("gemma-3-4b", {"head_dim": 255}, "head size 255 is odd"),
        ("gemma-4-E2B", {"num_kv_shared_layers": 31}, "no full_attention layer writes any"),
        ("gemma-4-E2B", {"num_kv_shared_layers": 35}, "num_kv_shared_layers is 35"),
        ("gemma-4-E2B", {"per_layer_config": {"19": {"head_dim": 512}}}, "layer 19: shares keys"),
        ("gemma-4-26B-A4B", {"top_k_experts": 129}, "top_k_experts is 129, expected 1 to 128"),
        ("gemma-3n-E2B", {"altup_active_idx": 4}, "altup_active_idx is 4, expected 0 to 3"),
        ("gemma-4-31B", {"num_hidden_layers": MAX_LAYERS + 1}, "num_hidden_layers is 1025, expected 1 to 1024"),
    ],
)
def test_fields_that_do_not_fit_each_other(name: str, changes: Json, says: str) -> None:
    config: Json = released_config(name)
    text_of(config).update(changes)
    with pytest.raises(FormatError, match=says):
        from_hf(config)


@pytest.mark.parametrize(
    ("kv_layer", "says"),
    [(1, "reads the keys of layer 1"), (-1, "reads the keys of layer -1"), (9, "reads the keys of layer 9")],
)
def test_a_layer_reads_keys_written_before_it(kv_layer: int, says: str) -> None:
    config = from_hf(released_config("gemma-3-270m"))
    bad = dataclasses.replace(config.layers[0], kv_layer=kv_layer)
    with pytest.raises(FormatError, match=says):
        dataclasses.replace(config, layers=(bad, *config.layers[1:]))


def test_shared_keys_have_one_window() -> None:
    config = from_hf(released_config("gemma-3-270m"))
    layers: list[LayerConfig] = [*config.layers[:1], dataclasses.replace(config.layers[1], kv_layer=0, window=7)]
    with pytest.raises(FormatError, match="layer 1: shares keys with layer 0"):
        dataclasses.replace(config, layers=tuple(layers))


# --- a config is data (T7) --------------------------------------------------------------------------------------------


class Audit:
    """Records interpreter events while active. Hooks cannot be removed, so an idle one must cost nothing."""

    def __init__(self) -> None:
        self.active = False
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: tuple[object, ...]) -> None:
        if self.active:
            self.events.append(event)


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit()


HOSTILE = {
    "auto_map": {"AutoConfig": "evil/repo--configuration.Evil", "AutoModelForCausalLM": "evil/repo--modeling.Evil"},
    "_attn_implementation_internal": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "attn_implementation": "evil/kernel",
    "_name_or_path": "evil/repo",
    "trust_remote_code": True,
    "__class__": "os.system",
    "quantization_config": {"quant_method": "evil", "modules": "os"},
    "transformers_version": "99",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_that_name_code_reach_nothing(name: str, audit: Audit) -> None:
    clean: Json = released_config(name)
    hostile: Json = copy.deepcopy(clean) | HOSTILE
    text_of(hostile).update(HOSTILE)
    expected = from_hf(clean)
    audit.events.clear()
    audit.active = True
    try:
        read = from_hf(hostile)
    finally:
        audit.active = False
    assert audit.events == []
    assert read == expected


def test_the_audit_hears_an_import(audit: Audit) -> None:
    audit.events.clear()
    audit.active = True
    try:
        exec("import this_module_does_not_exist")
    except ImportError:
        pass
    finally:
        audit.active = False
    assert "import" in audit.events


# --- any JSON at all --------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([10**12, 10**400, -(10**4000), 2**63]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["sliding_attention", "full_attention", "linear", "proportional", "gemma3", "vision"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def keys_of(config: Json) -> Iterator[tuple[str, ...]]:
    """Paths to every value of a nested object."""
    for key, value in config.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *path) for path in keys_of(value))


@st.composite
def broken_configs(draw: st.DrawFn) -> Json:
    """A released config with one to four values replaced: most of it valid, so that every reader is reached."""
    config: Json = released_config(draw(st.sampled_from(LAYOUTS)))
    for path in draw(st.lists(st.sampled_from(list(keys_of(config))), min_size=1, max_size=4)):
        part = config
        for key in path[:-1]:
            part = part[key] if isinstance(part.get(key), dict) else {}
        part[path[-1]] = draw(VALUES)
    return config


def outcome(config: Json) -> ModelConfig | str:
    """The model, countable, or the message of a named error; any other exception is a failed test."""
    try:
        read = from_hf(config)
        count_parameters(read)
    except CheckpointError as error:
        return str(error)
    return read


def check(result: ModelConfig | str) -> None:
    if isinstance(result, str):
        assert "\n" not in result
    else:
        assert 1 <= result.num_layers <= MAX_LAYERS
        assert all(math.prod(shape) > 0 for shape in decoder_shapes(result).values())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken_configs())
def test_broken_configs_give_a_model_or_a_named_error(config: Json) -> None:
    check(outcome(config))


MODEL_TYPES = st.sampled_from(["gemma3", "gemma3_text", "gemma3n", "gemma4", "gemma4_unified", "gemma4_text", "bert"])
KNOWN_KEYS = sorted({key for name in LAYOUTS for path in keys_of(dict(RELEASED[name])) for key in path})


@settings(max_examples=300, deadline=None)
@given(MODEL_TYPES, st.dictionaries(st.sampled_from(KNOWN_KEYS), VALUES, max_size=12))
def test_random_objects_give_a_named_error(model_type: str, config: Json) -> None:
    check(outcome({**config, "model_type": model_type}))
