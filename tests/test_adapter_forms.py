"""Adapters in the formats of others: round trips to the bit, what they cannot say, merged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from pocketgem.adapters.adapter import Adapter, identity_of
from pocketgem.adapters.forms import Form, write_adapter
from pocketgem.adapters.merge import changes_of
from pocketgem.adapters.mlx import WEIGHTS as MLX_WEIGHTS
from pocketgem.adapters.peft import CONFIG, WEIGHTS, open_adapter
from pocketgem.adapters.save import Label, label_of, save_adapter
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.save_gguf import Retyped, copy_gguf
from pocketgem.checkpoint.types import StoredType
from pocketgem.convert.export import export_to_safetensors
from pocketgem.errors import FormatError, InputError, UnsupportedError, WeightsError
from pocketgem.model.build import build_model
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import attach_
from tests.adapter_files import experts_in, in_layers, made_up, same, saved
from tests.test_parity import PROMPT_TOKENS, load, prompt, run
from tests.twins import BLOCKS, Twin, make_twin, oracle_logits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    # PEFT looks for a pattern's name among modules, before it comes to parameters, to which it then applies.
    pytest.mark.filterwarnings("ignore:.*pattern keys did not match.*:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Twin, Gemma]]:
    made = {name: make_twin(name, tmp_path_factory.mktemp(name)) for name in ("gemma3", "26B-A4B", "E4B")}
    return {name: (twin, load(twin.folder)) for name, twin in made.items()}


def ranked(adapter: Adapter, rank: int, scale: float) -> Adapter:
    """The same with another rank and scale for half of its matrices."""
    deltas = dict(adapter.deltas)
    for name in list(deltas)[::2]:
        delta = deltas[name]
        deltas[name] = replace(delta, A=delta.A[..., :rank, :], B=delta.B[..., :rank].contiguous(), scale=scale)
    return replace(adapter, deltas=deltas, identity=identity_of(deltas))


# ---- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 16 / 3, 6 / 7**0.5, 0.1])
def test_pefts_format_keeps_every_bit(twins: dict[str, tuple[Twin, Gemma]], scale: float, tmp_path: Path) -> None:
    for rank in (3, 7):
        adapter = made_up(twins["26B-A4B"][1], rank=rank, scale=scale)
        assert same(adapter, saved(adapter, tmp_path / str(rank))) or not says(adapter)


def says(adapter: Adapter) -> bool:
    """Whether some alpha gives the scale at all: then the label must have found it."""
    label = label_of(adapter)
    scale = next(iter(adapter.deltas.values())).scale
    return label.alpha / (label.rank**0.5 if label.stabilised else label.rank) == scale


def test_scales_that_peft_writes_come_back(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    model = twins["gemma3"][1]
    for rank, alpha, stabilised in ((3, 16, False), (7, 16, True), (6, 1.3, True), (5, 32, False), (12, 16, True)):
        scale = alpha / rank**0.5 if stabilised else alpha / rank
        label = label_of(made_up(model, rank=rank, scale=scale))
        assert label.alpha / (rank**0.5 if label.stabilised else rank) == scale


@pytest.mark.parametrize("stack", ["gate_up_proj", "down_proj", "proj"])
def test_peft_loads_what_is_saved(stack: str, tmp_path: Path) -> None:
    twin = make_twin("26B-A4B", tmp_path / "twin")
    model = load(twin.folder)
    adapter = made_up(model, choose=lambda name: name.endswith((f"experts.{stack}", "q_proj")) or
                      (stack == "proj" and ".experts." in name))  # fmt: skip
    mixed = ranked(adapter, 2, 1.25)
    label = replace(label_of(mixed), prefix="model.language_model.")
    save_adapter(tmp_path / "adapter", mixed.deltas, label)
    assert same(mixed, open_adapter(tmp_path / "adapter", 8))
    attach_(model, mixed.deltas)
    loaded = peft.PeftModel.from_pretrained(twin.oracle, tmp_path / "adapter").eval()
    expected = oracle_logits(Twin("26B-A4B", loaded, twin.folder), prompt())
    torch.testing.assert_close(run(model, [PROMPT_TOKENS]), expected, atol=1e-4, rtol=0)


def test_lengths_are_saved(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["gemma3"][1], dora=True)
    assert same(adapter, saved(adapter, tmp_path / "adapter"))
    assert open_adapter(tmp_path / "adapter").kind == "dora"
    half = {name: replace(delta, magnitude=None if "q_proj" in name else delta.magnitude)
            for name, delta in adapter.deltas.items()}  # fmt: skip
    with pytest.raises(UnsupportedError, match="for all changed matrices or for none"):
        save_adapter(tmp_path / "half", half, Label("", 3, 1.5))


def test_weights_are_rounded_when_asked(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["gemma3"][1])
    for dtype in (torch.float16, torch.bfloat16):
        save_adapter(tmp_path / "small", adapter.deltas, label_of(adapter), {"README.md": b"#"}, dtype=dtype)
        found = open_adapter(tmp_path / "small")
        assert all(
            torch.equal(delta.A, adapter.deltas[name].A.to(dtype).float()) for name, delta in found.deltas.items()
        )
        assert load_file(tmp_path / "small" / WEIGHTS).popitem()[1].dtype == dtype
        assert (tmp_path / "small" / "README.md").read_bytes() == b"#"


# ---- mlx-lm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["gemma3", "26B-A4B", "E4B"])
def test_mlx_and_back(twins: dict[str, tuple[Twin, Gemma]], layout: str, tmp_path: Path) -> None:
    adapter = saved(replace(made_up(twins[layout][1], scale=16 / 3), prefix="model.language_model."), tmp_path / "peft")
    assert write_adapter(adapter, Form.MLX, tmp_path / "mlx", layers=6) == ()
    found = open_adapter(tmp_path / "mlx")
    assert same(adapter, found)
    assert found.prefix == adapter.prefix
    write_adapter(found, Form.PEFT, tmp_path / "again")
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("peft", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(values, after[name]) for name, values in before.items())


def test_mlx_names_and_shapes_are_its_own(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["26B-A4B"][1])
    write_adapter(adapter, Form.MLX, tmp_path / "mlx", layers=4)
    config = json.loads((tmp_path / "mlx" / CONFIG).read_text())
    tensors = load_file(tmp_path / "mlx" / MLX_WEIGHTS)
    assert config["lora_parameters"]["rank"] == 3
    assert config["lora_parameters"]["scale"] == 0.5
    assert config["num_layers"] == 4
    assert "experts.switch_glu.gate_proj" in config["lora_parameters"]["keys"]
    q = adapter.deltas["layers.0.self_attn.q_proj"]
    x = torch.randn(2, q.shape[-1])
    one, two = (tensors[f"model.layers.0.self_attn.q_proj.{part}"] for part in ("lora_a", "lora_b"))
    torch.testing.assert_close(0.5 * (x @ one) @ two, q.of(x))  # as mlx-lm multiplies
    gate = tensors["model.layers.0.experts.switch_glu.gate_proj.lora_b"]  # [experts, out, rank]
    assert torch.equal(gate, adapter.deltas["layers.0.experts.gate_up_proj"].B[:, : gate.shape[1]])


def test_mlx_with_lengths_and_with_ranks_of_their_own(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["gemma3"][1], dora=True)
    write_adapter(adapter, Form.MLX, tmp_path / "dora")
    assert same(adapter, open_adapter(tmp_path / "dora"))
    mixed = ranked(made_up(twins["gemma3"][1]), 2, 2.0)  # a factor of four: nothing is rounded
    notes = write_adapter(mixed, Form.MLX, tmp_path / "mixed")
    assert "zeros" in notes[0]
    assert "exactly" in notes[1]
    assert same(mixed, open_adapter(tmp_path / "mixed"))
    odd = ranked(made_up(twins["gemma3"][1]), 2, 0.7)
    assert "rounded to float32" in write_adapter(odd, Form.MLX, tmp_path / "odd")[1]
    for name, delta in open_adapter(tmp_path / "odd").deltas.items():
        torch.testing.assert_close(delta.whole(), odd.deltas[name].whole(), atol=1e-6, rtol=1e-6)


def test_gate_and_up_that_mlx_trained_apart(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["26B-A4B"][1], choose=lambda name: name.endswith("gate_up_proj"))
    write_adapter(adapter, Form.MLX, tmp_path / "mlx")
    tensors = load_file(tmp_path / "mlx" / MLX_WEIGHTS)
    for name in [name for name in tensors if name.endswith("up_proj.lora_a")]:
        tensors[name] = tensors[name].flip(-1).contiguous()
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "mlx" / MLX_WEIGHTS)
    for name, delta in open_adapter(tmp_path / "mlx").deltas.items():
        gate, up = adapter.deltas[name].B.chunk(2, dim=1)
        a = adapter.deltas[name].A
        expected = 0.5 * torch.cat((gate @ a, up @ a.flip(-1)), dim=1)
        torch.testing.assert_close(delta.whole(), expected)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["gemma3", "26B-A4B", "E4B"])
@pytest.mark.parametrize("scale", [0.5, 16 / 7**0.5], ids=["lora", "rslora"])
def test_gguf_and_back(twins: dict[str, tuple[Twin, Gemma]], layout: str, scale: float, tmp_path: Path) -> None:
    adapter = made_up(twins[layout][1], rank=7, scale=scale)
    assert write_adapter(adapter, Form.GGUF, tmp_path / "a.gguf", family="gemma4") == ()
    assert same(adapter, open_adapter(tmp_path / "a.gguf"))


def test_a_gguf_adapter_is_what_llama_cpp_reads(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    adapter = made_up(twins["26B-A4B"][1])
    write_adapter(adapter, Form.GGUF, tmp_path / "a.gguf", family="gemma4")
    file = GGUFReader(tmp_path / "a.gguf")
    assert file.fields["general.type"].contents() == "adapter"
    assert file.fields["adapter.type"].contents() == "lora"
    assert file.fields["general.architecture"].contents() == "gemma4"
    assert file.fields["adapter.lora.alpha"].contents() == 1.5
    tensors = {tensor.name: tensor for tensor in file.tensors}
    q, gate_up = (adapter.deltas[f"layers.0.{name}"] for name in ("self_attn.q_proj", "experts.gate_up_proj"))
    a, b = (tensors[f"blk.0.attn_q.weight.{part}"] for part in ("lora_a", "lora_b"))
    assert list(a.shape) == [q.shape[-1], 3]  # ggml's order: the packed dimension first
    assert list(b.shape) == [3, q.shape[0]]
    assert torch.equal(torch.from_numpy(a.data.copy()), q.A)
    up = tensors["blk.0.ffn_up_exps.weight.lora_b"]
    assert torch.equal(torch.from_numpy(up.data.copy()), gate_up.B.chunk(2, dim=1)[1])


def test_gguf_says_ranks_but_one_alpha(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    pattern = ranked(made_up(twins["gemma3"][1], scale=4 / 3), 2, 4 / 2)  # PEFT's rank_pattern: one alpha, two ranks
    assert write_adapter(pattern, Form.GGUF, tmp_path / "a.gguf", family="gemma3") == ()
    assert same(pattern, open_adapter(tmp_path / "a.gguf"))
    other = ranked(made_up(twins["gemma3"][1], scale=4 / 3), 2, 1.0)
    assert "multiplied into B, exactly" in write_adapter(other, Form.GGUF, tmp_path / "b.gguf", family="gemma3")[0]
    assert same(other, open_adapter(tmp_path / "b.gguf"))


def test_what_gguf_cannot_say(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no DoRA"):
        write_adapter(made_up(twins["gemma3"][1], dora=True), Form.GGUF, tmp_path / "a.gguf", family="gemma3")
    with pytest.raises(InputError, match="--model"):
        write_adapter(made_up(twins["gemma3"][1]), Form.GGUF, tmp_path / "a.gguf")
    export_gguf(open_checkpoint(resolve(twins["gemma3"][0].folder)), tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match="no LoRA adapter"):
        open_adapter(tmp_path / "model.gguf")


def test_a_record_of_ours_that_lies(twins: dict[str, tuple[Twin, Gemma]], tmp_path: Path) -> None:
    write_adapter(ranked(made_up(twins["gemma3"][1]), 2, 2.0), Form.MLX, tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / CONFIG).read_text())
    for change, reason in (
        ({"ranks": {"layers.0.self_attn.q_proj": 1}}, "not zero"),
        ({"scales": {"abacus": 1.0}}, "does not change"),
        ({"scales": {"layers.0.self_attn.q_proj": "big"}}, "expected"),
    ):
        (tmp_path / "mlx" / CONFIG).write_text(json.dumps({**config, "pocketgem": change}))
        with pytest.raises(FormatError, match=reason):
            open_adapter(tmp_path / "mlx")


# ---- merged ----------------------------------------------------------------------------------------------------------


def logits_of(checkpoint: Checkpoint, adapter: Adapter | None = None) -> torch.Tensor:
    model = build_model(checkpoint, torch.float32)
    if adapter is not None:
        attach_(model, adapter.deltas)
    return run(model, [PROMPT_TOKENS])


@pytest.mark.parametrize("layout", ["gemma3", "26B-A4B"])
@pytest.mark.parametrize("type", [StoredType.F32, StoredType.Q4_0])
def test_a_merged_gguf_file_is_the_attached_model(layout: str, type: StoredType, tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path / "twin", BLOCKS)
    export_gguf(open_checkpoint(resolve(twin.folder)), tmp_path / "base.gguf", type)
    base = open_checkpoint(resolve(tmp_path / "base.gguf"))
    adapter = made_up(build_model(base, torch.float32))
    copy_gguf(base, tmp_path / "merged.gguf", changes=Retyped(changes_of(base, adapter.deltas)))
    merged = logits_of(open_checkpoint(resolve(tmp_path / "merged.gguf")))
    torch.testing.assert_close(merged, logits_of(base, adapter), atol=1e-4, rtol=0)
    assert (merged - logits_of(base)).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["E4B", "26B-A4B", "gemma3"])
def test_a_merged_folder_is_the_attached_model(layout: str, tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path / "twin")
    base = open_checkpoint(resolve(twin.folder))
    adapter = made_up(build_model(base, torch.float32), dora=layout == "gemma3")
    done = export_to_safetensors(twin.folder, tmp_path / "merged", changes=Retyped(changes_of(base, adapter.deltas)))
    assert not done.lossless
    merged = logits_of(open_checkpoint(resolve(tmp_path / "merged")))
    torch.testing.assert_close(merged, logits_of(base, adapter), atol=1e-4, rtol=0)


def test_what_does_not_fit_is_not_merged(twins: dict[str, tuple[Twin, Gemma]]) -> None:
    base = open_checkpoint(resolve(twins["gemma3"][0].folder))
    with pytest.raises(WeightsError, match="the model has"):
        changes_of(base, made_up(twins["E4B"][1], choose=in_layers).deltas)
    head = made_up(twins["gemma3"][1], choose=lambda name: name == "lm_head")
    with pytest.raises(WeightsError, match="the head is the embedding"):
        changes_of(base, head.deltas)
    assert experts_in(made_up(twins["26B-A4B"][1])) == 8
