"""Manifests: which base an adapter was made for, how far another is from it, what it is expected to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketgem import LLM, kernels
from pocketgem.adapters.base import Base, config_hash
from pocketgem.adapters.check import check
from pocketgem.adapters.drift import checked, drift
from pocketgem.adapters.effect import attach_and_prove_
from pocketgem.adapters.manifest import MANIFEST, Manifest, from_json, manifest_of, to_json, write_manifest
from pocketgem.adapters.sketch import Sketcher, distance
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.errors import FormatError, WeightsError
from pocketgem.kernels.compute import Compute
from pocketgem.model.build import build_model
from pocketgem.model.build_packed import build_packed
from pocketgem.model.gemma import Gemma
from pocketgem.model.lora import attach_, detach_
from tests.adapter_files import made_up, saved
from tests.cli_models import TEMPLATE, save_model
from tests.test_parity import load
from tests.twins import BLOCKS, LAYOUTS, make_twin

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer and a template, whose every token has an embedding."""
    generator = torch.Generator().manual_seed(6)
    return save_model(
        tmp_path_factory.mktemp("base") / "base",
        template=TEMPLATE,
        change=lambda table: torch.randn(table.shape, generator=generator) * 0.2,
    )


@pytest.fixture(scope="module")
def manifest(base: Path) -> Manifest:
    model = load(base)
    return manifest_of(model, open_checkpoint(resolve(base)), made_up(model))


