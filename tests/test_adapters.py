"""Adapters: PEFT's logits on the same weights, taken off without a trace, refused when they would change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketgem import kernels
from pocketgem.adapters.effect import attach_and_prove_
from pocketgem.adapters.peft import CONFIG, WEIGHTS, open_adapter
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import CheckpointError, FormatError, UnsupportedError, WeightsError
from pocketgem.kernels.compute import Compute
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import LowRank, attach_, detach_, merge_, targets
from tests.adapter_files import made_up, saved
from tests.test_parity import PROMPT_TOKENS, load, prompt, run
from tests.twins import BLOCKS, LAYOUTS, Twin, make_twin, oracle_logits

LINEARS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|per_layer_input_gate|per_layer_projection"

# PEFT asks transformers for a property by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def tuned(layout: str, folder: Path, **options: Any) -> tuple[Path, Path, torch.Tensor]:
    """A twin's folder, an adapter's, and what PEFT makes of both."""
    twin = make_twin(layout, folder / "twin")
    chosen = [
        name
        for name, module in twin.oracle.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "tower" not in name
        and "embed_" not in name
        and "lm_head" not in name
        and name.split(".")[-1] in LINEARS.split("|")
    ]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=chosen, init_lora_weights=False, **options)
    torch.manual_seed(7)
    model = peft.get_peft_model(twin.oracle, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder / "adapter")
    return twin.folder, folder / "adapter", oracle_logits(Twin(layout, model, twin.folder), prompt())


def experts_of(model: Gemma) -> int | None:
    return None if model.config.experts is None else model.config.experts.num_experts


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_logits_equal_pefts(layout: str, options: dict[str, bool], tmp_path: Path) -> None:
    if layout == "26B-A4B" and not options.get("use_dora"):
        options = {**options, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    folder, adapter, expected = tuned(layout, tmp_path, **options)
    model = load(folder)
    before = run(model, [PROMPT_TOKENS])
    deltas = open_adapter(adapter, experts_of(model)).deltas
    attach_(model, deltas)
    attached = run(model, [PROMPT_TOKENS])
    torch.testing.assert_close(attached, expected, atol=1e-4, rtol=0)
    assert (attached - before).abs().max() > 1e-3
    torch.testing.assert_close(run(model, [7, 1, PROMPT_TOKENS - 8]), expected, atol=1e-4, rtol=0)
    detach_(model)
    assert torch.equal(run(model, [PROMPT_TOKENS]), before), "something of the adapter stayed"
    merge_(model, deltas)
    torch.testing.assert_close(run(model, [PROMPT_TOKENS]), expected, atol=1e-4, rtol=0)


@pytest.mark.native
@pytest.mark.parametrize("layout", ["gemma3", "E2B", "31B"])
def test_over_packed_weights(layout: str, tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path / "twin", BLOCKS)
    export_gguf(open_checkpoint(resolve(twin.folder)), tmp_path / "twin.gguf", StoredType.Q4_0)
    checkpoint = open_checkpoint(resolve(tmp_path / "twin.gguf"))
    plain = build_model(checkpoint, torch.float32)
    packed = build_packed(checkpoint, Compute(str(kernels.choice().name), 2))[0]
    generator = torch.Generator().manual_seed(3)
    deltas = {name: delta_of(shape, generator) for name, shape in targets(plain).items() if name.startswith("layers.")}
    assert set(deltas) <= set(targets(packed))
    before, exact = run(packed, [PROMPT_TOKENS]), run(plain, [PROMPT_TOKENS])
    attach_(plain, deltas)
    attach_(packed, deltas)
    wanted, changed = run(plain, [PROMPT_TOKENS]), run(packed, [PROMPT_TOKENS])
    rounding = distance(before, exact)  # of activations to int8
    assert distance(changed, wanted) < 2 * rounding
    assert distance(changed, before) > 5 * rounding
    detach_(packed)
    assert torch.equal(run(packed, [PROMPT_TOKENS]), before)


def test_over_blocks_of_experts_the_rest_can_be_changed(tmp_path: Path) -> None:
    twin = make_twin("26B-A4B", tmp_path / "twin", BLOCKS)
    export_gguf(open_checkpoint(resolve(twin.folder)), tmp_path / "twin.gguf", StoredType.Q4_0)
    model = build_model(open_checkpoint(resolve(tmp_path / "twin.gguf")), torch.float32, blocks=True)
    assert not any(".experts." in name for name in targets(model))
    before = run(model, [PROMPT_TOKENS])
    dense = {name: delta_of(shape, torch.Generator().manual_seed(3)) for name, shape in targets(model).items()}
    attach_(model, {name: delta for name, delta in dense.items() if name.endswith("q_proj")})
    assert distance(run(model, [PROMPT_TOKENS]), before) > 1e-3
    detach_(model)
    stack = LowRank(torch.ones(4, 2, 64), torch.ones(4, 64, 2), 1.0)
    with pytest.raises(WeightsError, match="experts take none"):
        attach_(model, {"layers.0.experts.gate_up_proj": stack})


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


def delta_of(shape: tuple[int, ...], generator: torch.Generator) -> LowRank:
    a, b = torch.randn(3, shape[-1], generator=generator), torch.randn(shape[-2], 3, generator=generator)
    return LowRank(a, b * 0.02, 0.5)


def test_a_change_of_nothing_changes_no_bit(tmp_path: Path) -> None:
    model = load(make_twin("E2B", tmp_path).folder)
    before = run(model, [PROMPT_TOKENS])
    generator = torch.Generator().manual_seed(3)
    deltas = {name: delta_of(shape, generator) for name, shape in targets(model).items()}
    attach_(model, {name: replace(delta, B=torch.zeros_like(delta.B)) for name, delta in deltas.items()})
    assert torch.equal(run(model, [PROMPT_TOKENS]), before)


# ---- adapters that are no good ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, adapter, _ = tuned("E4B", tmp_path_factory.mktemp("good"))
    return folder, adapter


Change = Callable[[dict[str, torch.Tensor]], None]


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in sorted(tensors) if part in name)


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "q_proj.lora_A")
    tensors[name.replace("q_proj", "query")] = tensors.pop(name)
    other = name.replace("lora_A", "lora_B")
    tensors[other.replace("q_proj", "query")] = tensors.pop(other)


def half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first(tensors, "lora_B")]


def zeroed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "lora_B")].zero_()


def transposed(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("lora_A", "lora_B"):
        name = first(tensors, f"q_proj.{part}")
        tensors[name] = tensors[name].T.contiguous()


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "lora_A")][0, 0] = float("nan")


def foreign(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.weight"] = torch.ones(2, 2)


def other_rank(tensors: dict[str, torch.Tensor]) -> None:
    a, b = first(tensors, "q_proj.lora_A"), first(tensors, "q_proj.lora_B")
    tensors[a], tensors[b] = tensors[a][:2].contiguous(), tensors[b][:, :2].contiguous()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, "have no place in this model, first layers.*query"),
        (half, "lora_B is missing"),
        (zeroed, "all zeros"),
        (transposed, "do not fit each other"),
        (not_a_number, "NaN"),
        (foreign, "no part of a low-rank change"),
        (other_rank, "rank 2 in the weights, 4 in the config"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_fault_has_its_own_reason(good: tuple[Path, Path], change: Change, reason: str, tmp_path: Path) -> None:
    folder, adapter = good
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((adapter / CONFIG).read_bytes())
    model = load(folder)
    with pytest.raises(CheckpointError, match=reason):
        attach_(model, open_adapter(tmp_path).deltas)
    assert all("LoRA" not in type(module).__name__ for module in model.modules()), "half an adapter was attached"


def test_another_models_adapter_is_refused(good: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(make_twin("31B", tmp_path).folder)
    with pytest.raises(WeightsError, match=r"have no place|the adapter changes"):
        attach_(model, open_adapter(good[1]).deltas)


def test_two_at_once_are_refused(good: tuple[Path, Path]) -> None:
    model, deltas = load(good[0]), open_adapter(good[1]).deltas
    attach_(model, deltas)
    with pytest.raises(WeightsError, match="attached already"):
        attach_(model, deltas)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("peft_type", "IA3", UnsupportedError),
        ("modules_to_save", ["lm_head"], UnsupportedError),
        ("bias", "all", UnsupportedError),
        ("r", "four", FormatError),
        ("r", 10**9, FormatError),
        ("lora_alpha", float("nan"), FormatError),
        ("rank_pattern", {"q_proj": -1}, FormatError),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(
    good: tuple[Path, Path], key: str, value: object, error: type[Exception], tmp_path: Path
) -> None:
    config = json.loads((good[1] / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, key: value}))
    (tmp_path / WEIGHTS).write_bytes((good[1] / WEIGHTS).read_bytes())
    with pytest.raises(error):
        open_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-100], "is it complete"),
        (lambda content: (1 << 60).to_bytes(8, "little") + content[8:], "not a possible header length"),
        (lambda content: content.replace(b"data_offsets", b"data_offsetz"), "must have a name and exactly"),
        (lambda content: b"", "empty"),
    ],
    ids=["cut", "huge header", "garbled", "empty"],
)
def test_a_damaged_file_is_refused(
    good: tuple[Path, Path], change: Callable[[bytes], bytes], reason: str, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_bytes((good[1] / CONFIG).read_bytes())
    (tmp_path / WEIGHTS).write_bytes(change((good[1] / WEIGHTS).read_bytes()))
    with pytest.raises(FormatError, match=reason):
        open_adapter(tmp_path)


def test_a_pickle_is_not_opened(good: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes((good[1] / CONFIG).read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsupportedError, match="can run anything when it is read; save the adapter as safetensors"):
        open_adapter(tmp_path)


def test_missing_experts_are_counted(tmp_path: Path) -> None:
    model = load(make_twin("26B-A4B", tmp_path / "twin").folder)
    adapter = saved(made_up(model, choose=lambda name: ".experts." in name), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    name = first(tensors, "experts.lora_A")
    for part, few in ((name, lambda all: all[:-3]), (name.replace("lora_A", "lora_B"), lambda all: all[:, :-3])):
        tensors[part] = few(tensors[part]).contiguous()
    save_file(tensors, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(WeightsError, match="do not fit 8 experts"):
        open_adapter(tmp_path / "adapter", 8)
    with pytest.raises(WeightsError, match="a model without experts"):
        open_adapter(tmp_path / "adapter")
    assert adapter.rank == 3


def test_an_activated_adapter_says_from_where_on(good: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((good[1] / CONFIG).read_text())
    (tmp_path / WEIGHTS).write_bytes((good[1] / WEIGHTS).read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "alora_invocation_tokens": [7, 8, 9]}))
    assert open_adapter(tmp_path).invocation == (7, 8, 9)
    for wrong in ([1.5], [-1], "all", [1] * 5000):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "alora_invocation_tokens": wrong}))
        with pytest.raises(FormatError):
            open_adapter(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=CONFIG):
        open_adapter(tmp_path)


def test_the_name_of_an_adapter_is_its_content(good: tuple[Path, Path], tmp_path: Path) -> None:
    one = open_adapter(good[1])
    tensors = load_file(good[1] / WEIGHTS)
    tensors[first(tensors, "lora_A")][0, 0] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((good[1] / CONFIG).read_bytes())
    assert one.identity == open_adapter(good[1]).identity != open_adapter(tmp_path).identity


# ---- effect ----------------------------------------------------------------------------------------------------------


def test_an_effect_is_measured(good: tuple[Path, Path]) -> None:
    found = attach_and_prove_(load(good[0]), open_adapter(good[1]).deltas)
    assert found.kl > 0
    assert found.largest > 1e-3
    assert 0 <= found.top_changed <= 1


def test_no_effect_is_an_error_and_leaves_nothing(good: tuple[Path, Path]) -> None:
    model, deltas = load(good[0]), open_adapter(good[1]).deltas
    idle = {name: replace(delta, B=torch.full_like(delta.B, 1e-30)) for name, delta in deltas.items()}
    with pytest.raises(WeightsError, match="no effect"):
        attach_and_prove_(model, idle)
    attach_(model, deltas)  # it was taken off
