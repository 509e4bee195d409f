"""What ``info`` finds and how it draws it: layouts, tiny checkpoints, and the real file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pocketgem.info
from pocketgem import CheckpointError, FormatError
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.cli import main
from pocketgem.cli.common import count_text, size_text
from pocketgem.cli.info import draw
from pocketgem.config.released import RELEASED, released_config
from pocketgem.info import Info, describe_machine, inspect
from pocketgem.info.texts import describe_template
from pocketgem.info.weights import tower_of
from pocketgem.kernels.cpu import default_threads
from pocketgem.model.build import build_model
from pocketgem.model.cache import Cache
from tests.cli_models import TEMPLATE, save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "vision", template=TEMPLATE, vision=True)


def works(info: Info) -> dict[str, bool]:
    return {ability.name: ability.works for ability in info.abilities}


def why(info: Info, name: str) -> str:
    return next(ability.reason for ability in info.abilities if ability.name == name)


def drawn(info: Info, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, markup=False, highlight=False, emoji=False)
    return draw(console, info, describe_machine(), cpu=True).splitlines()


# ---- layouts -------------------------------------------------------------------------------------------------------


def test_a_layout_by_name_tells_what_the_model_card_tells() -> None:
    info = inspect("gemma-4-e2b")
    groups = {group.name: group.parameters for group in info.weights.groups}
    assert {name: round(count / 1e6) for name, count in groups.items() if name in ("embedding", "per_layer_table")} == {
        "embedding": 403,
        "per_layer_table": 2349,
    }
    assert info.weights.total / 1e9 == pytest.approx(5.10, abs=0.01)
    assert info.weights.effective / 1e9 == pytest.approx(2.28, abs=0.01)
    assert info.layout.pattern == "SSSSF SSSSF SSSSF ssssf ssssf ssssf ssssf"
    assert [(kind.count, kind.reads) for kind in info.layout.kinds] == [(12, ()), (3, ()), (16, (13,)), (4, (14,))]
    assert not any(works(info).values())
    assert "169 M parameters in this layout, no weights here" in why(info, "images")


def test_experts_count_where_they_are_read() -> None:
    weights = inspect("gemma-4-26B-A4B").weights
    assert weights.active / 1e9 == pytest.approx(3.82, abs=0.01)
    assert weights.total / 1e9 == pytest.approx(25.81, abs=0.01)


def test_sliding_layers_stop_growing_at_their_window() -> None:
    sliding, full = inspect("gemma-4-E2B").layout.cache
    assert (sliding.layers, full.layers) == (12, 3)  # those that write keys of their own
    assert sliding.bytes_per_token == 12 * 2 * 256 * 2
    assert {*sliding.at.values()} == {512 * sliding.bytes_per_token}
    assert full.at == {span: span * 3 * 2 * 512 * 2 for span in (4096, 32_768, 131_072)}


def test_cache_costs_are_those_of_the_cache(base: Path) -> None:
    """At its window a sliding store has room for it and a little slack; a full one starts with 256 rows."""
    config = open_checkpoint(resolve(base)).config
    cost = {one.kind: one.bytes_per_token for one in inspect(str(base)).layout.cache}
    stores = Cache(config, torch.bfloat16).stores
    assert cost["full"] == sum(store.nbytes // len(store.k) for store in stores.values() if store.room.window is None)
    assert cost["sliding"] == sum(
        store.nbytes // len(store.k) for store in stores.values() if store.room.window is not None
    )


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with the default model were not installed."""

    def missing(model: str, *, offline: bool) -> None:
        raise CheckpointError(f"{model}: not installed")

    monkeypatch.setattr(pocketgem.info, "resolve", missing)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", RELEASED)
def test_every_layout_fits_80_columns(name: str) -> None:
    narrow, wide = drawn(inspect(name), 80), drawn(inspect(name), 1000)
    assert max(map(len, narrow)) <= 80
    assert not any("…" in line or line != line.rstrip() for line in narrow)
    rows = {line.split()[0] for line in narrow if line.startswith("  ") and line.strip()}
    assert {"embedding", "core", "all", "pattern", "kernels", "sliding,", "full"} <= rows
    # Only the pattern of the deepest models and long reasons may take a second line, never a row of a table.
    tables = [line for line in wide if re.match(r" +(\d+ |sliding|full|embedding|core|experts|all)", line)]
    assert tables
    assert {" ".join(line.split()) for line in tables} <= {" ".join(line.split()) for line in narrow}


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_folder_is_described_by_its_tensors(vision: Path) -> None:
    info = inspect(str(vision))
    groups = {group.name: group for group in info.weights.groups}
    model = build_model(open_checkpoint(resolve(vision)), torch.float32)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert groups["embedding"].parameters + groups["core"].parameters == counted
    assert groups["vision"].stored == groups["vision"].parameters * 4
    assert info.weights.stored == sum(group.stored or 0 for group in info.weights.groups)
    assert info.weights.types == {"F32": (sum(1 for _ in _names(vision)), info.weights.stored)}
    assert info.files.size == (vision / "model.safetensors").stat().st_size
    assert works(info) == {
        "text": True, "chat": True, "thinking": True, "tools": False, "images": True, "audio": False,
    }  # fmt: skip
    assert re.fullmatch(r"vision tower of [\d.]+ M parameters in this file", why(info, "images"))
    assert "no audio tower" in why(info, "audio")


