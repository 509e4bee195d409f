"""Media on the command line: in their order, found or refused before a model is loaded, drawn where they are."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pocketgem.cli.chat import Conversation
from pocketgem.cli.common import UsageError
from pocketgem.cli.media import parts_of
from pocketgem.cli.screen import Screen
from pocketgem.cli.serve import mmprojs_of
from pocketgem.cli.speech import Manner
from pocketgem.errors import PromptError
from pocketgem.serve.loading import Loader
from tests.mmproj_files import write_mmproj
from tests.scripted import Script, save_scripted, scripted_llm
from tests.sensing import give_senses, mp4, png, sensing_llm, wav
from tests.test_cli import Cli, cli  # noqa: F401  # cli is a fixture


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "twin"
    sensing_llm(folder, "E2B")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"a.png": png(1, 60, 90), "b.wav": wav(), "c.mp4": mp4(0.3), "d.png": png(2, 60, 90)}
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in found}


def test_files_stand_in_the_order_of_the_command_line(files: dict[str, Path]) -> None:
    a, b, c, d = files.values()
    line = ["run", "m", f"--image={a}", "--audio", str(b), "--video", str(c), "--image", str(d), "--", "--image", "hi"]
    assert [part["type"] for part in parts_of(line, [a, d], [b], [c])] == ["image", "audio", "video", "image"]
    assert parts_of(line, [a, d], [b], [c])[3]["image"] == d.read_bytes()
    assert [part["type"] for part in parts_of(None, [a], [b], None)] == ["image", "audio"]


def test_run_sees_and_hears(cli: Cli, twin: Path, files: dict[str, Path]) -> None:  # noqa: F811
    ran = cli(
        "run", twin, "--image", files["a.png"], "--audio", files["b.wav"], "--image-budget", "70", "--max-tokens", 3,
        "--temperature", 0, "--json", "hello",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    stats = json.loads(ran.out)["stats"]
    assert 30 < stats["image_tokens"] <= 70
    assert stats["audio_tokens"] == 13
    large = files["a.png"].with_name("large.png")
    large.write_bytes(png(1, 500, 500))
    noted = cli("run", twin, "--image", large, "--image-budget", 70, "--max-tokens", 2, "hello")
    assert "made smaller for 64 tokens" in noted.err
    assert "64 tokens of images" in noted.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "/no/such.png", "hi"], "/no/such.png: cannot be read"),
        (["--image-budget", "99", "hi"], "an image budget is '99'"),
        (["--image", "a.png", "--raw", "hi"], "have no place"),
        (["--image", "b.wav", "hi"], "the picture"),
        (["--audio", "a.png", "hi"], "the sound"),
        (["--video", "a.png", "hi"], "the video"),
        (["--mmproj", "a.png", "hi"], "a.png"),
    ],
)
def test_what_is_wrong_ends_with_2(cli: Cli, twin: Path, files: Any, arguments: Any, complaint: str) -> None:  # noqa: F811
    known = {name: str(path) for name, path in files.items()}
    ran = cli("run", twin, *(known.get(one, one) for one in arguments))
    assert ran.code == 2
    assert complaint in ran.err
    assert ran.out == ""


def test_a_model_without_towers_is_refused_before_it_is_loaded(cli: Cli, files: Any, tmp_path: Path) -> None:  # noqa: F811
    folder = save_scripted(tmp_path / "blind")
    for option, name, tower in (("--image", "a.png", "vision"), ("--audio", "b.wav", "audio")):
        ran = cli("run", folder, option, files[name], "hi")
        assert ran.code == 2
        assert f"no {tower} tower in this checkpoint, so {option} has no meaning" in ran.err
    assert cli("detect", folder, files["a.png"], "cats").code == 2


def test_detect_and_point_write_and_draw(cli: Cli, twin: Path, files: Any, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr("pocketgem.pointing.MOST", 1)
    drawn = tmp_path / "drawn.png"
    ran = cli("detect", twin, files["a.png"], "cats", "--draw", drawn, "--json")
    assert ran.code == 0, ran.err
    boxes = json.loads(ran.out)
    assert all({*box} == {"left", "top", "right", "bottom", "label"} for box in boxes)
    before, after = (np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in (files["a.png"], drawn))
    assert after.shape == (60, 90, 3)
    assert (after != before).any() == bool(boxes)
    assert cli("point", twin, files["a.png"], "cats").code == 0
    assert "say what to look for" in cli("point", twin, files["a.png"], " ").err


def test_captions_and_transcripts(cli: Cli, twin: Path, files: Any, monkeypatch: Any) -> None:  # noqa: F811
    from pocketgem import pointing

    monkeypatch.setattr(pointing, "_SCENES", {**pointing._SCENES, "maxItems": 1})
    ran = cli("caption", twin, files["c.mp4"], "--frames", 2, "--format", "vtt")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("WEBVTT")
    monkeypatch.setattr("pocketgem.speech.MAX_TOKENS", 4)
    heard = cli("transcribe", twin, files["b.wav"], "--json")
    assert heard.code == 0, heard.err
    assert json.loads(heard.out)["seconds"] == 0.5
    assert cli("translate", twin, files["b.wav"], "--to", "xx").code == 2


def test_a_conversation_shows_files(tmp_path: Path, files: dict[str, Path]) -> None:
    llm = scripted_llm(tmp_path / "m", Script({"what": ["A wall."]}))
    give_senses(llm)
    out = io.StringIO()
    lines = iter([f"/image {files['a.png']}", f"/audio {files['b.wav']}", "what", "/history", "/save x.json", "what"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk = Conversation(llm, Manner(raw=False), read, Screen(quiet=True, out=out))
    talk.hold("m")
    first, _, second, _ = talk.messages
    assert [part["type"] for part in first["content"]] == ["image", "audio", "text"]
    assert second["content"] == "what"
    assert "(image)\n(audio)\nwhat" in out.getvalue()
    assert not Path("x.json").exists()
    with pytest.raises(PromptError, match="name a file"):
        talk._attach("image", "")


def test_towers_of_a_gguf_file_beside_the_model(cli: Cli, twin: Path, files: Any, tmp_path: Path) -> None:  # noqa: F811
    tensors = load_file(twin / "model.safetensors")
    blind, deaf = tmp_path / "blind", tmp_path / "deaf"
    for folder, kinds in ((blind, ("vision", "audio")), (deaf, ("audio",))):
        shutil.copytree(twin, folder)
        left = {name: tensor for name, tensor in tensors.items() if not any(kind in name for kind in kinds)}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    asked = ["--image", files["a.png"], "--max-tokens", 4, "--temperature", 0, "--json", "hello"]
    assert cli("run", blind, *asked).code == 2
    mmproj = write_mmproj(deaf, tmp_path / "mmproj.gguf")
    beside, within = cli("run", blind, "--mmproj", mmproj, *asked), cli("run", twin, *asked)
    assert beside.code == within.code == 0, (beside.err, within.err)
    assert json.loads(beside.out)["ids"] == json.loads(within.out)["ids"]
    options = {"dtype": None, "context": None, "ple": "auto", "offline": True, "memory": None, "image_budget": 70}
    llm = Loader(options, {"m": mmproj}, None)("m", str(blind))
    assert llm.senses.can("image")
    assert llm.senses.budget == 70
    assert mmprojs_of([f"m={mmproj}"], {"m": "x", "n": "y"}) == {"m": mmproj}
    assert mmprojs_of([str(mmproj)], {"m": "x", "n": "y"}) == {"m": mmproj}
    with pytest.raises(UsageError, match="give one FILE"):
        mmprojs_of(["z=file"], {"m": "x"})