def changed(base: Path, folder: Path, change: Callable[[Tensors], None]) -> Base:
    """A copy of the base with other weights."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return base_at(folder)


def base_at(path: Path) -> Base:
    return Base(open_checkpoint(resolve(path)))


# ---- sketches --------------------------------------------------------------------------------------------------------


def sketch_of(values: torch.Tensor, name: str = "w") -> tuple[float, ...]:
    sketcher = Sketcher(name, *values.shape)
    for piece in values.split(7):
        sketcher.add(piece)
    assert sketcher.norm == pytest.approx(float(values.norm()), rel=1e-5)
    return sketcher.sketch


def test_a_sketch_tells_distances() -> None:
    generator = torch.Generator().manual_seed(1)
    ratios = []
    for at in range(24):
        one = torch.randn(60, 45, generator=generator)
        rank = (1, 4, 45)[at % 3]
        step = torch.randn(60, rank, generator=generator) @ torch.randn(rank, 45, generator=generator)
        far = distance(sketch_of(one, f"w{at}"), sketch_of(one + 1e-3 * step, f"w{at}"))
        ratios.append(far / float(1e-3 * step.norm()))
    assert all(0.4 < ratio < 1.7 for ratio in ratios)
    mean = sum(ratio**2 for ratio in ratios) / len(ratios)
    assert mean == pytest.approx(1.0, abs=0.15), "the squared distance must be met on average"


def test_a_sketch_is_of_the_values_not_of_their_type(tmp_path: Path) -> None:
    twin = make_twin("gemma3", tmp_path / "twin", BLOCKS)
    checkpoint = open_checkpoint(resolve(twin.folder))
    for type in (StoredType.F32, StoredType.Q4_0):
        export_gguf(checkpoint, tmp_path / f"{type}.gguf", type)
    model, name = load(twin.folder), "layers.0.self_attn.q_proj"
    folder, plain, coarse = (base_at(path) for path in (twin.folder, tmp_path / "F32.gguf", tmp_path / "Q4_0.gguf"))
    assert folder.facts(name) == plain.facts(name)
    rounded = build_model(coarse.checkpoint, torch.float32)
    true = float((rounded.get_submodule(name).weight - model.get_submodule(name).weight).norm())
    assert distance(folder.facts(name).sketch, coarse.facts(name).sketch) == pytest.approx(true, rel=0.4)
    assert coarse.sha256(name) != folder.sha256(name)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_has_a_manifest_and_gguf_the_same_config(layout: str, tmp_path: Path) -> None:
    twin = make_twin(layout, tmp_path / "twin")
    checkpoint = open_checkpoint(resolve(twin.folder))
    model = load(twin.folder)
    adapter = made_up(model)
    found = manifest_of(model, checkpoint, adapter)
    assert found.targets.keys() == adapter.deltas.keys()
    assert drift(found, checkpoint).state == "exact"
    assert from_json(json.loads(to_json(found)), "m") == found
    export_gguf(checkpoint, tmp_path / "a.gguf", StoredType.F32)
    assert config_hash(open_checkpoint(resolve(tmp_path / "a.gguf")).config) == found.config


# ---- drift -----------------------------------------------------------------------------------------------------------


def test_the_base_itself_is_exact(base: Path, manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "copy")
    found = checked(manifest, base_at(tmp_path / "copy"), identity=manifest.identity)
    assert found.state == "exact"
    assert found.text == "exactly the base it was made for"
    with pytest.raises(WeightsError, match="other weights"):
        checked(manifest, base_at(base), identity="0" * 64)


def test_drift_is_told_by_group(base: Path, manifest: Manifest, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(2)
        for name, share in (("q_proj", 0.02), ("down_proj", 0.10)):
            for key in [key for key in tensors if key.endswith(f"{name}.weight")]:
                noise = torch.randn(tensors[key].shape, generator=generator)
                tensors[key] += share * noise * (tensors[key].norm() / noise.norm())

    other = changed(base, tmp_path / "other", change)
    found = drift(manifest, other)
    assert found.state == "drift"
    assert found.changes.keys() == {"q_proj", "down_proj"}
    assert found.changes["q_proj"] == pytest.approx(0.02, rel=0.25)
    assert found.changes["down_proj"] == pytest.approx(0.10, rel=0.25)
    assert found.largest == found.changes["down_proj"]
    with pytest.raises(WeightsError, match=r"another base.*down_proj 1?\d\.\d+%.*q_proj.*--allow-drift"):
        checked(manifest, other)
    assert checked(manifest, other, allow_drift=True) == found


def test_what_the_adapter_leaves_alone_counts_too(base: Path, manifest: Manifest, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        next(values for name, values in tensors.items() if name.endswith("embed_tokens.weight"))[5] += 1

    other = changed(base, tmp_path / "other", change)
    assert drift(manifest, other).others == ("embedding, norms and the rest",)
    with pytest.raises(WeightsError, match="another embedding"):
        checked(manifest, other)


def test_other_shapes_and_other_words_are_never_let_through(base: Path, manifest: Manifest, tmp_path: Path) -> None:
    twin = base_at(make_twin("gemma3", tmp_path / "twin", BLOCKS).folder)
    assert drift(manifest, twin).state == "misfit"
    with pytest.raises(WeightsError, match=r"had other shapes: layers\.0.* and \d+ more"):
        checked(manifest, twin, allow_drift=True)
    other = replace(manifest, tokenizer="1" * 64)
    with pytest.raises(WeightsError, match="whose tokenizer is another"):
        checked(other, base_at(base), allow_drift=True)


def test_another_template_is_said_and_another_config_refused(base: Path, manifest: Manifest, tmp_path: Path) -> None:
    found = checked(replace(manifest, template="1" * 64), base_at(base))
    assert found.state == "exact"
    assert found.text == "another template"
    shutil.copytree(base, tmp_path / "other")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rope_theta": 12345.0}))
    with pytest.raises(WeightsError, match="another config"):
        checked(manifest, base_at(tmp_path / "other"))


def test_a_model_is_loaded_with_an_adapter_that_is_its_own(base: Path, tmp_path: Path) -> None:
    model = load(base)
    adapter = saved(made_up(model), tmp_path / "adapter")
    write_manifest(tmp_path / "adapter", manifest_of(model, open_checkpoint(resolve(base)), adapter))
    for dtype in (torch.float32, torch.bfloat16):
        LLM.load(base, dtype=dtype, adapter=tmp_path / "adapter")
    other = changed(base, tmp_path / "other", lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].mul_(1.01))
    where = Path(other.checkpoint.where).parent
    with pytest.raises(WeightsError, match=r"made for another base, base .*up_proj"):
        LLM.load(where, dtype=torch.float32, adapter=tmp_path / "adapter")
    LLM.load(where, dtype=torch.float32, adapter=tmp_path / "adapter", allow_drift=True)
    saved(made_up(model, seed=8), tmp_path / "second")
    shutil.copy(tmp_path / "adapter" / MANIFEST, tmp_path / "second")
    with pytest.raises(WeightsError, match="other weights"):
        LLM.load(base, dtype=torch.float32, adapter=tmp_path / "second")


# ---- the probe -------------------------------------------------------------------------------------------------------


def test_the_effect_is_the_recorded_one_or_refused(tmp_path: Path) -> None:
    twin = make_twin("26B-A4B", tmp_path)
    model, checkpoint = load(twin.folder), open_checkpoint(resolve(twin.folder))
    adapter = made_up(model)
    probe = manifest_of(model, checkpoint, adapter).probe
    assert max(map(abs, probe.changes)) > 0.1
    assert attach_and_prove_(model, adapter.deltas, expected=probe).kl > 0
    detach_(model)
    louder = {name: replace(delta, scale=1.1 * delta.scale) for name, delta in adapter.deltas.items()}
    fewer = {name: delta for name, delta in adapter.deltas.items() if name != "layers.1.experts.down_proj"}
    for deltas in (louder, fewer):
        with pytest.raises(WeightsError, match="does not do what its manifest says"):
            attach_and_prove_(model, deltas, expected=probe)
        attach_(model, adapter.deltas)  # nothing was left on
        detach_(model)


@pytest.mark.native
def test_other_kernels_agree_within_rounding(tmp_path: Path) -> None:
    twin = make_twin("31B", tmp_path / "twin", BLOCKS)
    export_gguf(open_checkpoint(resolve(twin.folder)), tmp_path / "twin.gguf", StoredType.Q8_0)
    checkpoint = open_checkpoint(resolve(tmp_path / "twin.gguf"))
    plain = build_model(checkpoint, torch.float32)
    packed = build_packed(checkpoint, Compute(str(kernels.choice().name), 2))[0]
    adapter = made_up(plain, choose=lambda name: name.startswith("layers.") and "norm" not in name)
    probe = manifest_of(plain, checkpoint, adapter).probe
    for model in (packed, build_model(checkpoint, torch.bfloat16)):
        assert attach_and_prove_(model, adapter.deltas, expected=probe).kl > 0
        detach_(model)
        opposite = {name: replace(delta, scale=-delta.scale) for name, delta in adapter.deltas.items()}
        with pytest.raises(WeightsError, match="where rounding explains"):
            attach_and_prove_(model, opposite, expected=probe)


# ---- strangers' manifests --------------------------------------------------------------------------------------------


def put(content: dict[str, Any], path: str, value: object) -> None:
    *keys, last = path.split("/")
    for key in keys:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("format", "something else"),
        ("identity", "abc"),
        ("kind", "ia3"),
        ("rank", 10**9),
        ("capsule", "../../etc/passwd"),
        ("base/config", None),
        ("base/tokenizer", 5),
        ("targets", {}),
        ("targets", []),
        ("targets/layers.0.self_attn.q_proj/shape", [3]),
        ("targets/layers.0.self_attn.q_proj/shape", [3, -1]),
        ("targets/layers.0.self_attn.q_proj/norm", float("nan")),
        ("targets/layers.0.self_attn.q_proj/sketch", "AAAA"),
        ("targets/layers.0.self_attn.q_proj/sketch", "/" * 172),
        ("targets/layers.0.self_attn.q_proj", 7),
        ("targets/../up", {}),
        ("probe/ids", []),
        ("probe/ids", [1, 2]),
        ("probe/tokens", "all"),
        ("probe/changes", [float("inf")] * 25),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(manifest: Manifest, path: str, value: object) -> None:
    content = json.loads(to_json(manifest))
    put(content, path.replace("targets/../up", "targets/.."), value)
    with pytest.raises(FormatError):
        from_json(content, "manifest.json")


# ---- the verbs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Gemma]:
    """An adapter of the base in a folder, and an empty registry."""
    monkeypatch.setenv("POCKETGEM_ADAPTERS", str(tmp_path / "registry"))
    model = load(base)
    saved(made_up(model, choose=lambda name: "proj" in name), tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_the_verbs(base: Path, shelf: tuple[Path, Gemma], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = shelf

    def run(*arguments: object, code: int = 0) -> str:
        assert main(["adapters", *map(str, arguments)]) == code
        return capsys.readouterr().out

    run("add", source, "--name", "calls", code=2)  # no manifest, no base
    added = json.loads(run("add", source, "--name", "calls", "--model", base, "--json"))
    assert added["base"] == "base"
    saved(made_up(model, seed=9), tmp_path / "second")
    second = json.loads(run("add", tmp_path / "second", "--name", "calls", "--model", base, "--json"))
    assert second["before"] == [added["identity"]]
    assert "calls" in run("list")
    shown = run("show", "calls")
    assert "q_proj" in shown
    assert added["identity"][:12] in shown
    assert json.loads(run("show", "calls", "--json"))["manifest"] is True
    assert "exactly" in run("compatible", base)
    checks = json.loads(run("check", "calls", "--model", base, "--json"))
    assert checks["good"]
    assert [one["name"] for one in checks["checks"]] == ["files", "base", "effect"]
    run("rollback", "calls")
    assert json.loads(run("list", "--json"))["adapters"][0]["identity"] == added["identity"]
    run("export", "calls", "--format", "mlx", "--out", tmp_path / "mlx")
    run("export", "calls", "--format", "mlx", "--out", tmp_path / "mlx", code=2)  # it is there
    run("convert", tmp_path / "mlx", "--format", "gguf", "--out", tmp_path / "a.gguf", code=2)  # no family
    run("convert", tmp_path / "mlx", "--format", "gguf", "--out", tmp_path / "a.gguf", "--model", base)
    again = json.loads(run("add", tmp_path / "a.gguf", "--name", "again", "--model", base, "--json"))
    assert (
        json.loads(run("show", "again", "--json"))["identity"] == json.loads(run("show", source, "--json"))["identity"]
    )
    run("merge", base, "calls", "--out", tmp_path / "merged", "--json")
    run("check", "calls", "--model", tmp_path / "merged", code=1)  # another base now
    assert "with drift" in run("compatible", tmp_path / "merged")
    run("remove", "again")
    assert json.loads(run("prune", "--json"))["removed"] is False
    assert [one["identity"] for one in json.loads(run("prune", "--yes", "--json"))["objects"]] == [again["identity"]]
    run("show", "nothing", code=2)


def test_check_names_what_is_wrong(base: Path, shelf: tuple[Path, Gemma], tmp_path: Path) -> None:
    source, model = shelf
    checkpoint = open_checkpoint(resolve(base))
    adapter = saved(made_up(model, seed=5), tmp_path / "adapter2")
    (source / MANIFEST).write_bytes(to_json(manifest_of(model, checkpoint, adapter)))  # of the other one
    found = check(source, model, checkpoint)
    assert [one.good for one in found] == [True, False, True]
    assert "other weights" in found[1].text
    (source / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    assert [one.good for one in check(source, model, checkpoint)] == [False]
    attach_(model, adapter.deltas)  # nothing was left on