def _names(folder: Path) -> list[str]:
    checkpoint = open_checkpoint(resolve(folder))
    return [*checkpoint.tensors, *checkpoint.others]


def test_the_tokenizer_and_the_template_are_described(base: Path, vision: Path) -> None:
    words = inspect(str(base)).vocabulary
    assert words is not None
    assert (words.size, words.bos, words.eos) == (320, {2: "<bos>"}, {1: "<eos>"})
    assert words.stops == {1: "<eos>", 5: "<turn|>"}
    assert inspect(str(base)).template is None
    template = inspect(str(vision)).template
    assert template is not None
    assert (template.thinking, template.tools, template.fault) == (True, False, None)
    assert re.fullmatch("[0-9a-f]{64}", template.sha256)


def test_what_is_missing_is_said(base: Path, tmp_path: Path) -> None:
    info = inspect(str(save_model(tmp_path / "missing", without={"layers.2.mlp.up_proj.weight"})))
    assert info.weights.missing == ("layers.2.mlp.up_proj.weight",)
    assert not works(info)["text"]
    assert "layers.2.mlp.up_proj.weight" in why(info, "text")
    (save_model(tmp_path / "mute") / "tokenizer.json").unlink()
    info = inspect(str(tmp_path / "mute"))
    assert info.vocabulary is None
    assert "tokenizer.json" in why(info, "text")


def test_a_config_alone_is_a_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released_config("gemma-3-270m")))
    for path in (tmp_path, tmp_path / "config.json"):
        info = inspect(str(path))
        assert info.layout == inspect("gemma-3-270M").layout
        assert info.files.paths == (str(tmp_path / "config.json"),)
        assert not works(info)["text"]


def test_a_bad_model_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        inspect(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError):
        inspect(str(tmp_path))


def test_a_template_that_is_none_is_a_fact() -> None:
    template = describe_template("{% if")
    assert template is not None
    assert template.fault
    long = describe_template("x" * (1 << 18))
    assert long is not None
    assert "longer" in (long.fault or "")


def test_template_features_are_variables_not_words() -> None:
    """The words in a comment or in a text mean nothing; a variable read inside a macro does."""
    found = describe_template("{# tools #}tools enable_thinking{% macro m() %}{{ enable_thinking }}{% endmacro %}")
    assert found is not None
    assert (found.tools, found.thinking) == (False, True)


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("model.vision_tower.encoder.layers.0.x", "vision"),
        ("vision_tower.x", "vision"),
        ("model.embed_vision.embedding_projection.weight", "vision"),
        ("multi_modal_projector.x", "vision"),
        ("v.blk.0.ln1.weight", "vision"),
        ("mm.input_projection.weight", "vision"),
        ("model.audio_tower.layers.0.x", "audio"),
        ("embed_audio.x", "audio"),
        ("mm.a.input_projection.weight", "audio"),
        ("a.conv1d.0.weight", "audio"),
        ("blk.0.extra", "other"),
        ("my_vision_tower_notes", "other"),
    ],
)
def test_towers_are_known_by_their_tensors(name: str, tower: str) -> None:
    assert tower_of(name) == tower


# ---- the command ---------------------------------------------------------------------------------------------------


def test_json_holds_the_same_facts(vision: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(vision), "--json"]) == 0
    data, info = json.loads(capsys.readouterr().out), inspect(str(vision))
    assert data["layout"]["pattern"] == info.layout.pattern
    assert data["weights"]["total"] == info.weights.total
    assert data["vocabulary"]["stops"] == {"1": "<eos>", "5": "<turn|>"}
    assert data["machine"]["threads"] == default_threads().count


def test_the_computer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cpu"]) == 0
    text = capsys.readouterr().out
    assert default_threads().reason in text
    assert describe_machine().kernels in text
    assert main(["info", "--cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"machine"}


def test_in_a_pipe_rows_are_not_wrapped(vision: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(vision)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith(str(vision / "model.safetensors")) for line in lines)
    assert "\x1b" not in "".join(lines)


def test_text_from_the_file_is_made_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "[red]\x1b[31mname\n[")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))  # a token named \x1b[2J
    assert main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "[red]\\x1b[31mname\\n[" in text
    assert "\\x1b[2J 9" in text


def test_numbers_for_people() -> None:
    assert [size_text(number) for number in (0, 999, 1000, 253_100_000, 10_210_000_000)] == [
        "0 B", "999 B", "1.0 kB", "253.1 MB", "10.21 GB",
    ]  # fmt: skip
    assert [count_text(number) for number in (7, 15_360, 999_960, 268_098_176)] == ["7", "15.4 k", "1.0 M", "268.1 M"]


# ---- the real model ------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_model(real_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = inspect(str(real_model_path))
    groups = {group.name: group for group in info.weights.groups}
    assert round(info.weights.total / 1e6) == 268
    assert round(groups["embedding"].parameters / 1e6) == 168
    assert sum(size for _, size in info.weights.types.values()) == info.weights.stored < info.files.size
    assert info.vocabulary is not None
    assert info.vocabulary.size == 262_144
    assert works(info) == {
        "text": True, "chat": False, "thinking": False, "tools": False, "images": False, "audio": False,
    }  # fmt: skip
    assert main(["info", str(real_model_path)]) == 0
    text = capsys.readouterr().out
    assert "268.1 M" in text
    assert "SSSSSF SSSSSF SSSSSF" in text
    assert max(map(len, drawn(info, 80))) <= 80
